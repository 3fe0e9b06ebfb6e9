package import CUDADriver
package import PTX

extension Library {
  /// Puts a launch into a stream, with arguments one by one: for probes and tests.
  package func launch(
    _ shape: LaunchShape, arguments: [Kernel.Argument], in stream: StreamHandle
  ) throws(CUDAError) {
    try withUnsafeTemporaryAllocation(byteCount: 8 * max(arguments.count, 1), alignment: 8) {
      (buffer) throws(CUDAError) in
      var offset = 0
      func put<T: BitwiseCopyable>(_ value: T) {
        offset = (offset + MemoryLayout<T>.size - 1) & ~(MemoryLayout<T>.size - 1)
        buffer.storeBytes(of: value, toByteOffset: offset, as: T.self)
        offset += MemoryLayout<T>.size
      }
      for argument in arguments {
        switch argument {
        case .u32(let value): put(value)
        case .s32(let value): put(value)
        case .u64(let value), .pointer(let value): put(value)
        case .f32(let value): put(value)
        }
      }
      try launch(shape, arguments: UnsafeMutableRawBufferPointer(rebasing: buffer[..<offset]), in: stream)
    }
  }
}
