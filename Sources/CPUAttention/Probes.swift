internal import CPUMicrokernels
internal import Synchronization

/// What this machine can do at most, measured by small loops on all threads.
public enum CPUProbe {
  /// Multiply-adds of f32 on registers, in GFLOPS (2 per multiply-add).
  public static func gigaflops(_ set: InstructionSet = .best, threads: Int = WorkerTeam.processors) -> Double {
    _ = set.functions.pointee.probe_arithmetic(1_000_000)
    let done = Mutex(0.0)
    let seconds = elapsedSeconds {
      WorkerTeam.run(items: threads, threads: threads) { queue in
        while queue.next() != nil {
          let flops = set.functions.pointee.probe_arithmetic(20_000_000)
          done.withLock { $0 += flops }
        }
      }
    }
    return done.withLock { $0 } / seconds / 1e9
  }

  /// Reading a buffer of the given size from end to end, in GB/s: the median of `repeats`.
  public static func readGigabytesPerSecond(
    byteCount: Int, threads: Int = WorkerTeam.processors, repeats: Int = 7, set: InstructionSet = .best
  ) -> Double {
    let count = max(byteCount / 4, 1)
    let buffer = UnsafeMutablePointer<Float>.allocate(capacity: count)
    buffer.initialize(repeating: 1, count: count)
    defer { buffer.deallocate() }
    nonisolated(unsafe) let source = buffer
    // Pieces small enough to share out evenly, large enough for the prefetchers.
    let piece = 1 << 18
    let pieces = (count + piece - 1) / piece
    let sum = Mutex(Float(0))
    let times = (0..<repeats).map { _ in
      elapsedSeconds {
        WorkerTeam.run(items: pieces, threads: threads) { queue in
          var total: Float = 0
          while let i = queue.next() {
            total += set.functions.pointee.probe_read(source + i * piece, min(piece, count - i * piece))
          }
          sum.withLock { $0 += total }
        }
      }
    }
    return Double(count * 4) / times.sorted()[repeats / 2] / 1e9
  }
}

/// Wall-clock seconds that `body` takes.
public func elapsedSeconds(_ body: () -> Void) -> Double {
  let duration = ContinuousClock().measure(body)
  return Double(duration.components.seconds) + Double(duration.components.attoseconds) * 1e-18
}
