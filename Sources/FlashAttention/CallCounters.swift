internal import CUDADriver
internal import Synchronization

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// Memory for the counters of decode calls, zero whenever none runs: of each thread in each stream, and of each captured graph.
///
/// Graphs have counters of their own because they may run beside each other and beside other calls; nothing zeroes them between
/// replays, since the kernels leave them zero. What a graph had is used again when it is gone.
final class CallCounters: Sendable {
  private enum Owner: Hashable {
    case thread(UInt, stream: UInt)
    case capture(UInt64, stream: UInt)
  }

  private struct Memories {
    var owned: [Owner: GPUBuffer] = [:]
    var free: [GPUBuffer] = []
  }

  private let memories = Mutex(Memories())

  /// What a graph holds as long as it can run.
  private final class Lease: Sendable {
    let counters: CallCounters
    let owner: Owner
    let memory: GPUBuffer
    init(_ counters: CallCounters, _ owner: Owner, _ memory: GPUBuffer) {
      (self.counters, self.owner, self.memory) = (counters, owner, memory)
    }
  }

  /// The address of `byteCount` bytes for calls of this thread in a stream, or of the capture that is under way in it.
  func address(byteCount: Int, on gpu: GPU, stream: OpaquePointer) throws(AttentionError) -> UInt64 {
    let driver = gpu.device.driver
    let capture = try reportingDeviceErrors { () throws(CUDAError) in
      try gpu.context.use { () throws(CUDAError) in try driver.capture(in: StreamHandle(stream)) }
    }
    let number = UInt(bitPattern: stream)
    let owner =
      capture.map { Owner.capture($0.number, stream: number) } ?? .thread(UInt(pthread_self()), stream: number)
    if let known = memories.withLock({ $0.owned[owner] }), known.byteCount >= byteCount { return known.address }
    let memory = try zeroed(byteCount: byteCount, on: gpu)
    // Calls that were put in before, with fewer counters, go on with theirs: those of a graph stay until it goes.
    memories.withLock { $0.owned[owner] = memory }
    if let capture {
      let lease = Unmanaged.passRetained(Lease(self, owner, memory))
      try reportingDeviceErrors { () throws(CUDAError) in
        try driver.whenGone(capture, lease.toOpaque()) { pointer in
          let lease = Unmanaged<Lease>.fromOpaque(pointer!).takeRetainedValue()
          lease.counters.takeBack(lease)
        }
      }
    }
    return memory.address
  }

  /// Memory that is zero when this returns, whatever is being captured meanwhile.
  private func zeroed(byteCount: Int, on gpu: GPU) throws(AttentionError) -> GPUBuffer {
    let used = memories.withLock { memories in
      memories.free.firstIndex { $0.byteCount >= byteCount }.map { memories.free.remove(at: $0) }
    }
    var failure: AttentionError?
    let memory = try reportingDeviceErrors { () throws(CUDAError) in
      try gpu.device.driver.duringCaptures { () throws(CUDAError) -> GPUBuffer? in
        do throws(AttentionError) {
          let memory = if let used { used } else { try GPUBuffer(byteCount: max(byteCount, 16), on: gpu) }
          try memory.fill(0)
          try gpu.synchronize()
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

  private func takeBack(_ lease: Lease) {
    memories.withLock { memories in
      memories.free.append(lease.memory)
      if memories.owned[lease.owner] === lease.memory { memories.owned[lease.owner] = nil }
    }
  }
}

extension GPU {
  /// Memory for the counters of `CachedAttentionPlan.launch`: zero, and zero again after every call.
  ///
  /// While `stream` is capturing a graph it belongs to that graph, all of whose calls in this stream share it, and goes with it;
  /// otherwise it belongs to the calling thread and the stream. This may allocate and wait, during a capture too, and puts nothing
  /// into the graph.
  ///
  /// - Parameter stream: a `CUstream` or `cudaStream_t`.
  /// - Throws: `AttentionError.deviceFailed`.
  public func counters(byteCount: Int, stream: OpaquePointer) throws(AttentionError) -> UInt64 {
    try callCounters.address(byteCount: byteCount, on: self, stream: stream)
  }
}
