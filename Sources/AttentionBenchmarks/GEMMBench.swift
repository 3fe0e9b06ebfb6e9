package import Attention
internal import AttentionVerification
internal import CUDADriver
package import ExampleKernels
package import GPURuntime
internal import PTX

/// Times products of matrices by Hopper's instructions, on random normal numbers.
package struct GEMMBench {
  package let rows, columns, depth: Int
  private let gpu: GPU
  private let probe: GPUProbe
  private let a, b, c: GPUBuffer

  /// - Throws: `AttentionError` where there is no memory for it.
  package init(rows: Int, columns: Int, depth: Int, type: ScalarType, on gpu: GPU) throws(AttentionError) {
    (self.rows, self.columns, self.depth, self.gpu) = (rows, columns, depth, gpu)
    probe = try GPUProbe(gpu)
    var random = RandomSource(seed: 1)
    // As many numbers as one draws in no time, again and again.
    let numbers = try Tensor.normal(
      TensorShape(batch: 1, heads: 1, length: 1 << 10, dimension: 1 << 10), type, from: &random)
    func filled(_ count: Int) throws(AttentionError) -> GPUBuffer {
      let buffer = try GPUBuffer(byteCount: count * 2, on: gpu)
      for place in stride(from: 0, to: buffer.byteCount, by: 2 << 20) {
        try numbers.withBytes { (bytes) throws(AttentionError) in
          try buffer.copy(
            from: UnsafeRawBufferPointer(rebasing: bytes.prefix(buffer.byteCount - place)), at: place)
        }
      }
      return buffer
    }
    (a, b) = (try filled(rows * depth), try filled(columns * depth))
    c = try GPUBuffer(byteCount: rows * columns * 2, on: gpu)
  }

  /// TFLOPS of each run, each after the cache was evicted, and what the driver made of the kernel.
  package func teraflops(
    _ kernel: HopperGEMMKernel, iterations: Int
  ) throws(AttentionError) -> (each: [Double], compiled: String) {
    let library = try gpu.reporting { () throws(CUDAError) in
      let built: Kernel
      do throws(KernelError) { built = try kernel.kernel() } catch {
        throw .rejectedPTX(kernel: "\(kernel)", log: "\(error)")
      }
      let library = try gpu.compile(built)
      try library.allow(dynamicSharedByteCount: kernel.sharedByteCount, on: gpu.device)
      return library
    }
    let launch = kernel.launch(
      rows: rows, columns: columns, depth: depth, a: a.address, b: b.address, c: c.address,
      blocks: gpu.device.multiprocessors)
    let shape = LaunchShape(
      blocks: launch.blocks, threads: kernel.threads, sharedByteCount: kernel.sharedByteCount)
    let flops = 2 * Double(rows) * Double(columns) * Double(depth)
    let compiled = try gpu.reporting { () throws(CUDAError) in
      library.summary(try library.resources(on: gpu.device))
    }
    let seconds = try probe.seconds(iterations: iterations) { () throws(AttentionError) in
      try gpu.reporting { () throws(CUDAError) in
        try gpu.context.use { () throws(CUDAError) in
          try library.launch(shape, arguments: launch.arguments, in: gpu.stream.handle)
        }
      }
    }
    return (seconds.map { flops / $0 / 1e12 }, compiled)
  }
}
