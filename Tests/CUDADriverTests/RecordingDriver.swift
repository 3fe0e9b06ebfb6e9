import CUDADriver
import Synchronization

/// A driver without a GPU: it keeps what was asked, hands out numbers for handles, and fails where it is told to.
final class RecordingDriver: Sendable {
  private let state = Mutex((calls: [String](), handle: 0x1000, live: Set<Int>()))

  /// What was called, in order, with what matters of the arguments.
  var calls: [String] { state.withLock { $0.calls } }
  /// Handles that were given out and not taken back.
  var live: Set<Int> { state.withLock { $0.live } }

  func record(_ call: String) { state.withLock { $0.calls.append(call) } }
  func forget() { state.withLock { $0.calls = [] } }

  private func give() -> OpaquePointer? {
    state.withLock { state in
      state.handle += 0x10
      state.live.insert(state.handle)
      return OpaquePointer(bitPattern: state.handle)
    }
  }

  private func take(_ pointer: OpaquePointer?) { _ = state.withLock { $0.live.remove(Int(bitPattern: pointer)) } }

  /// The table. `change` makes some of its functions fail.
  func functions(_ change: (inout DriverFunctions) -> Void = { _ in }) -> DriverFunctions {
    var f = DriverFunctions()
    f.initialize = { _ in 0 }
    f.getVersion = {
      $0.pointee = 13000; return 0
    }
    f.getDeviceCount = {
      $0.pointee = 1; return 0
    }
    f.getDevice = {
      $0.pointee = $1; return 0
    }
    f.getDeviceName = { name, size, _ in
      for (i, byte) in "Fake GPU".utf8.enumerated() { name[i] = CChar(byte) }
      return 0
    }
    f.getDeviceAttribute = { value, attribute, _ in
      value.pointee = [75: 9, 76: 0, 16: 132, 97: 232_448, 81: 233_472, 38: 52_428_800][attribute] ?? 0
      return 0
    }
    f.retainPrimaryContext = { [self] context, device in
      context.pointee = give()
      record("retain \(device)")
      return 0
    }
    f.releasePrimaryContext = { [self] device in
      record("release \(device)"); return 0
    }
    f.pushContext = { [self] _ in
      record("push"); return 0
    }
    f.popContext = { [self] _ in
      record("pop"); return 0
    }
    f.exchangeCaptureMode = { [self] mode in
      record("capture mode \(mode.pointee)")
      mode.pointee = 2 - mode.pointee
      return 0
    }
    f.getCaptureInfo = { _, status, number, _, _, _ in
      status.pointee = 1
      number?.pointee = 7
      return 0
    }
    f.getStreamID = { stream, number in
      number.pointee = UInt64(UInt(bitPattern: stream)) + 100
      return 0
    }
    f.getMemoryInfo = {
      $0.pointee = 3_000_000; $1.pointee = 9_000_000; return 0
    }
    f.createPool = { [self] pool, properties in
      let words = properties.assumingMemoryBound(to: Int32.self)
      record("pool type \(words[0]) location \(words[2]) device \(words[3])")
      pool.pointee = give()
      return 0
    }
    f.setPoolAttribute = { [self] _, attribute, value in
      record("pool attribute \(attribute) \(value.load(as: UInt64.self))")
      return 0
    }
    f.destroyPool = { [self] in
      take($0); return 0
    }
    f.allocateFromPool = { [self] address, size, _, _ in
      address.pointee = UInt64(Int(bitPattern: give()))
      record("allocate \(size)")
      return 0
    }
    f.freeAsync = { [self] address, _ in
      record("free")
      take(OpaquePointer(bitPattern: Int(address)))
      return 0
    }
    f.copyToDevice = { [self] _, _, size, _ in
      record("upload \(size)"); return 0
    }
    f.copyToHost = { [self] _, _, size, _ in
      record("download \(size)"); return 0
    }
    f.createStream = { [self] stream, flags in
      stream.pointee = give(); record("stream \(flags)"); return 0
    }
    f.destroyStream = { [self] in
      take($0); return 0
    }
    f.synchronizeStream = { [self] _ in
      record("synchronize"); return 0
    }
    f.beginCapture = { [self] _, mode in
      record("capture \(mode)"); return 0
    }
    f.endCapture = { [self] _, graph in
      graph.pointee = give(); record("end capture"); return 0
    }
    f.getGraphNodes = { _, _, count in
      count.pointee = 1
      return 0
    }
    f.instantiateGraph = { [self] executable, _, _ in
      executable.pointee = give(); return 0
    }
    f.destroyGraph = { [self] in
      take($0); return 0
    }
    f.destroyExecutableGraph = { [self] in
      take($0); return 0
    }
    f.launchGraph = { [self] _, _ in
      record("launch graph"); return 0
    }
    f.createEvent = { [self] event, _ in
      event.pointee = give(); return 0
    }
    f.destroyEvent = { [self] in
      take($0); return 0
    }
    f.recordEvent = { [self] _, _ in
      record("event"); return 0
    }
    f.synchronizeEvent = { _ in 0 }
    f.getElapsedTime = { milliseconds, _, _ in
      milliseconds.pointee = 2.5; return 0
    }
    f.loadLibrary = { [self] library, code, _, _, _, _, _, _ in
      library.pointee = give()
      record("load \(String(cString: code.assumingMemoryBound(to: CChar.self)))")
      return 0
    }
    f.unloadLibrary = { [self] in
      take($0); record("unload"); return 0
    }
    f.getKernel = { [self] kernel, _, name in
      kernel.pointee = OpaquePointer(bitPattern: 0x77)
      record("kernel \(String(cString: name))")
      return 0
    }
    f.getKernelAttribute = { value, attribute, _, _ in
      value.pointee = [4: 200, 3: 8][attribute] ?? 0; return 0
    }
    f.setKernelAttribute = { [self] attribute, value, _, _ in
      record("attribute \(attribute) \(value)"); return 0
    }
    f.launch = { [self] configuration, kernel, _, extra in
      let words = configuration.assumingMemoryBound(to: UInt32.self)
      let attributes = configuration.load(fromByteOffset: 40, as: UnsafeRawPointer?.self)
      let count = Int(configuration.load(fromByteOffset: 48, as: UInt32.self))
      var text = "launch \((0..<7).map { "\(words[$0])" }.joined(separator: " "))"
      for i in 0..<count {
        let id = attributes!.load(fromByteOffset: 72 * i, as: UInt32.self)
        text += " attribute \(id)"
        text += (0..<3).map { " \(attributes!.load(fromByteOffset: 72 * i + 8 + 4 * $0, as: UInt32.self))" }.joined()
      }
      let buffer = UnsafeRawPointer(extra![1]!)
      let size = extra![3]!.load(as: Int.self)
      record(text)
      record("bytes \((0..<size).map { "\(buffer.load(fromByteOffset: $0, as: UInt8.self))" }.joined(separator: " "))")
      return 0
    }
    f.getErrorName = { _, name in
      name.pointee = UnsafePointer(Self.name); return 0
    }
    f.getErrorString = { _, text in
      text.pointee = UnsafePointer(Self.meaning); return 0
    }
    change(&f)
    return f
  }

  private nonisolated(unsafe) static let name = RecordingDriver.permanent("CUDA_ERROR_TEST")
  private nonisolated(unsafe) static let meaning = RecordingDriver.permanent("it was a test")
  private static func permanent(_ text: String) -> UnsafeMutablePointer<CChar> {
    let bytes = Array(text.utf8CString)
    let memory = UnsafeMutablePointer<CChar>.allocate(capacity: bytes.count)
    memory.initialize(from: bytes, count: bytes.count)
    return memory
  }
}
