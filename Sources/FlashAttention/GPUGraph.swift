internal import CUDADriver

/// Calls that were captured, ready to run again and again at the cost of one launch.
///
///     let graph = try GPUGraph(on: gpu) { () throws(AttentionError) in try plan.launch(tensors, workspace: w.address) }
///     try graph.launch()
///
/// The tensors stay where they were; what is in them, lengths too, is read when the graph runs.
public final class GPUGraph: Sendable {
  private let graph: Graph
  private let gpu: GPU

  /// Captures what `body` puts into the library's own stream; prepare plans before.
  /// - Throws: what `body` throws, or `AttentionError.deviceFailed`.
  public init(on gpu: GPU, _ body: () throws(AttentionError) -> Void) throws(AttentionError) {
    self.gpu = gpu
    var failure: AttentionError?
    do throws(AttentionError) {
      graph = try gpu.reporting { () throws(CUDAError) in
        try gpu.context.use { () throws(CUDAError) in
          try gpu.stream.capture { () throws(CUDAError) in
            do throws(AttentionError) { try body() } catch { failure = error }
          }
        }
      }
    } catch {
      throw failure ?? error
    }
    if let failure { throw failure }
  }

  /// Puts the calls into a stream; nil for the library's own.
  public func launch(stream: OpaquePointer? = nil) throws(AttentionError) {
    try gpu.reporting { () throws(CUDAError) in
      try gpu.context.use { () throws(CUDAError) in
        try graph.launch(in: stream.map { StreamHandle($0) } ?? gpu.stream.handle)
      }
    }
  }
}
