public import Attention
package import CUDADriver
internal import Synchronization

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// Memory for the counters of decode calls, zero whenever none runs: of each thread in each stream, and of each
/// captured graph.
///
/// Graphs have counters of their own because they may run beside each other and beside other calls; nothing zeroes them
/// between replays, since the kernels leave them zero. They are a few hundred bytes mostly, and stay: a graph that told
/// of its end (`cuGraphRetainUserObject`) would take 2 us longer each time it runs (H100, 2026-11-28,
/// Documentation/GPULog.md).
final class CallCounters: Sendable {
  private enum Owner: Hashable {
    case thread(UInt, stream: UInt)
    case capture(UInt64, stream: UInt)
  }

  /// The largest memory of each owner is the one that its next calls share; those before it stay where earlier calls
  /// have them.
  private let memories = Mutex<[Owner: [GPUBuffer]]>([:])

  /// The address of `byteCount` bytes for calls of this thread in a stream, or of the capture that is under way in it.
  func address(byteCount: Int, on gpu: GPU, stream: StreamHandle) throws(AttentionError) -> UInt64 {
    let driver = gpu.device.driver
    let capture = try gpu.reporting { () throws(CUDAError) in
      try gpu.context.use { () throws(CUDAError) in try driver.capture(in: stream) }
    }
    let number = UInt(bitPattern: stream.pointer)
    let owner = capture.map { Owner.capture($0, stream: number) } ?? .thread(UInt(pthread_self()), stream: number)
    if let known = memories.withLock({ $0[owner]?.last }), known.byteCount >= byteCount { return known.address }
    let memory = try gpu.zeroedBuffer(byteCount: max(byteCount, 1024))
    memories.withLock { $0[owner, default: []].append(memory) }
    return memory.address
  }
}

extension GPU {
  /// Memory for the counters of `AttentionPlan.launch`: zero, and zero again after every call.
  ///
  /// While `stream` is capturing a graph it belongs to that graph, all of whose calls in this stream share it;
  /// otherwise to the calling thread and the stream. It stays as long as the process runs. This may allocate and wait,
  /// during a capture too, and puts nothing into the graph.
  ///
  /// - Parameter stream: a `CUstream` or `cudaStream_t`.
  /// - Throws: `AttentionError.deviceFailed`.
  public func counters(byteCount: Int, stream: OpaquePointer) throws(AttentionError) -> UInt64 {
    try counters(byteCount: byteCount, stream: StreamHandle(stream))
  }

  /// The same for any stream.
  package func counters(byteCount: Int, stream: StreamHandle) throws(AttentionError) -> UInt64 {
    try callCounters.address(byteCount: byteCount, on: self, stream: stream)
  }

  /// Memory that is zero for every stream when this returns, whatever is being captured meanwhile.
  package func zeroedBuffer(byteCount: Int) throws(AttentionError) -> GPUBuffer {
    var failure: AttentionError?
    let memory = try reporting { () throws(CUDAError) in
      try device.driver.duringCaptures { () throws(CUDAError) -> GPUBuffer? in
        do throws(AttentionError) {
          let memory = try GPUBuffer(byteCount: byteCount, on: self)
          try memory.fill(0)
          try synchronize()
          return memory
        } catch {
          failure = error
          return nil
        }
      }
    }
    if let failure { throw failure }
    return memory!
  }
}
