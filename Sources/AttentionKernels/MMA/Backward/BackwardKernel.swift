package import PTX

/// The gradients of attention on tensor cores: two kinds of kernels, each the other turned around.
///
///     for each block of keys of a key/value head               for each block of packed rows of queries
///       for each tile of packed rows that sees some key          for each tile of keys that some row sees
///         S^T = K Q^T;  dP^T = V dO^T                              S = Q K^T;  dP = dO V^T
///         P^T = exp(S^T - LSE)                                     P = exp(S - LSE)
///         dS^T = P^T (dP^T - delta)                                dS = P (dP - delta)
///         dV += P^T dO;  dK += dS^T Q                              dQ += dS K
///       dK *= scale                                              dQ *= scale
///
/// Seven products where the mathematics has five (Dao 2023, algorithm 2), for which nothing is added up by several blocks: no
/// atomics, no accumulator in memory, the same bits in every run. Sums over the query heads of a group are made in registers,
/// in f32, because their rows are packed. P and dS go from the accumulators of a product straight into the A operand of the
/// next, because a block's rows are those of its sums: no warp waits for another but where a tile arrives.
///
/// Budget of a warp's 16 rows x 64 that pass, at D = D_v = 128: 256 `mma` for dK and dV (192 for dQ), 32 exponentials a lane,
/// 144 (96) `ldmatrix`; registers of a thread: 128 for dK and dV (64 for dQ), 64 for S and dP, about 50.
package struct BackwardKernel: KernelSource {
  /// What the kernel is made for.
  package let specialization: BackwardSpecialization

  /// The kernel of a specialization.
  package init(_ specialization: BackwardSpecialization) { self.specialization = specialization }

  /// The entry point's name.
  package var name: String { specialization.name }

  /// The kernel, with the parameters of `BackwardParameters`.
  package func kernel() throws(KernelError) -> Kernel {
    let cut = specialization.cut
    return try Kernel.build(
      name, threadsPerBlock: cut.threads, blocksPerMultiprocessor: cut.blocksPerMultiprocessor
    ) { k in BackwardBody(k, specialization).emit() }
  }
}
