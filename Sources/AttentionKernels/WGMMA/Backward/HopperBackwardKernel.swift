package import PTX

/// dK and dV, and what each block's keys add to dQ, by Hopper's own instructions: the copy engine, `wgmma` and warps with roles.
///
///     producer, one thread, for a block of keys of a key/value head:
///       K, V;  for each tile of packed rows that sees some key:  Q with its statistics, dO, into rings
///     consumers, two groups of four warps, for each of these tiles:
///       S^T = K Q^T;  dP^T = V dO^T
///       P^T = exp(S^T - LSE), under dP^T;  dS^T = P^T (dP^T - delta)
///       dV += P^T dO;  dK += dS^T Q
///       dS^T to shared memory;  dQ += dS K, to memory, half of the columns each
///     dK *= scale
///
/// Up to D = 128 (with a softcap 64) a group has 64 keys of its own: P^T and dS^T go from the accumulators straight into A operands. Beyond, where
/// sums of 64 keys fill the registers of both, each makes half of the scores and sums half of the columns, and both read P^T and dS^T from
/// shared memory (`HopperBackwardTiling.Share`).
///
/// Budget of 64 keys x 64 rows, D = D_v: 10 D cycles of the tensor cores for the five products; registers of a thread: 128 for dK and
/// dV of D = 128, 64 for S and dP, about 40.
package struct HopperBackwardKernel: KernelSource {
  /// What the kernel is made for.
  package let specialization: HopperBackwardSpecialization

  /// The kernel of a specialization.
  package init(_ specialization: HopperBackwardSpecialization) { self.specialization = specialization }

  /// The entry point's name.
  package var name: String { specialization.name }

  /// The kernel, with the parameters of `HopperBackwardParameters`.
  package func kernel() throws(KernelError) -> Kernel {
    try Kernel.build(name, threadsPerBlock: HopperBackwardSpecialization.threads, blocksPerMultiprocessor: 1) { k in
      HopperBackwardBody(k, specialization).emit()
    }
  }
}
