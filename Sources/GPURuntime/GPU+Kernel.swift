package import Attention
package import CUDADriver
package import PTX

extension GPU {
  /// Compiles any kernel, runs one block of it on words, and returns the words that it wrote: for tests of the
  /// language.
  ///
  /// The kernel's parameters are the addresses of the input and of the output.
  package func run(_ kernel: Kernel, input: [UInt32], outputCount: Int) throws(AttentionError) -> [UInt32] {
    let source = try GPUBuffer(byteCount: input.count * 4, on: self)
    let result = try GPUBuffer(byteCount: outputCount * 4, on: self)
    try input.withUnsafeBufferPointer { (words) throws(AttentionError) in
      try source.copy(from: UnsafeRawBufferPointer(words))
    }
    try run(kernel, [.pointer(source.address), .pointer(result.address)], blocks: 1)
    var output = [UInt32](repeating: 0, count: outputCount)
    try output.withUnsafeMutableBufferPointer { (words) throws(AttentionError) in
      try result.copy(to: UnsafeMutableRawBufferPointer(words))
    }
    return output
  }

  /// Compiles any kernel, runs it, and waits for it.
  package func run(
    _ kernel: Kernel, _ arguments: [Kernel.Argument], blocks: Int, sharedByteCount: Int = 0
  ) throws(AttentionError) {
    try reporting { () throws(CUDAError) in
      let library = try compile(kernel)
      try library.allow(dynamicSharedByteCount: sharedByteCount, on: device)
      try context.use { () throws(CUDAError) in
        try library.launch(
          LaunchShape(blocks: blocks, threads: kernel.threadsPerBlock, sharedByteCount: sharedByteCount),
          arguments: arguments, in: stream.handle)
        try stream.synchronize()
      }
    }
  }
}

extension GPU {
  /// Hands a kernel to the driver's compiler, and keeps it nowhere.
  package func compile(_ kernel: Kernel) throws(CUDAError) -> Library {
    let text: String
    do throws(KernelError) { text = try kernel.text() } catch {
      throw .rejectedPTX(kernel: kernel.name, log: "\(error)")
    }
    return try compile(text, kernel.requirement.version, entry: kernel.name)
  }
}
