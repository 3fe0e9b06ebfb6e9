package import PTX

/// Exact attention by Hopper's own instructions: FlashAttention 2 (Dao 2023, algorithm 1) with the copy engine, `wgmma` and
/// warps with roles, as FlashAttention 3 (Shah and others 2024) divides them.
///
///     producer, one thread (where sequences have lengths of their own, its warp finds the items), for each item (some query
///     rows of a head):
///       Q;  for each tile of keys that some row of the item sees:  K, V, into rings
///     converters, where K and V come as bytes (`TileConverter`):  operands of these, into other rings
///     consumers, groups of four warps, 64 query rows each, for each item:
///       S = Q K^T of the first tile that a row of the group sees;  m = its maxima;  P = exp(S - m)
///       for each tile but the first:
///         S = Q K^T of this one, O += P V of the one before, back to back on the tensor cores
///         when S is there:  m, where some row does not see all of the tile
///                           P = exp(S - m), l += its sums;  where one is too large:  S again, m, P, l
///         when O is there:  O, where some m has grown
///       O += P V of the last;  O /= l;  LSE = m + log l
///
/// The groups drift apart by themselves, so that one's products run under the others' exponentials. P goes from the
/// accumulators of S straight into the A operand of P V.
///
/// Budget of 64 rows x N keys: N (D + D_v) / 32 cycles of the tensor cores, 4 N of the special-function units; registers of a
/// thread: D_v / 2 of O, N / 2 of S, N / 4 of P, and about 32.
package struct HopperForwardKernel: KernelSource {
  /// What the kernel is made for.
  package let specialization: HopperForwardSpecialization

  /// The kernel of a specialization.
  package init(_ specialization: HopperForwardSpecialization) { self.specialization = specialization }

  /// The entry point's name.
  package var name: String { specialization.name }

  /// The kernel, with the parameters of `HopperForwardParameters`.
  package func kernel() throws(KernelError) -> Kernel {
    // One block a multiprocessor, so that ptxas knows the registers at entry, which setmaxnreg changes.
    try Kernel.build(name, threadsPerBlock: specialization.tiles.threads, blocksPerMultiprocessor: 1) { k in
      HopperForwardBody(k, specialization).emit()
    }
  }
}
