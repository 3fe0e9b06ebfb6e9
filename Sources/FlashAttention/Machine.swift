internal import CPUAttention

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// What this machine offers, for people and for benchmarks.
public enum Machine {
  /// Processors that this process may use.
  public static var processors: Int { WorkerTeam.processors }

  /// Bytes of main memory.
  public static var memoryByteCount: Int { Int(sysconf(Int32(_SC_PHYS_PAGES))) * Int(sysconf(Int32(_SC_PAGESIZE))) }

  /// The vector instructions that the CPU path uses here, and what else it could use, best first.
  public static var instructionSets: [String] { InstructionSet.available.map(\.name) }

  /// The most that the CPU's multiply-adds of a type reach on registers, in GFLOPS; takes a fraction of a second.
  public static func measuredGigaflops(_ type: ScalarType = .f32, threads: Int? = nil) -> Double {
    ArithmeticProbe.gigaflops(type, threads: threads ?? processors)
  }
}

/// A buffer of a given size that the CPU reads from end to end: what no computation over as many bytes can beat.
/// Measure it in turns with what it is compared with; a shared machine's memory is not the same from second to second.
public final class MemoryProbe: Sendable {
  private let probe: ReadProbe

  /// Allocates the buffer and touches it once.
  public init(byteCount: Int, threads: Int? = nil) {
    probe = ReadProbe(byteCount: byteCount, threads: threads ?? Machine.processors)
  }

  /// Reads the buffer once, on all threads; returns GB/s.
  public func readGigabytesPerSecond() -> Double { probe.gigabytesPerSecond() }
}
