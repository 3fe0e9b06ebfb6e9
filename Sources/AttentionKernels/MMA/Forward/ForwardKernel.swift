package import PTX

/// Exact attention on tensor cores: FlashAttention 2 (Dao 2023, algorithm 1), split over the queries.
///
///     for each block of w warps: 16 r w rows of (query, head of the group) pairs that share a key/value head
///       for each tile of keys that some row sees:
///         S = Q K^T
///         mask S, where some row does not see all of it
///         m' = max(m, rows of S);  O, l *= exp(m - m'), if some m grew much
///         P = exp(S - m');  l += rows of P;  O += P V
///       O /= l;  LSE = m + log l
///
/// with r 16-row tiles in each warp. K and V come by asynchronous copies, `stages` tiles ahead; P goes from the
/// accumulators of S straight into the A operand of P V. One barrier a tile.
///
/// Budget of a tile of 16 rows x 64 keys: (D + D_v) / 2 `mma`, 32 exponentials a lane, and, with r 1, as many
/// `ldmatrix` as half the `mma` (a quarter with r 2). Registers of a thread: r (D_v / 2 + keys / 2), D r / 4 where Q is
/// kept, and about 50.
package struct ForwardKernel: KernelSource {
  /// What the kernel is made for.
  package let specialization: ForwardSpecialization

  /// The kernel of a specialization.
  package init(_ specialization: ForwardSpecialization) { self.specialization = specialization }

  /// The entry point's name.
  package var name: String { specialization.name }

  /// The kernel, with the parameters of `ForwardParameters`.
  package func kernel() throws(KernelError) -> Kernel {
    let tiling = specialization.tiling
    return try Kernel.build(
      name, threadsPerBlock: tiling.threads, blocksPerMultiprocessor: tiling.blocksPerMultiprocessor
    ) { k in ForwardBody(k, specialization, SharedMemoryPlan(specialization)).emit() }
  }
}
