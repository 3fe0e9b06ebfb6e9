public import Attention
internal import CUDADriver

/// Calls that were captured, ready to run again and again at the cost of one launch.
///
///     let graph = try GPUGraph(on: gpu) { (stream) throws(AttentionError) in
///       try plan.launch(tensors, workspace: w.address, stream: stream)
///     }
///     try graph.launch()
///
/// The tensors stay where they were; what is in them, lengths too, is read when the graph runs.
public final class GPUGraph: Sendable {
  private let graph: Graph
  private let gpu: GPU

  /// Captures what `body` puts into the stream that it is given, a stream of the capture's own; prepare plans before.
  /// - Throws: what `body` throws; `AttentionError.unsupported` where it puts nothing into the stream; `.deviceFailed`.
  public init(
    on gpu: GPU, _ body: (_ stream: OpaquePointer) throws(AttentionError) -> Void
  ) throws(AttentionError) {
    self.gpu = gpu
    var failure: AttentionError?
    let captured: Graph?
    do throws(AttentionError) {
      captured = try gpu.reporting { () throws(CUDAError) -> Graph? in
        let stream = try Stream(gpu.context)
        return try gpu.context.use { () throws(CUDAError) -> Graph? in
          try stream.capture { () throws(CUDAError) in
            // A stream that was made has a handle.
            do throws(AttentionError) { try body(stream.handle.pointer!) } catch { failure = error }
          }
        }
      }
    } catch {
      throw failure ?? error
    }
    if let failure { throw failure }
    guard let captured else {
      throw .unsupported("Nothing was captured; pass the stream that the closure is given to each launch in it.")
    }
    graph = captured
  }

  /// Puts the calls into a stream; nil for the library's own.
  public func launch(stream: OpaquePointer? = nil) throws(AttentionError) {
    try gpu.reporting { () throws(CUDAError) in
      try gpu.context.use { () throws(CUDAError) in
        try graph.launch(in: gpu.handle(stream))
      }
    }
  }
}
