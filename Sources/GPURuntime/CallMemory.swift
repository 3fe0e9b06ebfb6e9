public import Attention
package import CUDADriver
internal import Synchronization

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// Memory for the counters of calls, zero whenever none runs: of each thread in each stream, and of each captured graph; and, apart
/// from it, workspaces of calls that bring none.
///
/// Graphs have counters of their own because they may run beside each other and beside other calls; nothing zeroes them
/// between replays, since the kernels leave them zero. They are a few hundred bytes mostly, and stay: a graph that told
/// of its end (`cuGraphRetainUserObject`) would take 2 us longer each time it runs (H100, 2026-11-28,
/// Documentation/GPULog.md).
final class CallMemory: Sendable {
  private enum Owner: Hashable {
    case thread(UInt, stream: UInt64)
    case capture(UInt64, stream: UInt)
  }

  private struct State {
    /// The largest memory of each owner is the one that its next calls share; those before it stay where earlier calls
    /// have them.
    var counters: [Owner: [GPUBuffer]] = [:]
    /// The same of workspaces, whose counters are in their beginning and which hold anything behind.
    var workspaces: [Owner: [GPUBuffer]] = [:]
    /// Workspaces without counters, which hold anything.
    var scratch: [Owner: [GPUBuffer]] = [:]
    /// Where each owner's counter of draws is, and what of the last room is left.
    var draws: [Owner: UInt64] = [:]
    var rooms: [GPUBuffer] = []
    var left = 0
  }

  private let state = Mutex(State())
  /// Bytes between counters of draws, so that owners do not wait for one another, and how many a room has.
  private static let (distance, ofRoom) = (128, 512)

  /// The address of `byteCount` bytes for calls of this thread in a stream, or of the capture that is under way in it.
  func counters(byteCount: Int, on gpu: GPU, stream: StreamHandle) throws(AttentionError) -> UInt64 {
    try address(\.counters, byteCount: max(byteCount, 1024), on: gpu, stream)
  }

  /// The same of a workspace. Its size is a power of two, so that few are outgrown.
  func workspace(byteCount: Int, on gpu: GPU, stream: StreamHandle) throws(AttentionError) -> UInt64 {
    try address(\.workspaces, byteCount: Self.rounded(byteCount), on: gpu, stream)
  }

  /// The same of a workspace without counters.
  func scratch(byteCount: Int, on gpu: GPU, stream: StreamHandle) throws(AttentionError) -> UInt64 {
    try address(\.scratch, byteCount: Self.rounded(byteCount), on: gpu, stream)
  }

  private static func rounded(_ byteCount: Int) -> Int {
    var size = 1 << 20
    while size < byteCount { size *= 2 }
    return size
  }

  private func address(
    _ kind: any WritableKeyPath<State, [Owner: [GPUBuffer]]> & Sendable, byteCount: Int, on gpu: GPU,
    _ stream: StreamHandle
  ) throws(AttentionError) -> UInt64 {
    let owner = try owner(on: gpu, stream)
    if let known = state.withLock({ $0[keyPath: kind][owner]?.last }), known.byteCount >= byteCount {
      return known.address
    }
    let memory = try gpu.zeroedBuffer(byteCount: byteCount)
    state.withLock { $0[keyPath: kind][owner, default: []].append(memory) }
    return memory.address
  }

  /// The address of one counter, from a room that serves many owners: only the first of 512 allocates and waits, unless
  /// `prepareDraws` has.
  func drawCounter(on gpu: GPU, stream: StreamHandle) throws(AttentionError) -> UInt64 {
    let owner = try owner(on: gpu, stream)
    while true {
      let address = state.withLock { state -> UInt64? in
        if let known = state.draws[owner] { return known }
        guard state.left > 0, let room = state.rooms.last else { return nil }
        state.left -= 1
        let address = room.address + UInt64(state.left * Self.distance)
        state.draws[owner] = address
        return address
      }
      if let address { return address }
      try prepareDraws(on: gpu)
    }
  }

  /// Makes room for counters of draws, unless there is some.
  func prepareDraws(on gpu: GPU) throws(AttentionError) {
    if state.withLock({ $0.left > 0 }) { return }
    let room = try gpu.zeroedBuffer(byteCount: Self.ofRoom * Self.distance)
    state.withLock { state in
      // Another thread may have been faster; what it left over is little.
      state.rooms.append(room)
      state.left = Self.ofRoom
    }
  }

  private func owner(on gpu: GPU, _ stream: StreamHandle) throws(AttentionError) -> Owner {
    let driver = gpu.device.driver
    return try gpu.reporting { () throws(CUDAError) in
      try gpu.context.use { () throws(CUDAError) in
        // A stream that captures tells no number.
        if let capture = try driver.capture(in: stream) {
          return .capture(capture, stream: UInt(bitPattern: stream.pointer))
        }
        return .thread(UInt(pthread_self()), stream: try driver.number(of: stream))
      }
    }
  }
}

extension GPU {
  /// Memory for the counters of `AttentionPlan.launch`: zero, and zero again after every call.
  ///
  /// While `stream` is capturing a graph it belongs to that graph, all of whose calls in this stream share it;
  /// otherwise to the calling thread and the stream. It stays as long as the process runs. This may allocate and wait,
  /// during a capture too, and puts nothing into the graph.
  ///
  /// - Parameters:
  ///   - byteCount: how many bytes at least.
  ///   - stream: a `CUstream` or `cudaStream_t`.
  /// - Throws: `AttentionError.deviceFailed`.
  public func counters(byteCount: Int, stream: OpaquePointer) throws(AttentionError) -> UInt64 {
    try callMemory.counters(byteCount: byteCount, on: self, stream: StreamHandle(stream))
  }

  /// A workspace for calls that bring none, whose counters are in its beginning, of the same owners.
  package func workspace(byteCount: Int, stream: StreamHandle) throws(AttentionError) -> UInt64 {
    try callMemory.workspace(byteCount: byteCount, on: self, stream: stream)
  }

  /// A workspace without counters, which may hold anything, apart from the one above.
  package func scratch(byteCount: Int, stream: StreamHandle) throws(AttentionError) -> UInt64 {
    try callMemory.scratch(byteCount: byteCount, on: self, stream: stream)
  }

  /// A counter of 32 bits for calls that hand out their work by one, of the same owners.
  package func drawCounter(stream: StreamHandle) throws(AttentionError) -> UInt64 {
    try callMemory.drawCounter(on: self, stream: stream)
  }

  /// Makes room for these, so that calls need not.
  package func prepareDrawCounters() throws(AttentionError) { try callMemory.prepareDraws(on: self) }

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
