internal import Synchronization

/// The NVIDIA driver, opened once for the process.
package struct CUDADriver: Sendable {
  package let functions: DriverFunctions
  /// The newest CUDA version that the driver knows, as major * 1000 + minor * 10.
  package let version: Int
  /// How many GPUs it sees.
  package let deviceCount: Int

  /// What opening the library gave, the first time.
  private static let opened: Result<CUDADriver, CUDAError> = {
    do throws(CUDAError) {
      let driver = try CUDADriver(try DriverFunctions.open())
      Fork.watch
      return .success(driver)
    } catch {
      return .failure(error)
    }
  }()

  /// The driver of this machine. Creates no context.
  /// - Throws: `CUDAError` where there is no driver, it is too old, it sees no GPU, or the process was forked from one
  ///   that used it.
  package static func find() throws(CUDAError) -> CUDADriver {
    if Fork.hasHappened { throw .forked }
    return try opened.get()
  }

  /// A driver with these functions.
  package init(_ functions: DriverFunctions) throws(CUDAError) {
    self.functions = functions
    try functions.check(functions.initialize(0), "cuInit")
    var (version, count) = (Int32(0), Int32(0))
    try functions.check(functions.getVersion(&version), "cuDriverGetVersion")
    if version < DriverFunctions.version { throw .driverTooOld(version: Int(version)) }
    try functions.check(functions.getDeviceCount(&count), "cuDeviceGetCount")
    if count == 0 { throw .noDevice }
    self.version = Int(version)
    deviceCount = Int(count)
  }

  /// A GPU, in the driver's order from 0.
  package func device(_ ordinal: Int) throws(CUDAError) -> CUDADevice { try CUDADevice(self, ordinal: ordinal) }
}

/// A GPU and what it can do.
package struct CUDADevice: Sendable {
  /// The driver it belongs to.
  package let driver: CUDADriver
  /// Its place in the driver's order.
  package let ordinal: Int
  let handle: Int32
  /// As NVIDIA names it.
  package let name: String
  /// Compute capability, major * 10 + minor.
  package let capability: Int
  /// Multiprocessors.
  package let multiprocessors: Int
  /// Shared memory that a block may ask for.
  package let sharedBytesPerBlock: Int
  /// Shared memory of a multiprocessor.
  package let sharedBytesPerMultiprocessor: Int
  /// Bytes of the L2 cache.
  package let cacheBytes: Int
  /// Cycles a second at most.
  package let clock: Double
  /// Bytes a second between the GPU and its memory at most.
  package let bandwidth: Double

  init(_ driver: CUDADriver, ordinal: Int) throws(CUDAError) {
    let f = driver.functions
    var device: Int32 = 0
    guard (0..<driver.deviceCount).contains(ordinal) else {
      throw .noSuchDevice(ordinal: ordinal, count: driver.deviceCount)
    }
    try f.check(f.getDevice(&device, Int32(ordinal)), "cuDeviceGet")
    var text = [CChar](repeating: 0, count: 256)
    try f.check(f.getDeviceName(&text, 256, device), "cuDeviceGetName")
    func attribute(_ number: Int32) throws(CUDAError) -> Int {
      var value: Int32 = 0
      try f.check(f.getDeviceAttribute(&value, number, device), "cuDeviceGetAttribute")
      return Int(value)
    }
    self.driver = driver
    self.ordinal = ordinal
    handle = device
    name = String(decoding: text.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
    // CU_DEVICE_ATTRIBUTE_...
    capability = try attribute(75) * 10 + (try attribute(76))
    multiprocessors = try attribute(16)
    sharedBytesPerBlock = try attribute(97)
    sharedBytesPerMultiprocessor = try attribute(81)
    cacheBytes = try attribute(38)
    // CLOCK_RATE in kHz; MEMORY_CLOCK_RATE in kHz, two transfers a cycle, GLOBAL_MEMORY_BUS_WIDTH in bits
    clock = Double(try attribute(13)) * 1000
    bandwidth = Double(try attribute(36)) * 1000 * 2 * Double(try attribute(37)) / 8
  }
}
