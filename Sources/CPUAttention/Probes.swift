public import Attention
internal import CPUMicrokernels
internal import Synchronization

/// What this machine's arithmetic can do at most, measured on all threads.
public enum ArithmeticProbe {
  /// Multiply-adds on registers, in GFLOPS (2 per multiply-add); of bfloat16 pairs for `.bf16` where there are such.
  public static func gigaflops(
    _ type: ScalarType, threads: Int = WorkerTeam.processors, set: InstructionSet = .best
  ) -> Double {
    let isPaired = type == .bf16 && set.hasPairs
    @Sendable func measure(_ steps: Int64) -> Double {
      isPaired ? set.functions.pointee.probe_pairs(steps) : set.functions.pointee.probe_arithmetic(steps)
    }
    let threads = min(threads, WorkerTeam.processors)
    _ = measure(1_000_000)
    let done = Mutex(0.0)
    let seconds = elapsedSeconds {
      WorkerTeam.run(items: threads, threads: threads) { queue in
        while queue.next() != nil {
          let flops = measure(20_000_000)
          done.withLock { $0 += flops }
        }
      }
    }
    return done.withLock { $0 } / seconds / 1e9
  }
}

/// What this machine reads at most: a buffer that is read from end to end on all threads.
public final class ReadProbe: Sendable {
  // Written once, before anyone else sees it.
  private nonisolated(unsafe) let buffer: UnsafeMutablePointer<Float>
  private let count: Int
  private let threads: Int
  private let set: InstructionSet

  /// Allocates and touches the buffer.
  public init(byteCount: Int, threads: Int = WorkerTeam.processors, set: InstructionSet = .best) {
    count = max(byteCount / 4, 1)
    buffer = .allocate(capacity: count)
    buffer.initialize(repeating: 1, count: count)
    self.threads = threads
    self.set = set
  }

  deinit { buffer.deallocate() }

  /// Reads the buffer once; returns GB/s.
  public func gigabytesPerSecond() -> Double {
    let (count, set) = (count, set)
    // Pieces small enough to share out evenly, large enough for the prefetchers.
    let piece = 1 << 18
    let pieces = (count + piece - 1) / piece
    let sum = Mutex(Float(0))
    let seconds = elapsedSeconds {
      WorkerTeam.run(items: pieces, threads: threads) { queue in
        var total: Float = 0
        while let i = queue.next() {
          total += set.functions.pointee.probe_read(buffer + i * piece, min(piece, count - i * piece))
        }
        sum.withLock { $0 += total }
      }
    }
    return Double(count * 4) / seconds / 1e9
  }
}
