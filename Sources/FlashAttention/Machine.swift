public import Attention
internal import CPUAttention

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// What this machine offers.
public enum Machine {
  /// Processors that this process may use.
  public static var processors: Int { WorkerTeam.processors }

  /// Bytes of main memory.
  public static var memoryByteCount: Int { Int(sysconf(Int32(_SC_PHYS_PAGES))) * Int(sysconf(Int32(_SC_PAGESIZE))) }

  /// The vector instructions that the CPU path uses here, and what else it could use, best first.
  public static var instructionSets: [String] { InstructionSet.available.map(\.name) }

  /// Those that plans use.
  public static var instructionSet: String { InstructionSet.best.name }

  /// Has plans of this process that are made from now on use other vector instructions on the CPU, to measure them.
  ///
  /// - Parameter option: "amx", "avx512bf16", "avx512", "avx2", "neonbf16", "neon" or "portable"; nil for the best.
  /// - Throws: `AttentionError.unsupported` where this machine cannot run them.
  public static func chooseInstructionSet(_ option: String?) throws(AttentionError) {
    try InstructionSet.choose(option)
  }

  /// Has calls of this process compute on the CPU by threads of the caller's from now on, where more than one is worth it: a pool whose
  /// threads wait awake has them at work at once, where the library's own (Dispatch's) have to be woken.
  ///
  /// - Parameter parallel: how they are called; nil for the library's own. What it leaves undone, the calling thread does.
  public static func computeOnThreads(of parallel: ParallelCalls?) { WorkerTeam.use(parallel) }
}
