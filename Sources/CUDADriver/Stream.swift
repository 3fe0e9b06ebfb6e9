/// A stream that belongs to somebody: ours, or an engine's own.
package struct StreamHandle: @unchecked Sendable {
  package let pointer: Handle?

  /// A `CUstream` or `cudaStream_t` from elsewhere; nil is the default stream.
  package init(_ pointer: OpaquePointer?) { self.pointer = pointer }
}

/// Work that the GPU does in order. Its context must be current where it is used.
package struct Stream: ~Copyable, Sendable {
  private let context: CurrentContext
  private var functions: DriverFunctions { context.functions }
  /// For launches and copies.
  package let handle: StreamHandle

  /// A stream that does not wait for the default stream.
  package init(_ context: borrowing PrimaryContext) throws(CUDAError) {
    let current = context.current
    self.context = current
    handle = try current.use { () throws(CUDAError) in
      var stream: Handle?
      try current.functions.check(current.functions.createStream(&stream, 1), "cuStreamCreate")
      return StreamHandle(stream)
    }
  }

  deinit { context.giveBack { _ = $0.destroyStream(handle.pointer) } }

  /// Waits for all work put in so far; faults of kernels show here.
  package func synchronize() throws(CUDAError) {
    try functions.check(functions.synchronizeStream(handle.pointer), "cuStreamSynchronize")
  }

  /// Keeps what `body` puts into this stream as a graph instead of running it; nil where that is nothing.
  package func capture(_ body: () throws(CUDAError) -> Void) throws(CUDAError) -> Graph? {
    // CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    try functions.check(functions.beginCapture(handle.pointer, 1), "cuStreamBeginCapture")
    var failure: CUDAError?
    do throws(CUDAError) { try body() } catch { failure = error }
    var graph: Handle?
    let ended = functions.endCapture(handle.pointer, &graph)
    defer { _ = functions.destroyGraph(graph) }
    if let failure { throw failure }
    try functions.check(ended, "cuStreamEndCapture")
    var nodes = 0
    try functions.check(functions.getGraphNodes(graph, nil, &nodes), "cuGraphGetNodes")
    if nodes == 0 { return nil }
    return try Graph(context, graph)
  }
}

extension CUDADriver {
  /// Runs what a capture would otherwise forbid: loading, allocating and waiting, none of which goes into the graph.
  ///
  /// Source: CUDA Driver API, `cuThreadExchangeStreamCaptureMode`.
  package func duringCaptures<Result: ~Copyable>(
    _ body: () throws(CUDAError) -> Result
  ) throws(CUDAError) -> Result {
    // CU_STREAM_CAPTURE_MODE_RELAXED
    var mode: Int32 = 2
    try functions.check(functions.exchangeCaptureMode(&mode), "cuThreadExchangeStreamCaptureMode")
    defer { _ = functions.exchangeCaptureMode(&mode) }
    return try body()
  }

  /// The number of the capture that is under way in a stream, which no other one of the process has; nil where there is
  /// none. The stream's context must be current.
  package func capture(in stream: StreamHandle) throws(CUDAError) -> UInt64? {
    var (status, number) = (Int32(0), UInt64(0))
    try functions.check(
      functions.getCaptureInfo(stream.pointer, &status, &number, nil, nil, nil), "cuStreamGetCaptureInfo")
    return status == 0 ? nil : number
  }

  /// The number of a stream, which no other one of the process ever has, as handles may. Its context must be current. While
  /// it captures, the driver (580) refuses to say, and ends the capture.
  package func number(of stream: StreamHandle) throws(CUDAError) -> UInt64 {
    var number = UInt64(0)
    try functions.check(functions.getStreamID(stream.pointer, &number), "cuStreamGetId")
    return number
  }
}

/// Captured work, ready to run again and again at the cost of one launch.
package struct Graph: ~Copyable, Sendable {
  private let context: CurrentContext
  private var functions: DriverFunctions { context.functions }
  private let executable: UncheckedHandle

  init(_ context: CurrentContext, _ graph: Handle?) throws(CUDAError) {
    self.context = context
    let functions = context.functions
    var executable: Handle?
    try functions.check(functions.instantiateGraph(&executable, graph, 0), "cuGraphInstantiate")
    self.executable = UncheckedHandle(executable)
  }

  deinit { context.giveBack { _ = $0.destroyExecutableGraph(executable.pointer) } }

  /// Puts the work into a stream.
  package func launch(in stream: StreamHandle) throws(CUDAError) {
    try functions.check(functions.launchGraph(executable.pointer, stream.pointer), "cuGraphLaunch")
  }
}

/// A moment in a stream.
package struct Event: ~Copyable, Sendable {
  private let context: CurrentContext
  private var functions: DriverFunctions { context.functions }
  private let handle: UncheckedHandle

  /// An event that keeps time.
  package init(_ context: borrowing PrimaryContext) throws(CUDAError) {
    let current = context.current
    self.context = current
    handle = try current.use { () throws(CUDAError) in
      var event: Handle?
      try current.functions.check(current.functions.createEvent(&event, 0), "cuEventCreate")
      return UncheckedHandle(event)
    }
  }

  deinit { context.giveBack { _ = $0.destroyEvent(handle.pointer) } }

  /// Happens when the stream has done all work before it.
  package func record(in stream: StreamHandle) throws(CUDAError) {
    try functions.check(functions.recordEvent(handle.pointer, stream.pointer), "cuEventRecord")
  }

  /// Waits until it has happened.
  package func synchronize() throws(CUDAError) {
    try functions.check(functions.synchronizeEvent(handle.pointer), "cuEventSynchronize")
  }

  /// Seconds since an earlier event; both must have happened.
  package func seconds(since start: borrowing Event) throws(CUDAError) -> Double {
    var milliseconds: Float = 0
    let status = functions.getElapsedTime(&milliseconds, start.handle.pointer, handle.pointer)
    try functions.check(status, "cuEventElapsedTime")
    return Double(milliseconds) / 1000
  }
}
