package import Attention
internal import CPUAttention
package import FlashAttention

extension Machine {
  /// The most that the CPU's multiply-adds of a type reach on registers, in GFLOPS; takes a fraction of a second.
  package static func measuredGigaflops(_ type: ScalarType = .f32, threads: Int? = nil) -> Double {
    ArithmeticProbe.gigaflops(type, threads: threads ?? processors)
  }
}

/// A buffer of a given size that the CPU reads from end to end: what no computation over as many bytes can beat.
/// Measure it in turns with what it is compared with; a shared machine's memory is not the same from second to second.
package final class MemoryProbe: Sendable {
  private let probe: ReadProbe

  /// Allocates the buffer and touches it once.
  package init(byteCount: Int, threads: Int? = nil) {
    probe = ReadProbe(byteCount: byteCount, threads: threads ?? Machine.processors)
  }

  /// Reads the buffer once, on all threads; returns GB/s.
  package func readGigabytesPerSecond() -> Double { probe.gigabytesPerSecond() }
}
