package import Attention
internal import CUDADriver

/// A stream of somebody else's, as an engine has them: for tests of what happens beside the library's own.
package final class GPUStream: Sendable {
  private let stream: Stream
  private let gpu: GPU

  package init(on gpu: GPU) throws(AttentionError) {
    self.gpu = gpu
    stream = try gpu.reporting { () throws(CUDAError) in try Stream(gpu.context) }
  }

  /// For launches.
  package var handle: OpaquePointer? { stream.handle.pointer }

  /// Waits for all work put in so far.
  package func synchronize() throws(AttentionError) {
    try gpu.reporting { () throws(CUDAError) in
      try gpu.context.use { () throws(CUDAError) in try stream.synchronize() }
    }
  }
}
