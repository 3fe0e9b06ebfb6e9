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
}
