package import Attention
internal import CUDADriver
package import GPURuntime
internal import PTX

/// Measures what a GPU can do at most, with kernels that do one thing only, and times work on it: medians of events,
/// each run after the L2 cache was filled with something else by ordinary reading (writing would leave lines that the
/// timed work pays for).
package final class GPUProbe: Sendable {
  private let gpu: GPU
  private let reader, evictor: Library
  private let empty: Library
  private let buffer: GPUBuffer
  private let word: GPUBuffer
  private let readSteps: Int

  /// - Parameter byteCount: what `readGigabytesPerSecond` reads; the cache is evicted by 512 MB of it.
  package init(_ gpu: GPU, byteCount: Int = 2 << 30) throws(AttentionError) {
    self.gpu = gpu
    let step = ReadProbeKernel.stepByteCount(blocks: Self.readBlocks(gpu))
    readSteps = max(1, byteCount / step)
    buffer = try GPUBuffer(byteCount: readSteps * step, on: gpu)
    word = try GPUBuffer(byteCount: 4, on: gpu)
    reader = try gpu.reporting { () throws(CUDAError) in
      try gpu.compile(Self.built { () throws(KernelError) in try ReadProbeKernel.kernel() })
    }
    evictor = try gpu.reporting { () throws(CUDAError) in
      try gpu.compile(Self.built { () throws(KernelError) in try ReadProbeKernel.kernel(evicts: true) })
    }
    empty = try gpu.reporting { () throws(CUDAError) in
      try gpu.compile(
        Self.built { () throws(KernelError) in try Kernel.build("empty", threadsPerBlock: 32) { _ in } })
    }
    try buffer.fill(0x5a)
  }

  /// A kernel of ours, whose mistakes would be the driver's to report.
  private static func built(_ build: () throws(KernelError) -> Kernel) throws(CUDAError) -> Kernel {
    do throws(KernelError) { return try build() } catch { throw .rejectedPTX(kernel: "a probe", log: "\(error)") }
  }

  private static func readBlocks(_ gpu: GPU) -> Int { gpu.device.multiprocessors * 4 }

  /// The most that reads from memory reach.
  package func readGigabytesPerSecond(iterations: Int = 9) throws(AttentionError) -> Double {
    let seconds = try gpu.reporting { () throws(CUDAError) in
      try time(iterations: iterations) { () throws(CUDAError) in try read(buffer, steps: readSteps, by: reader) }
    }
    return Double(buffer.byteCount) / seconds.sorted()[iterations / 2] / 1e9
  }

  /// What shows that the cache is evicted between runs: seconds to read a quarter of what it holds, which was just
  /// read, and the same after the eviction.
  package func reading(iterations: Int = 21) throws(AttentionError) -> (again: Double, evicted: Double) {
    let blocks = gpu.device.multiprocessors
    let step = ReadProbeKernel.stepByteCount(blocks: blocks)
    let steps = max(1, min(gpu.device.cacheBytes / 4, buffer.byteCount) / step)
    let small = try GPUBuffer(byteCount: steps * step, on: gpu)
    try small.fill(0)
    return try gpu.reporting { () throws(CUDAError) in
      func seconds(warms: Bool) throws(CUDAError) -> Double {
        try time(iterations: iterations, warms: warms) { () throws(CUDAError) in
          try read(small, steps: steps, blocks: blocks, by: evictor)
        }.sorted()[iterations / 2]
      }
      return (try seconds(warms: true), try seconds(warms: false))
    }
  }

  /// The most that `mma.sync` reaches on registers.
  package func matrixTeraflops(_ type: ScalarType, iterations: Int = 9) throws(AttentionError) -> Double {
    let (blocks, steps) = (gpu.device.multiprocessors * 4, 2000)
    let seconds = try gpu.reporting { () throws(CUDAError) in
      let library = try gpu.compile(
        Self.built { () throws(KernelError) in try MatrixProbeKernel.kernel(type == .bf16 ? .bf16 : .f16) })
      return try time(iterations: iterations) { () throws(CUDAError) in
        try gpu.context.use { () throws(CUDAError) in
          try library.launch(
            LaunchShape(blocks: blocks, threads: MatrixProbeKernel.threads),
            arguments: [.pointer(word.address), .u32(UInt32(steps))], in: gpu.stream.handle)
        }
      }
    }
    return MatrixProbeKernel.flops(blocks: blocks, steps: steps) / seconds.sorted()[iterations / 2] / 1e12
  }

  /// The most that `wgmma` reaches with both operands in shared memory, on GPUs that have it.
  package func warpgroupTeraflops(iterations: Int = 9) throws(AttentionError) -> Double {
    let (kernel, blocks, turns) = (
      HopperProbeKernel.products(columns: 128, isFromRegisters: false), gpu.device.multiprocessors, 8000
    )
    let seconds = try gpu.reporting { () throws(CUDAError) in
      let library = try gpu.compile(Self.built { () throws(KernelError) in try kernel.kernel() })
      try library.allow(dynamicSharedByteCount: kernel.sharedByteCount, on: gpu.device)
      return try time(iterations: iterations) { () throws(CUDAError) in
        try gpu.context.use { () throws(CUDAError) in
          try library.launch(
            LaunchShape(blocks: blocks, threads: kernel.threads, sharedByteCount: kernel.sharedByteCount),
            arguments: [.pointer(word.address), .u32(UInt32(turns))], in: gpu.stream.handle)
        }
      }
    }
    return kernel.workATurn * Double(blocks * turns) / seconds.sorted()[iterations / 2] / 1e12
  }

  /// Seconds of a kernel that does nothing, in a graph: what any call costs that is timed like this.
  package func emptyKernelSeconds(iterations: Int = 21) throws(AttentionError) -> Double {
    let graph = try GPUGraph(on: gpu) { (stream) throws(AttentionError) in
      try gpu.reporting { () throws(CUDAError) in
        try empty.launch(LaunchShape(blocks: 1, threads: 32), arguments: [], in: StreamHandle(stream))
      }
    }
    return try seconds(iterations: iterations) { () throws(AttentionError) in try graph.launch() }
      .sorted()[iterations / 2]
  }

  /// Seconds of runs of what `body` puts into our stream, each after the cache was evicted.
  ///
  /// - Parameters:
  ///   - iterations: how many.
  ///   - warmUp: for how long the same is done before. A GPU's clocks follow its work within a tenth of a second, up from those of rest
  ///     and down from those of a first moment: by up to 10% either way.
  ///   - body: puts work into the stream.
  package func seconds(
    iterations: Int, warmUp: Duration = .zero, _ body: () throws(AttentionError) -> Void
  ) throws(AttentionError) -> [Double] {
    var failure: AttentionError?
    let seconds = try gpu.reporting { () throws(CUDAError) in
      try time(iterations: iterations, warmUp: warmUp) { () throws(CUDAError) in
        do throws(AttentionError) { try body() } catch { failure = error }
      }
    }
    if let failure { throw failure }
    return seconds
  }

  private func time(
    iterations: Int, warms: Bool = false, warmUp: Duration = .zero, _ body: () throws(CUDAError) -> Void
  ) throws(CUDAError) -> [Double] {
    let stream = gpu.stream.handle
    return try gpu.context.use { () throws(CUDAError) in
      let start = try Event(gpu.context)
      let end = try Event(gpu.context)
      try body()
      let begin = ContinuousClock.now
      while ContinuousClock.now - begin < warmUp {
        try read(buffer, steps: evictSteps, by: evictor)
        try body()
        try end.record(in: stream)
        try end.synchronize()
      }
      var seconds: [Double] = []
      for _ in 0..<iterations {
        try read(buffer, steps: evictSteps, by: evictor)
        if warms { try body() }
        try start.record(in: stream)
        try body()
        try end.record(in: stream)
        try end.synchronize()
        seconds.append(try end.seconds(since: start))
      }
      return seconds
    }
  }

  private var evictSteps: Int { max(1, min(readSteps, readSteps * (512 << 20) / buffer.byteCount)) }

  private func read(
    _ buffer: GPUBuffer, steps: Int, blocks: Int? = nil, by kernel: borrowing Library
  ) throws(CUDAError) {
    try gpu.context.use { () throws(CUDAError) in
      try kernel.launch(
        LaunchShape(blocks: blocks ?? Self.readBlocks(gpu), threads: ReadProbeKernel.threads),
        arguments: [.pointer(buffer.address), .pointer(word.address), .u32(UInt32(steps))], in: gpu.stream.handle)
    }
  }
}
