internal import CUDADriver
package import PTX

extension GPU {
  /// Compiles any kernel, runs one block of it on words, and returns the words that it wrote: for tests of the language.
  ///
  /// The kernel's parameters are the addresses of the input and of the output.
  package func run(_ kernel: Kernel, input: [UInt32], outputCount: Int) throws(AttentionError) -> [UInt32] {
    let source = try GPUBuffer(byteCount: input.count * 4, on: self)
    let result = try GPUBuffer(byteCount: outputCount * 4, on: self)
    try input.withUnsafeBufferPointer { (words) throws(AttentionError) in
      try source.copy(from: UnsafeRawBufferPointer(words))
    }
    try reporting { () throws(CUDAError) in
      let library = try compile(named: kernel.name) { () throws(KernelError) in kernel }
      try context.use { () throws(CUDAError) in
        try library.launch(
          LaunchShape(blocks: 1, threads: kernel.threadsPerBlock),
          arguments: [.pointer(source.address), .pointer(result.address)], in: stream.handle)
        try stream.synchronize()
      }
    }
    var output = [UInt32](repeating: 0, count: outputCount)
    try output.withUnsafeMutableBufferPointer { (words) throws(AttentionError) in
      try result.copy(to: UnsafeMutableRawBufferPointer(words))
    }
    return output
  }
}
