package import AttentionKernels
internal import CUDADriver
internal import PTX
internal import Synchronization

/// An NVIDIA GPU: its primary context, a stream and a pool of memory of ours, and the kernels compiled so far.
///
/// Kernels are compiled by the driver when a plan is prepared or first run, and kept for the process; the driver keeps
/// them in its own cache on disk for the next one.
public final class GPU: Sendable {
  let device: CUDADevice
  let context: PrimaryContext
  let stream: Stream
  let pool: MemoryPool
  package let limits: GPULimits
  private let kernels = Mutex<[KernelKey: LoadedKernel]>([:])
  let callCounters = CallCounters()
  /// What its context was lost by; the primary context of a process never comes back.
  private let fault = Mutex<CUDAError?>(nil)

  /// The GPUs in use, by their number.
  private static let opened = Mutex<[Int: GPU]>([:])

  /// A GPU of this machine, by the driver's order.
  /// - Throws: `AttentionError.deviceUnavailable` where there is none, it is older than Ampere, its context was lost by a fault, or
  ///   this process was forked from one that used a GPU.
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
    limits = GPULimits(
      name: device.name, target: Target(device.capability), multiprocessors: device.multiprocessors,
      sharedBytesPerBlock: device.sharedBytesPerBlock,
      sharedBytesPerMultiprocessor: device.sharedBytesPerMultiprocessor)
  }

  /// As NVIDIA names it.
  public var name: String { device.name }

  /// The kernel of a plan: loaded now, unless it has been before.
  func load(_ plan: some KernelPlan) throws(CUDAError) -> LoadedKernel {
    if let kernel = loaded(plan) { return kernel }
    // Outside the lock, so that several threads compile at once; of two that compile the same, the first counts.
    let kernel = try LoadedKernel(plan, on: self)
    return kernels.withLock { kernels in
      let first = kernels[plan.key] ?? kernel
      kernels[plan.key] = first
      return first
    }
  }

  /// The kernel of a plan, where it is loaded.
  func loaded(_ plan: some KernelPlan) -> LoadedKernel? { kernels.withLock { $0[plan.key] } }

  /// How many kernels have been compiled in this process.
  public var compiledKernelCount: Int { kernels.withLock { $0.count } }

  /// Waits for all work that was put into our stream; faults of kernels show here.
  public func synchronize() throws(AttentionError) {
    try reporting { () throws(CUDAError) in
      try context.use { () throws(CUDAError) in try stream.synchronize() }
    }
  }
}

/// What a kernel is made from, and kept by.
enum KernelKey: Hashable, Sendable {
  case forward(ForwardSpecialization)
  case decode(DecodeSpecialization)
  case combine(DecodeSpecialization)
  case preparation(PreparationKernel.Specialization)
  case partialResults(PartialResultsKernel)
}

/// A plan that a kernel belongs to.
protocol KernelPlan {
  var key: KernelKey { get }
  var kernelName: String { get }
  var sharedByteCount: Int { get }
  func kernel() throws(KernelError) -> Kernel
}

extension ForwardPlan: KernelPlan {
  var key: KernelKey { .forward(specialization) }
  var kernelName: String { specialization.name }
  var sharedByteCount: Int { launch.sharedByteCount }
}

extension DecodePlan: KernelPlan {
  var key: KernelKey { .decode(specialization) }
  var kernelName: String { specialization.name }
  var sharedByteCount: Int { launch.sharedByteCount }
}

/// The second launch of a decode plan.
struct CombinePlan: KernelPlan {
  let plan: DecodePlan
  var key: KernelKey { .combine(plan.specialization) }
  var kernelName: String { CombineKernel(plan.specialization).name }
  var sharedByteCount: Int { 0 }
  func kernel() throws(KernelError) -> Kernel { try CombineKernel(plan.specialization).kernel() }
}

/// The launch before a decode plan's.
struct PreparationPlan: KernelPlan {
  let preparation: PreparationKernel
  init(kernel: PreparationKernel) { preparation = kernel }
  var key: KernelKey { .preparation(preparation.specialization) }
  var kernelName: String { preparation.name }
  var sharedByteCount: Int { 0 }
  func kernel() throws(KernelError) -> Kernel { try preparation.kernel() }
}

/// A compiled kernel, and what the driver's compiler made of it.
final class LoadedKernel: Sendable {
  let library: Library
  let resources: Library.Resources

  init(_ plan: some KernelPlan, on gpu: GPU) throws(CUDAError) {
    let library = try gpu.compile(named: plan.kernelName) { () throws(KernelError) in try plan.kernel() }
    resources = try gpu.device.driver.duringCaptures { () throws(CUDAError) in
      try library.allow(dynamicSharedByteCount: plan.sharedByteCount, on: gpu.device)
      return try library.resources(on: gpu.device)
    }
    self.library = library
  }
}

extension GPU {
  /// Builds a kernel and hands it to the driver's compiler.
  func compile(named name: String, _ build: () throws(KernelError) -> Kernel) throws(CUDAError) -> Library {
    let (text, version, entry): (String, PTXVersion, String)
    do throws(KernelError) {
      let kernel = try build()
      (text, version, entry) = (try kernel.text(), kernel.requirement.version, kernel.name)
    } catch {
      throw .rejectedPTX(kernel: name, log: "\(error)")
    }
    // A call that is being captured may be the first of its kind.
    return try device.driver.duringCaptures { () throws(CUDAError) in
      try context.use { () throws(CUDAError) in
        try Library(device.driver, ptx: text, version: "\(version)", kernel: entry)
      }
    }
  }
}

extension GPU {
  /// What the driver could not do becomes a sentence about the GPU; a fault that cost its context is remembered.
  func reporting<Result: ~Copyable>(_ body: () throws(CUDAError) -> Result) throws(AttentionError) -> Result {
    do throws(CUDAError) {
      // Before any lock: a thread that is not here may have held it.
      if Fork.hasHappened { throw .forked }
      return try body()
    } catch {
      if case .faulted = error { fault.withLock { $0 = $0 ?? error } }
      throw .deviceFailed(device: "GPU", reason: error.description)
    }
  }
}
