public import Attention
package import CUDADriver
internal import Synchronization

/// An NVIDIA GPU: its primary context, a stream and a pool of memory of ours.
public final class GPU: Sendable {
  package let device: CUDADevice
  package let context: PrimaryContext
  /// Of all work that nobody puts into a stream of his own.
  package let stream: Stream
  let pool: MemoryPool
  let callMemory = CallMemory()
  /// What its context was lost by; the primary context of a process never comes back.
  private let fault = Mutex<CUDAError?>(nil)

  /// The GPUs in use, by their number.
  private static let opened = Mutex<[Int: GPU]>([:])

  /// A GPU of this machine, by the driver's order.
  /// - Throws: `AttentionError.deviceUnavailable` where there is none, it is older than Ampere, its context was lost by
  ///   a fault, or this process was forked from one that used a GPU.
  public static func device(_ ordinal: Int = 0) throws(AttentionError) -> GPU {
    do throws(CUDAError) {
      // Not even the lock: a thread that is not here may have held it.
      if Fork.hasHappened { throw .forked }
      let gpu = try opened.withLock { (gpus) throws(CUDAError) in
        if let gpu = gpus[ordinal] { return gpu }
        let driver = try CUDADriver.find()
        let gpu = try driver.duringCaptures { () throws(CUDAError) in try GPU(try driver.device(ordinal)) }
        gpus[ordinal] = gpu
        return gpu
      }
      if let fault = gpu.fault.withLock({ $0 }) { throw fault }
      return gpu
    } catch {
      throw .deviceUnavailable(device: "GPU", reason: error.description)
    }
  }

  private init(_ device: CUDADevice) throws(CUDAError) {
    if device.capability < 80 { throw .gpuTooOld(name: device.name, capability: device.capability, needed: 80) }
    self.device = device
    context = try PrimaryContext(device)
    stream = try Stream(context)
    pool = try MemoryPool(context)
  }

  /// As NVIDIA names it.
  public var name: String { device.name }

  /// Compute capability, major * 10 + minor.
  public var capability: Int { device.capability }

  /// Its number, as the driver counts.
  public var ordinal: Int { device.ordinal }

  /// Waits for all work that was put into our stream; faults of kernels show here.
  public func synchronize() throws(AttentionError) {
    try reporting { () throws(CUDAError) in
      try context.use { () throws(CUDAError) in try stream.synchronize() }
    }
  }

  /// What the driver could not do becomes a sentence about the GPU; a fault that cost its context is remembered.
  package func reporting<Result: ~Copyable>(
    _ body: () throws(CUDAError) -> Result
  ) throws(AttentionError) -> Result {
    do throws(CUDAError) {
      // Before any lock: a thread that is not here may have held it.
      if Fork.hasHappened { throw .forked }
      return try body()
    } catch {
      if case .faulted = error { fault.withLock { $0 = $0 ?? error } }
      throw .deviceFailed(device: "GPU", kind: DeviceFailure(error.kind), reason: error.description)
    }
  }

  /// A stream that a caller names, or ours.
  package func handle(_ stream: OpaquePointer?) -> StreamHandle {
    stream.map { StreamHandle($0) } ?? self.stream.handle
  }
}

extension DeviceFailure {
  init(_ kind: CUDAError.Kind) {
    self =
      switch kind {
      case .outOfMemory: .outOfMemory
      case .lost: .lost
      case .unsupported: .unsupported
      case .other: .other
      }
  }
}
