/// A pool of a GPU's memory that keeps what was freed for the next allocation, so that allocating costs no system call.
package struct MemoryPool: ~Copyable, Sendable {
  private let functions: DriverFunctions
  private let context: CurrentContext
  private let handle: UncheckedHandle

  /// A pool of its own, apart from that of other libraries in the process.
  package init(_ context: borrowing PrimaryContext) throws(CUDAError) {
    let device = context.device
    let functions = device.driver.functions
    // CUmemPoolProps: allocation type pinned (1), no shared handles (0), location type device (1), its number; 88
    // bytes.
    var properties = [Int32](repeating: 0, count: 22)
    (properties[0], properties[2], properties[3]) = (1, 1, device.handle)
    var pool: Handle?
    let status = properties.withUnsafeBytes { functions.createPool(&pool, $0.baseAddress!) }
    try functions.check(status, "cuMemPoolCreate")
    (self.functions, self.context, handle) = (functions, context.current, UncheckedHandle(pool))
    // CU_MEMPOOL_ATTR_RELEASE_THRESHOLD: keep this much at each synchronization, and leave the rest to others.
    var threshold: UInt64 = 2 << 30
    _ = functions.setPoolAttribute(pool, 4, &threshold)
  }

  deinit { context.giveBack { _ = $0.destroyPool(handle.pointer) } }

  /// Reserves memory, in a stream's order. Its address is a multiple of 256.
  /// - Throws: `CUDAError.outOfMemory` with what was free.
  package func allocate(byteCount: Int, in stream: StreamHandle) throws(CUDAError) -> DeviceMemory {
    var address: DeviceAddress = 0
    let status = functions.allocateFromPool(&address, max(byteCount, 1), handle.pointer, stream.pointer)
    try functions.checkAllocation(status, byteCount: byteCount, "cuMemAllocFromPoolAsync")
    return DeviceMemory(functions, context, address: address, byteCount: byteCount, stream: stream)
  }
}

/// Memory of a GPU; freed in its stream's order when it goes.
package struct DeviceMemory: ~Copyable, Sendable {
  private let functions: DriverFunctions
  /// Where it is.
  package let address: DeviceAddress
  /// Its size.
  package let byteCount: Int
  private let context: CurrentContext
  private let stream: StreamHandle

  init(
    _ functions: DriverFunctions, _ context: CurrentContext, address: DeviceAddress, byteCount: Int,
    stream: StreamHandle
  ) {
    (self.functions, self.context, self.stream) = (functions, context, stream)
    (self.address, self.byteCount) = (address, byteCount)
  }

  deinit { context.giveBack { _ = $0.freeAsync(address, stream.pointer) } }

  /// Copies host memory here, in the stream's order. Traps where it does not fit.
  package func copy(from source: UnsafeRawBufferPointer, at offset: Int = 0) throws(CUDAError) {
    precondition(offset + source.count <= byteCount, "The copy does not fit the memory.")
    guard let base = source.baseAddress, source.count > 0 else { return }
    let status = functions.copyToDevice(address + UInt64(offset), base, source.count, stream.pointer)
    try functions.check(status, "cuMemcpyHtoDAsync")
  }

  /// Copies to host memory, in the stream's order: it is there after a synchronization.
  package func copy(to destination: UnsafeMutableRawBufferPointer, from offset: Int = 0) throws(CUDAError) {
    precondition(offset + destination.count <= byteCount, "The copy goes beyond the memory.")
    guard let base = destination.baseAddress, destination.count > 0 else { return }
    let status = functions.copyToHost(base, address + UInt64(offset), destination.count, stream.pointer)
    try functions.check(status, "cuMemcpyDtoHAsync")
  }

  /// Copies bytes from one place to another that does not overlap it, in the stream's order. Traps where they do not
  /// fit.
  package func move(byteCount count: Int, from source: Int, to target: Int) throws(CUDAError) {
    precondition(max(source, target) + count <= byteCount, "The copy goes beyond the memory.")
    if count == 0 { return }
    let status = functions.copyOnDevice(address + UInt64(target), address + UInt64(source), count, stream.pointer)
    try functions.check(status, "cuMemcpyDtoDAsync")
  }

  /// Sets all bytes, in the stream's order.
  package func fill(_ byte: UInt8) throws(CUDAError) {
    if byteCount == 0 { return }
    try functions.check(functions.fill(address, byte, byteCount, stream.pointer), "cuMemsetD8Async")
  }
}
