public import Attention
internal import CUDADriver

/// Memory of a GPU that this library allocated.
///
/// It is allocated, filled, copied and freed in the order of the library's own stream. Work in another stream knows
/// nothing of that: call `GPU.synchronize` before such work uses the buffer, and keep the buffer until that work is
/// done.
public final class GPUBuffer: Sendable {
  /// Where it is: a multiple of 256.
  public let address: UInt64
  /// Its size.
  public let byteCount: Int
  private let memory: DeviceMemory
  private let gpu: GPU

  /// - Throws: `AttentionError.deviceFailed` where there is not enough; it says how much there was; `.extent` for less
  ///   than 0 bytes.
  public init(byteCount: Int, on gpu: GPU) throws(AttentionError) {
    if byteCount < 0 { throw .extent(tensor: "a buffer", axis: "length", value: byteCount) }
    self.gpu = gpu
    self.byteCount = byteCount
    memory = try gpu.reporting { () throws(CUDAError) in
      try gpu.context.use { () throws(CUDAError) in
        try gpu.pool.allocate(byteCount: byteCount, in: gpu.stream.handle)
      }
    }
    address = memory.address
  }

  /// Copies host memory here, `offset` bytes from the start on, in the order of our stream. Ordinary memory may be
  /// changed as soon as this returns; memory that is pinned for the GPU must stay as it is until the stream is
  /// synchronized.
  ///
  /// - Throws: `AttentionError.unsupported` where it does not fit, `.deviceFailed`.
  public func copy(from source: UnsafeRawBufferPointer, at offset: Int = 0) throws(AttentionError) {
    if offset < 0 || offset > byteCount || source.count > byteCount - offset {
      throw .unsupported(
        "A copy of \(source.count) bytes to byte \(offset) does not fit a buffer of \(byteCount) bytes; make it shorter."
      )
    }
    try gpu.reporting { () throws(CUDAError) in
      try gpu.context.use { () throws(CUDAError) in try memory.copy(from: source, at: offset) }
    }
  }

  /// Copies bytes from one place to another that does not overlap it, in the order of our stream.
  package func move(byteCount: Int, from source: Int, to target: Int) throws(AttentionError) {
    try gpu.reporting { () throws(CUDAError) in
      try gpu.context.use { () throws(CUDAError) in try memory.move(byteCount: byteCount, from: source, to: target) }
    }
  }

  /// Sets all bytes, in the order of our stream.
  public func fill(_ byte: UInt8) throws(AttentionError) {
    try gpu.reporting { () throws(CUDAError) in
      try gpu.context.use { () throws(CUDAError) in try memory.fill(byte) }
    }
  }

  /// Copies to host memory, from the start on, and waits until it is there.
  /// - Throws: `AttentionError.unsupported` for more than there is, `.deviceFailed`.
  public func copy(to destination: UnsafeMutableRawBufferPointer) throws(AttentionError) {
    if destination.count > byteCount {
      throw .unsupported("A buffer of \(byteCount) bytes has no \(destination.count) to copy; ask for less.")
    }
    try gpu.reporting { () throws(CUDAError) in
      try gpu.context.use { () throws(CUDAError) in
        try memory.copy(to: destination)
        try gpu.stream.synchronize()
      }
    }
  }
}
