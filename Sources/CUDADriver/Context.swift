internal import Synchronization

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// The primary context of a GPU, retained: the one that PyTorch and the CUDA runtime use too, so that we live beside
/// them.
package struct PrimaryContext: ~Copyable, Sendable {
  /// The GPU.
  package let device: CUDADevice
  let current: CurrentContext
  package var functions: DriverFunctions { device.driver.functions }

  /// Retains the context, and creates it where nobody has.
  package init(_ device: CUDADevice) throws(CUDAError) {
    self.device = device
    let f = device.driver.functions
    var context: Handle?
    try f.check(f.retainPrimaryContext(&context, device.handle), "cuDevicePrimaryCtxRetain")
    current = CurrentContext(functions: f, handle: UncheckedHandle(context))
  }

  deinit { if !Fork.hasHappened { _ = functions.releasePrimaryContext(device.handle) } }

  /// Runs `body` with this context current on this thread; what was current before is so again afterwards.
  /// - Throws: `CUDAError.forked` in a process that was forked from one that uses the driver; what `body` throws.
  package func use<Result: ~Copyable>(_ body: () throws(CUDAError) -> Result) throws(CUDAError) -> Result {
    try current.use(body)
  }

  /// Bytes of the GPU's memory that are free, and all of them.
  package func memory() throws(CUDAError) -> (free: Int, total: Int) {
    try use { () throws(CUDAError) in
      var (free, total) = (0, 0)
      try functions.check(functions.getMemoryInfo(&free, &total), "cuMemGetInfo")
      return (free, total)
    }
  }
}

/// A context that somebody retains, to be made current.
struct CurrentContext: Sendable {
  let functions: DriverFunctions
  let handle: UncheckedHandle

  func use<Result: ~Copyable>(_ body: () throws(CUDAError) -> Result) throws(CUDAError) -> Result {
    if Fork.hasHappened { throw .forked }
    try functions.check(functions.pushContext(handle.pointer), "cuCtxPushCurrent")
    defer { pop() }
    return try body()
  }

  /// Gives something back: whoever lets go of it need not know of contexts, and nobody is there to be told of an error.
  func giveBack(_ body: (DriverFunctions) -> Void) {
    if Fork.hasHappened || functions.pushContext(handle.pointer) != 0 { return }
    body(functions)
    pop()
  }

  private func pop() {
    var popped: Handle?
    _ = functions.popContext(&popped)
  }
}

/// The driver's handles may be used by any thread.
struct UncheckedHandle: @unchecked Sendable {
  let pointer: Handle?
  init(_ pointer: Handle?) { self.pointer = pointer }
}

/// A process that was forked from one that uses the driver: CUDA cannot be used there, and may wait for threads that do
/// not exist.
///
/// Source: CUDA C++ Programming Guide, "Initialization"; POSIX, `pthread_atfork`.
package enum Fork {
  private static let happened = Atomic<Bool>(false)

  /// Whether this process is such a one.
  package static var hasHappened: Bool { happened.load(ordering: .relaxed) }

  /// From now on children are told.
  static let watch: Void = { _ = pthread_atfork(nil, nil) { Fork.happened.store(true, ordering: .relaxed) } }()
}
