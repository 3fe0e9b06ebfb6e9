#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// What the NVIDIA driver says of this machine. The library is opened at run time, so nothing is linked against it.
public struct DriverPresence: Sendable {
  /// Names of the devices, in the driver's order.
  public let devices: [String]
  /// The newest CUDA version that the driver knows, as major * 1000 + minor * 10.
  public let version: Int

  /// Why there is nothing to use, as a sentence.
  public struct Absence: Error, Sendable, CustomStringConvertible {
    /// The rest of a sentence.
    public let description: String
  }

  /// Asks the driver. Calls no function that creates a context.
  public static func find() throws(Absence) -> DriverPresence {
    guard let library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL) else {
      throw Absence(description: "no NVIDIA driver was found (libcuda.so.1 could not be opened).")
    }
    func call<Function>(_ name: String, as _: Function.Type) throws(Absence) -> Function {
      guard let symbol = dlsym(library, name) else {
        throw Absence(description: "the NVIDIA driver has no function \(name); it is too old.")
      }
      return unsafeBitCast(symbol, to: Function.self)
    }
    func check(_ status: Int32, _ what: String) throws(Absence) {
      if status != 0 { throw Absence(description: "the NVIDIA driver failed to \(what) (error \(status)).") }
    }
    let initialize = try call("cuInit", as: (@convention(c) (UInt32) -> Int32).self)
    let getVersion = try call(
      "cuDriverGetVersion", as: (@convention(c) (UnsafeMutablePointer<Int32>) -> Int32).self)
    let getCount = try call("cuDeviceGetCount", as: (@convention(c) (UnsafeMutablePointer<Int32>) -> Int32).self)
    let getName = try call(
      "cuDeviceGetName", as: (@convention(c) (UnsafeMutablePointer<CChar>, Int32, Int32) -> Int32).self)

    let started = initialize(0)
    if started == 100 { throw Absence(description: "the NVIDIA driver sees no device.") }
    try check(started, "initialize")
    var version: Int32 = 0
    try check(getVersion(&version), "tell its version")
    var count: Int32 = 0
    try check(getCount(&count), "count the devices")
    var names: [String] = []
    for device in 0..<count {
      var name = [CChar](repeating: 0, count: 256)
      try check(getName(&name, 256, device), "name device \(device)")
      names.append(String(decoding: name.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self))
    }
    return DriverPresence(devices: names, version: Int(version))
  }
}
