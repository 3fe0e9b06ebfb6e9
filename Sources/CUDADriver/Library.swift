internal import Synchronization

/// A kernel that the driver has compiled from PTX. It belongs to no context, and is unloaded when it goes.
package struct Library: ~Copyable, Sendable {
  let functions: DriverFunctions
  private let library: UncheckedHandle
  private let kernel: UncheckedHandle
  /// The entry point.
  package let name: String
  /// What the driver's compiler found worth a warning: products that it had to wait for one by one, say (C7510 to C7520), or
  /// register counts that it left out (C7508). Empty also where the kernel came from the driver's cache on disk, which keeps
  /// no messages.
  package let remarks: [String]
  /// The most dynamic shared memory that launches were allowed so far, by the GPU's number.
  private let allowed = Mutex<[Int: Int]>([:])

  /// Compiles PTX, or takes what the driver's own cache keeps from an earlier process.
  ///
  /// - Throws: `CUDAError.rejectedPTX` with the driver's log, `.ptxTooNew`.
  package init(_ driver: CUDADriver, ptx: String, version: String, kernel name: String) throws(CUDAError) {
    let handles = try Self.load(driver, ptx: ptx, version: version, kernel: name)
    functions = driver.functions
    self.name = name
    remarks = Self.remarks(in: handles.log)
    (library, kernel) = (UncheckedHandle(handles.library), UncheckedHandle(handles.kernel))
  }

  private static func load(
    _ driver: CUDADriver, ptx: String, version: String, kernel name: String
  ) throws(CUDAError) -> (library: Handle?, kernel: Handle?, log: String) {
    let f = driver.functions
    var library: Handle?
    let size = 8192
    var logs = [UInt8](repeating: 0, count: 2 * size)
    let status = logs.withUnsafeMutableBytes { buffer in
      // CU_JIT_ERROR_LOG_BUFFER, CU_JIT_INFO_LOG_BUFFER, each with its size, which is passed as a pointer's bits, and
      // CU_JIT_LOG_VERBOSE.
      let options: [Int32] = [5, 6, 3, 4, 12]
      let values = [
        buffer.baseAddress, UnsafeMutableRawPointer(bitPattern: size), buffer.baseAddress! + size,
        UnsafeMutableRawPointer(bitPattern: size), UnsafeMutableRawPointer(bitPattern: 1),
      ]
      return ptx.withCString { f.loadLibrary(&library, $0, options, values, UInt32(options.count), nil, nil, 0) }
    }
    func log(_ part: ArraySlice<UInt8>) -> String { String(decoding: part.prefix { $0 != 0 }, as: UTF8.self) }
    switch status {
    case 0: break
    case 222: throw .ptxTooNew(needed: version, driverVersion: driver.version)
    // Invalid image, no binary for this GPU, invalid PTX, and what the compiler itself could not do.
    case 200, 209, 218, 221, 223, 300, 301:
      throw .rejectedPTX(kernel: name, log: log(logs[..<size]))
    default: try f.check(status, "cuLibraryLoadData")
    }
    var kernel: Handle?
    let found = f.getKernel(&kernel, library, name)
    if found != 0 { _ = f.unloadLibrary(library) }
    try f.check(found, "cuLibraryGetKernel")
    return (library, kernel, log(logs[size...]))
  }

  /// The lines of the compiler's log that have a number, as its warnings have.
  private static func remarks(in log: String) -> [String] {
    log.split(separator: "\n").compactMap { line in
      line.indices.first { line[$0...].hasPrefix("(C7") }.map { String(line[$0...]) }
    }
  }

  deinit { if !Fork.hasHappened { _ = functions.unloadLibrary(library.pointer) } }

  /// What the driver's compiler made of a kernel.
  package struct Resources: Hashable, Sendable {
    /// Registers of a thread.
    package let registers: Int
    /// Bytes of a thread that did not fit registers.
    package let localBytes: Int
    /// Static shared memory.
    package let sharedBytes: Int
  }

  /// What a reader of a plan should know of what the driver made of the kernel: registers, whether some did not fit, and
  /// what the compiler warned of.
  ///
  /// - Parameter budget: registers that were planned for.
  package func summary(_ resources: Resources, of budget: Int? = nil) -> String {
    let spilled =
      resources.localBytes == 0
      ? "nothing spilled" : "\(resources.localBytes) bytes spilled, which the plan did not expect"
    return "compiled to \(resources.registers)\(budget.map { " of \($0)" } ?? "") registers a thread, \(spilled)"
      + remarks.map { "\nthe driver's compiler warns: \($0)" }.joined()
  }

  /// What the kernel takes on a GPU.
  package func resources(on device: CUDADevice) throws(CUDAError) -> Resources {
    func attribute(_ number: Int32) throws(CUDAError) -> Int {
      var value: Int32 = 0
      let status = functions.getKernelAttribute(&value, number, kernel.pointer, device.handle)
      try functions.check(status, "cuKernelGetAttribute")
      return Int(value)
    }
    // CU_FUNC_ATTRIBUTE_NUM_REGS, LOCAL_SIZE_BYTES, SHARED_SIZE_BYTES
    return Resources(registers: try attribute(4), localBytes: try attribute(3), sharedBytes: try attribute(1))
  }

  /// Allows launches with this much dynamic shared memory on a GPU, and as before with less: calls of one kernel may ask for
  /// different amounts.
  package func allow(dynamicSharedByteCount: Int, on device: CUDADevice) throws(CUDAError) {
    try allowed.withLock { (allowed) throws(CUDAError) in
      if let most = allowed[device.ordinal], most >= dynamicSharedByteCount { return }
      // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, PREFERRED_SHARED_MEMORY_CARVEOUT in percent
      for (attribute, value) in [(Int32(8), Int32(dynamicSharedByteCount)), (9, 100)] {
        let status = functions.setKernelAttribute(attribute, value, kernel.pointer, device.handle)
        try functions.check(status, "cuKernelSetAttribute")
      }
      allowed[device.ordinal] = dynamicSharedByteCount
    }
  }

  /// Puts a launch into a stream. The context of the stream must be current.
  ///
  /// - Parameter arguments: the parameters, each at a multiple of its size, as the kernel's PTX declares them.
  package func launch(
    _ shape: LaunchShape, arguments: UnsafeMutableRawBufferPointer, in stream: StreamHandle
  )
    throws(CUDAError)
  {
    let status = shape.withConfiguration(stream) { configuration in
      var size = arguments.count
      return withUnsafeMutablePointer(to: &size) { size in
        // CU_LAUNCH_PARAM_BUFFER_POINTER, CU_LAUNCH_PARAM_BUFFER_SIZE, CU_LAUNCH_PARAM_END
        let extra = (
          UnsafeMutableRawPointer(bitPattern: 1), arguments.baseAddress, UnsafeMutableRawPointer(bitPattern: 2),
          UnsafeMutableRawPointer(size) as UnsafeMutableRawPointer?, nil as UnsafeMutableRawPointer?
        )
        return withUnsafeBytes(of: extra) {
          functions.launch(
            configuration, kernel.pointer, nil, $0.baseAddress!.assumingMemoryBound(to: UnsafeMutableRawPointer?.self))
        }
      }
    }
    try functions.checkLaunch(status, kernel: name)
  }

  /// The same with the beginnings of all parameters where there are tensor maps among them; without where there are none.
  package func launch(
    _ shape: LaunchShape, arguments: UnsafeMutableRawBufferPointer, offsets: [Int], in stream: StreamHandle
  ) throws(CUDAError) {
    if offsets.isEmpty { return try launch(shape, arguments: arguments, in: stream) }
    try withUnsafeTemporaryAllocation(of: UnsafeMutableRawPointer?.self, capacity: offsets.count + 1) {
      (pointers) throws(CUDAError) in
      for (number, offset) in offsets.enumerated() { pointers[number] = arguments.baseAddress! + offset }
      pointers[offsets.count] = nil
      try launch(shape, pointers: pointers.baseAddress!, in: stream)
    }
  }

  /// The same with a pointer to each parameter, for kernels with tensor maps: ptxas aligns these by where parameters lie
  /// in the constant bank, 0x210 on sm_90, so that the first is not at the beginning, and only the driver knows.
  package func launch(
    _ shape: LaunchShape, pointers: UnsafeMutablePointer<UnsafeMutableRawPointer?>, in stream: StreamHandle
  ) throws(CUDAError) {
    let status = shape.withConfiguration(stream) { functions.launch($0, kernel.pointer, pointers, nil) }
    try functions.checkLaunch(status, kernel: name)
  }
}

/// The grid of a launch, and what is special about it.
package struct LaunchShape: Hashable, Sendable {
  /// Something special about a launch.
  package enum Attribute: Hashable, Sendable {
    /// May begin before the launch in front of it has ended; the kernel waits where it must.
    case programmaticStreamSerialization
    /// Blocks that run together and share memory.
    case cluster(x: Int, y: Int, z: Int)
  }

  /// Blocks along x.
  package var blocks: Int
  /// Threads of a block.
  package var threads: Int
  /// Dynamic shared memory of a block.
  package var sharedByteCount: Int
  /// None, usually.
  package var attributes: [Attribute]

  /// A one-dimensional grid.
  package init(blocks: Int, threads: Int, sharedByteCount: Int = 0, attributes: [Attribute] = []) {
    self.blocks = blocks
    self.threads = threads
    self.sharedByteCount = sharedByteCount
    self.attributes = attributes
  }

  /// `CUlaunchConfig`, and the 72 bytes of each `CUlaunchAttribute`.
  private struct Configuration {
    var gridX, gridY, gridZ, blockX, blockY, blockZ, sharedBytes: UInt32
    var stream: Handle?
    var attributes: UnsafeRawPointer?
    var attributeCount: UInt32
  }

  func withConfiguration(_ stream: StreamHandle, _ body: (UnsafeRawPointer) -> Status) -> Status {
    var configuration = Configuration(
      gridX: UInt32(blocks), gridY: 1, gridZ: 1, blockX: UInt32(threads), blockY: 1, blockZ: 1,
      sharedBytes: UInt32(sharedByteCount), stream: stream.pointer, attributes: nil,
      attributeCount: UInt32(attributes.count))
    if attributes.isEmpty { return withUnsafePointer(to: &configuration) { body($0) } }
    var words = [UInt32](repeating: 0, count: 18 * attributes.count)
    for (i, attribute) in attributes.enumerated() {
      switch attribute {
      case .programmaticStreamSerialization: (words[18 * i], words[18 * i + 2]) = (6, 1)
      case .cluster(let x, let y, let z):
        words[18 * i] = 4
        for (j, extent) in [x, y, z].enumerated() { words[18 * i + 2 + j] = UInt32(extent) }
      }
    }
    return words.withUnsafeBytes { bytes in
      configuration.attributes = bytes.baseAddress
      return withUnsafePointer(to: &configuration) { body($0) }
    }
  }
}
