internal import Attention
package import CUDADriver
package import PTX
internal import Synchronization

/// The kernels of this process: what a kernel is made from leads to its text, which is written once, and the text to
/// what the driver made of it, once for each architecture, however many GPUs of it there are.
///
/// The driver keeps them in its own cache on disk for the next process.
package final class KernelCache: Sendable {
  /// Of the process.
  package static let shared = KernelCache()

  /// A `KernelSource`, which is sendable.
  private struct Key: Hashable, @unchecked Sendable { let source: AnyHashable }

  private let texts = Mutex<[Key: KernelText]>([:])

  /// An empty one, for tests.
  package init() {}

  /// The text of a kernel: written now, unless it has been before.
  package func text(of source: some KernelSource) throws(KernelError) -> KernelText {
    let key = Key(source: AnyHashable(source))
    if let text = texts.withLock({ $0[key] }) { return text }
    // Outside the lock, so that several threads write at once; of two that write the same, the first counts.
    let made = try KernelText(source.kernel())
    return texts.withLock { texts in
      let first = texts[key] ?? made
      texts[key] = first
      return first
    }
  }

  /// How many texts have been written.
  package var textCount: Int { texts.withLock { $0.count } }
  /// How many kernels the driver has compiled.
  package var compiledCount: Int { texts.withLock { $0.values.reduce(0) { $0 + $1.compiledCount } } }
}

/// A kernel as the driver takes it, and what it made of it on each architecture.
package final class KernelText: Sendable {
  /// PTX.
  package let text: String
  fileprivate let name: String
  fileprivate let version: PTXVersion
  /// By compute capability.
  private let loaded = Mutex<[Int: LoadedKernel]>([:])

  init(_ kernel: Kernel) throws(KernelError) {
    (text, name, version) = (try kernel.text(), kernel.name, kernel.requirement.version)
  }

  fileprivate var compiledCount: Int { loaded.withLock { $0.count } }

  fileprivate func loaded(on gpu: GPU) throws(CUDAError) -> LoadedKernel {
    let capability = gpu.device.capability
    if let kernel = loaded.withLock({ $0[capability] }) { return kernel }
    let made = LoadedKernel(try gpu.compile(text, version, entry: name))
    return loaded.withLock { loaded in
      let first = loaded[capability] ?? made
      loaded[capability] = first
      return first
    }
  }
}

/// A compiled kernel, and what it takes on each GPU where it is ready to be launched.
package final class LoadedKernel: Sendable {
  package let library: Library
  /// By the GPU's number.
  private let resources = Mutex<[Int: Library.Resources]>([:])

  fileprivate init(_ library: consuming Library) { self.library = library }

  /// What the driver's compiler made of it; nil on a GPU that it is not ready on.
  package func resources(on gpu: GPU) -> Library.Resources? { resources.withLock { $0[gpu.device.ordinal] } }

  fileprivate func prepare(sharedByteCount: Int, on gpu: GPU) throws(CUDAError) {
    try gpu.device.driver.duringCaptures { () throws(CUDAError) in
      // Also where the kernel is ready: for a launch with less, maybe.
      try library.allow(dynamicSharedByteCount: sharedByteCount, on: gpu.device)
      if resources(on: gpu) != nil { return }
      let made = try library.resources(on: gpu.device)
      resources.withLock { $0[gpu.device.ordinal] = made }
    }
  }
}

extension GPU {
  /// A kernel, ready to be launched: compiled and loaded now, unless it has been before.
  package func load(_ source: some KernelSource, sharedByteCount: Int) throws(CUDAError) -> LoadedKernel {
    let text: KernelText
    do throws(KernelError) { text = try KernelCache.shared.text(of: source) } catch {
      throw .rejectedPTX(kernel: source.name, log: "\(error)")
    }
    let kernel = try text.loaded(on: self)
    try kernel.prepare(sharedByteCount: sharedByteCount, on: self)
    return kernel
  }

  /// How many kernels have been compiled in this process.
  public var compiledKernelCount: Int { KernelCache.shared.compiledCount }

  /// Hands PTX to the driver's compiler.
  package func compile(_ text: String, _ version: PTXVersion, entry: String) throws(CUDAError) -> Library {
    // A call that is being captured may be the first of its kind.
    try device.driver.duringCaptures { () throws(CUDAError) in
      try context.use { () throws(CUDAError) in
        try Library(device.driver, ptx: text, version: "\(version)", kernel: entry)
      }
    }
  }
}
