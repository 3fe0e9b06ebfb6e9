#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// What the driver returns; 0 is success. Source: CUDA Driver API, `CUresult`.
package typealias Status = Int32
/// A pointer that the driver gave out.
package typealias Handle = OpaquePointer
/// An address in the memory of a GPU.
package typealias DeviceAddress = UInt64

/// The table of driver functions in use. Filled from `libcuda.so.1`, opened at run time, or by a test that records
/// calls.
///
/// Entry points come from `cuGetProcAddress` with CUDA 12.0 named: the plain symbol of several functions is that of the
/// first CUDA ever. Source: CUDA Driver API, section 6.32, Driver Entry Point Access.
package struct DriverFunctions: Sendable {
  package typealias Out<T> = UnsafeMutablePointer<T>

  package var initialize: @Sendable (UInt32) -> Status = { _ in 999 }
  package var getVersion: @Sendable (Out<Int32>) -> Status = { _ in 999 }
  package var getErrorName: @Sendable (Status, Out<UnsafePointer<CChar>?>) -> Status = { _, _ in 999 }
  package var getErrorString: @Sendable (Status, Out<UnsafePointer<CChar>?>) -> Status = { _, _ in 999 }

  package var getDeviceCount: @Sendable (Out<Int32>) -> Status = { _ in 999 }
  package var getDevice: @Sendable (Out<Int32>, Int32) -> Status = { _, _ in 999 }
  package var getDeviceName: @Sendable (Out<CChar>, Int32, Int32) -> Status = { _, _, _ in 999 }
  package var getDeviceAttribute: @Sendable (Out<Int32>, Int32, Int32) -> Status = { _, _, _ in 999 }
  package var retainPrimaryContext: @Sendable (Out<Handle?>, Int32) -> Status = { _, _ in 999 }
  package var releasePrimaryContext: @Sendable (Int32) -> Status = { _ in 999 }
  package var pushContext: @Sendable (Handle?) -> Status = { _ in 999 }
  package var popContext: @Sendable (Out<Handle?>) -> Status = { _ in 999 }

  package var getMemoryInfo: @Sendable (Out<Int>, Out<Int>) -> Status = { _, _ in 999 }
  package var createPool: @Sendable (Out<Handle?>, UnsafeRawPointer) -> Status = { _, _ in 999 }
  package var destroyPool: @Sendable (Handle?) -> Status = { _ in 999 }
  package var setPoolAttribute: @Sendable (Handle?, Int32, UnsafeMutableRawPointer) -> Status = { _, _, _ in 999 }
  package var allocateFromPool: @Sendable (Out<DeviceAddress>, Int, Handle?, Handle?) -> Status = { _, _, _, _ in 999 }
  package var freeAsync: @Sendable (DeviceAddress, Handle?) -> Status = { _, _ in 999 }
  package var copyToDevice: @Sendable (DeviceAddress, UnsafeRawPointer, Int, Handle?) -> Status = { _, _, _, _ in 999 }
  package var copyToHost: @Sendable (UnsafeMutableRawPointer, DeviceAddress, Int, Handle?) -> Status = { _, _, _, _ in
    999
  }
  package var copyOnDevice: @Sendable (DeviceAddress, DeviceAddress, Int, Handle?) -> Status = { _, _, _, _ in 999 }
  package var fill: @Sendable (DeviceAddress, UInt8, Int, Handle?) -> Status = { _, _, _, _ in 999 }

  package var createStream: @Sendable (Out<Handle?>, UInt32) -> Status = { _, _ in 999 }
  package var destroyStream: @Sendable (Handle?) -> Status = { _ in 999 }
  package var synchronizeStream: @Sendable (Handle?) -> Status = { _ in 999 }
  package var beginCapture: @Sendable (Handle?, Int32) -> Status = { _, _ in 999 }
  package var endCapture: @Sendable (Handle?, Out<Handle?>) -> Status = { _, _ in 999 }
  package var exchangeCaptureMode: @Sendable (Out<Int32>) -> Status = { _ in 999 }
  package typealias GetCapture =
    @Sendable (
      Handle?, Out<Int32>, Out<UInt64>?, Out<Handle?>?, UnsafeMutableRawPointer?, UnsafeMutableRawPointer?
    ) -> Status
  package var getCaptureInfo: GetCapture = { _, _, _, _, _, _ in 999 }
  package var getStreamID: @Sendable (Handle?, Out<UInt64>) -> Status = { _, _ in 999 }
  package var getGraphNodes: @Sendable (Handle?, UnsafeMutableRawPointer?, Out<Int>) -> Status = { _, _, _ in 999 }
  package var instantiateGraph: @Sendable (Out<Handle?>, Handle?, UInt64) -> Status = { _, _, _ in 999 }
  package var launchGraph: @Sendable (Handle?, Handle?) -> Status = { _, _ in 999 }
  package var destroyGraph: @Sendable (Handle?) -> Status = { _ in 999 }
  package var destroyExecutableGraph: @Sendable (Handle?) -> Status = { _ in 999 }
  package var createEvent: @Sendable (Out<Handle?>, UInt32) -> Status = { _, _ in 999 }
  package var destroyEvent: @Sendable (Handle?) -> Status = { _ in 999 }
  package var recordEvent: @Sendable (Handle?, Handle?) -> Status = { _, _ in 999 }
  package var synchronizeEvent: @Sendable (Handle?) -> Status = { _ in 999 }
  package var getElapsedTime: @Sendable (Out<Float>, Handle?, Handle?) -> Status = { _, _, _ in 999 }

  package typealias LoadLibrary =
    @Sendable (
      Out<Handle?>, UnsafeRawPointer, UnsafePointer<Int32>?, UnsafePointer<UnsafeMutableRawPointer?>?, UInt32,
      UnsafePointer<Int32>?, UnsafePointer<UnsafeMutableRawPointer?>?, UInt32
    ) -> Status
  package var loadLibrary: LoadLibrary = { _, _, _, _, _, _, _, _ in 999 }
  package var unloadLibrary: @Sendable (Handle?) -> Status = { _ in 999 }
  package var getKernel: @Sendable (Out<Handle?>, Handle?, UnsafePointer<CChar>) -> Status = { _, _, _ in 999 }
  package var getKernelAttribute: @Sendable (Out<Int32>, Int32, Handle?, Int32) -> Status = { _, _, _, _ in 999 }
  package var setKernelAttribute: @Sendable (Int32, Int32, Handle?, Int32) -> Status = { _, _, _, _ in 999 }
  package typealias EncodeTensorMap =
    @Sendable (
      UnsafeMutableRawPointer, Int32, UInt32, UnsafeMutableRawPointer?, UnsafePointer<UInt64>, UnsafePointer<UInt64>,
      UnsafePointer<UInt32>, UnsafePointer<UInt32>, Int32, Int32, Int32, Int32
    ) -> Status
  package var encodeTensorMap: EncodeTensorMap = { _, _, _, _, _, _, _, _, _, _, _, _ in 999 }
  package typealias Launch =
    @Sendable (
      UnsafeRawPointer, Handle?, UnsafePointer<UnsafeMutableRawPointer?>?, UnsafePointer<UnsafeMutableRawPointer?>?
    ) -> Status
  package var launch: Launch = { _, _, _, _ in 999 }

  /// A table whose functions all fail; tests fill in what they need.
  package init() {}
}

extension DriverFunctions {
  /// The CUDA version whose function signatures are used, as major * 1000 + minor * 10.
  package static let version: Int32 = 12000

  /// Opens the driver's library.
  static func open() throws(CUDAError) -> DriverFunctions {
    guard let library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL) else { throw .noDriver }
    typealias GetAddress =
      @convention(c) @Sendable (
        UnsafePointer<CChar>, UnsafeMutablePointer<UnsafeMutableRawPointer?>, Int32, UInt64, UnsafeMutableRawPointer?
      ) -> Status
    guard let symbol = dlsym(library, "cuGetProcAddress_v2") else { throw .driverTooOld(version: nil) }
    let getAddress = unsafeBitCast(symbol, to: GetAddress.self)

    func find<F>(_ name: String, _: F.Type) throws(CUDAError) -> F {
      var address: UnsafeMutableRawPointer?
      guard getAddress(name, &address, version, 0, nil) == 0, let address else {
        throw .missingFunction(name)
      }
      return unsafeBitCast(address, to: F.self)
    }
    var f = DriverFunctions()
    f.initialize = try find("cuInit", (@convention(c) @Sendable (UInt32) -> Status).self)
    f.getVersion = try find("cuDriverGetVersion", (@convention(c) @Sendable (Out<Int32>) -> Status).self)
    typealias GetText = @convention(c) @Sendable (Status, Out<UnsafePointer<CChar>?>) -> Status
    f.getErrorName = try find("cuGetErrorName", GetText.self)
    f.getErrorString = try find("cuGetErrorString", GetText.self)

    f.getDeviceCount = try find("cuDeviceGetCount", (@convention(c) @Sendable (Out<Int32>) -> Status).self)
    f.getDevice = try find("cuDeviceGet", (@convention(c) @Sendable (Out<Int32>, Int32) -> Status).self)
    f.getDeviceName = try find("cuDeviceGetName", (@convention(c) @Sendable (Out<CChar>, Int32, Int32) -> Status).self)
    f.getDeviceAttribute = try find(
      "cuDeviceGetAttribute", (@convention(c) @Sendable (Out<Int32>, Int32, Int32) -> Status).self)
    typealias GetOfDevice = @convention(c) @Sendable (Out<Handle?>, Int32) -> Status
    f.retainPrimaryContext = try find("cuDevicePrimaryCtxRetain", GetOfDevice.self)
    f.releasePrimaryContext = try find("cuDevicePrimaryCtxRelease", (@convention(c) @Sendable (Int32) -> Status).self)
    typealias TakeHandle = @convention(c) @Sendable (Handle?) -> Status
    typealias GiveHandle = @convention(c) @Sendable (Out<Handle?>) -> Status
    f.pushContext = try find("cuCtxPushCurrent", TakeHandle.self)
    f.popContext = try find("cuCtxPopCurrent", GiveHandle.self)

    f.getMemoryInfo = try find("cuMemGetInfo", (@convention(c) @Sendable (Out<Int>, Out<Int>) -> Status).self)
    f.createPool = try find(
      "cuMemPoolCreate", (@convention(c) @Sendable (Out<Handle?>, UnsafeRawPointer) -> Status).self)
    f.destroyPool = try find("cuMemPoolDestroy", TakeHandle.self)
    f.setPoolAttribute = try find(
      "cuMemPoolSetAttribute", (@convention(c) @Sendable (Handle?, Int32, UnsafeMutableRawPointer) -> Status).self)
    f.allocateFromPool = try find(
      "cuMemAllocFromPoolAsync", (@convention(c) @Sendable (Out<DeviceAddress>, Int, Handle?, Handle?) -> Status).self)
    f.freeAsync = try find("cuMemFreeAsync", (@convention(c) @Sendable (DeviceAddress, Handle?) -> Status).self)
    f.copyToDevice = try find(
      "cuMemcpyHtoDAsync", (@convention(c) @Sendable (DeviceAddress, UnsafeRawPointer, Int, Handle?) -> Status).self)
    f.copyToHost = try find(
      "cuMemcpyDtoHAsync",
      (@convention(c) @Sendable (UnsafeMutableRawPointer, DeviceAddress, Int, Handle?) -> Status).self)
    f.copyOnDevice = try find(
      "cuMemcpyDtoDAsync", (@convention(c) @Sendable (DeviceAddress, DeviceAddress, Int, Handle?) -> Status).self)
    f.fill = try find("cuMemsetD8Async", (@convention(c) @Sendable (DeviceAddress, UInt8, Int, Handle?) -> Status).self)

    typealias Create = @convention(c) @Sendable (Out<Handle?>, UInt32) -> Status
    typealias TakeTwo = @convention(c) @Sendable (Handle?, Handle?) -> Status
    f.createStream = try find("cuStreamCreate", Create.self)
    f.destroyStream = try find("cuStreamDestroy", TakeHandle.self)
    f.synchronizeStream = try find("cuStreamSynchronize", TakeHandle.self)
    f.beginCapture = try find("cuStreamBeginCapture", (@convention(c) @Sendable (Handle?, Int32) -> Status).self)
    f.endCapture = try find("cuStreamEndCapture", (@convention(c) @Sendable (Handle?, Out<Handle?>) -> Status).self)
    f.exchangeCaptureMode = try find(
      "cuThreadExchangeStreamCaptureMode", (@convention(c) @Sendable (Out<Int32>) -> Status).self)
    typealias GetCaptureC =
      @convention(c) @Sendable (
        Handle?, Out<Int32>, Out<UInt64>?, Out<Handle?>?, UnsafeMutableRawPointer?, UnsafeMutableRawPointer?
      ) -> Status
    f.getCaptureInfo = try find("cuStreamGetCaptureInfo", GetCaptureC.self)
    f.getStreamID = try find("cuStreamGetId", (@convention(c) @Sendable (Handle?, Out<UInt64>) -> Status).self)
    f.getGraphNodes = try find(
      "cuGraphGetNodes", (@convention(c) @Sendable (Handle?, UnsafeMutableRawPointer?, Out<Int>) -> Status).self)
    f.instantiateGraph = try find(
      "cuGraphInstantiate", (@convention(c) @Sendable (Out<Handle?>, Handle?, UInt64) -> Status).self)
    f.launchGraph = try find("cuGraphLaunch", TakeTwo.self)
    f.destroyGraph = try find("cuGraphDestroy", TakeHandle.self)
    f.destroyExecutableGraph = try find("cuGraphExecDestroy", TakeHandle.self)
    f.createEvent = try find("cuEventCreate", Create.self)
    f.destroyEvent = try find("cuEventDestroy", TakeHandle.self)
    f.recordEvent = try find("cuEventRecord", TakeTwo.self)
    f.synchronizeEvent = try find("cuEventSynchronize", TakeHandle.self)
    f.getElapsedTime = try find(
      "cuEventElapsedTime", (@convention(c) @Sendable (Out<Float>, Handle?, Handle?) -> Status).self)

    typealias LoadC =
      @convention(c) @Sendable (
        Out<Handle?>, UnsafeRawPointer, UnsafePointer<Int32>?, UnsafePointer<UnsafeMutableRawPointer?>?, UInt32,
        UnsafePointer<Int32>?, UnsafePointer<UnsafeMutableRawPointer?>?, UInt32
      ) -> Status
    f.loadLibrary = try find("cuLibraryLoadData", LoadC.self)
    f.unloadLibrary = try find("cuLibraryUnload", TakeHandle.self)
    f.getKernel = try find(
      "cuLibraryGetKernel", (@convention(c) @Sendable (Out<Handle?>, Handle?, UnsafePointer<CChar>) -> Status).self)
    f.getKernelAttribute = try find(
      "cuKernelGetAttribute", (@convention(c) @Sendable (Out<Int32>, Int32, Handle?, Int32) -> Status).self)
    f.setKernelAttribute = try find(
      "cuKernelSetAttribute", (@convention(c) @Sendable (Int32, Int32, Handle?, Int32) -> Status).self)
    typealias EncodeC =
      @convention(c) @Sendable (
        UnsafeMutableRawPointer, Int32, UInt32, UnsafeMutableRawPointer?, UnsafePointer<UInt64>, UnsafePointer<UInt64>,
        UnsafePointer<UInt32>, UnsafePointer<UInt32>, Int32, Int32, Int32, Int32
      ) -> Status
    f.encodeTensorMap = try find("cuTensorMapEncodeTiled", EncodeC.self)
    typealias LaunchC =
      @convention(c) @Sendable (
        UnsafeRawPointer, Handle?, UnsafePointer<UnsafeMutableRawPointer?>?, UnsafePointer<UnsafeMutableRawPointer?>?
      ) -> Status
    f.launch = try find("cuLaunchKernelEx", LaunchC.self)
    return f
  }
}
