import CUDADriver
import Testing

/// The logic around the driver's functions, without a driver.
@Suite struct DriverTests {
  private let recorder = RecordingDriver()

  private func driver(_ change: (inout DriverFunctions) -> Void = { _ in }) throws -> CUDADriver {
    try CUDADriver(recorder.functions(change))
  }

  private func sentence(_ body: () throws -> Void) -> String {
    do {
      try body()
      return "nothing was thrown"
    } catch { return "\(error)" }
  }

  @Test func describesTheDevice() throws {
    let device = try driver().device(0)
    #expect(device.name == "Fake GPU" && device.capability == 90 && device.multiprocessors == 132)
    #expect(device.sharedBytesPerBlock == 232_448 && device.sharedBytesPerMultiprocessor == 233_472)
  }

  @Test func everyOwnerGivesBackWhatItHolds() throws {
    do {
      let driver = try driver()
      let device = try driver.device(0)
      let context = try PrimaryContext(device)
      let stream = try Stream(context)
      let pool = try MemoryPool(context)
      let memory = try pool.allocate(byteCount: 1000, in: stream.handle)
      let event = try Event(context)
      let library = try Library(driver, ptx: "// text", version: "7.0", kernel: "f")
      let graph = try stream.capture { () throws(CUDAError) in try event.record(in: stream.handle) }
      try graph!.launch(in: stream.handle)
      #expect(try context.memory() == (3_000_000, 9_000_000))
      #expect(memory.byteCount == 1000 && library.name == "f")
      #expect(try event.seconds(since: event) == 0.0025)
    }
    // Only the context itself, which is released by its device.
    #expect(recorder.live.count == 1)
    #expect(
      Set([
        "retain 0", "release 0", "stream 1", "pool type 1 location 1 device 0", "pool attribute 4 2147483648",
        "allocate 1000", "free", "load // text", "kernel f", "unload", "capture 1", "end capture", "launch graph",
      ]).isSubset(of: recorder.calls), "\(recorder.calls)")
  }

  /// Whoever lets go of something need not know of contexts: its own is current meanwhile.
  @Test func givesBackWithItsContextCurrent() throws {
    let recorder = recorder
    let driver = try driver {
      $0.destroyStream = { _ in
        recorder.record("destroy stream"); return 0
      }
      $0.destroyEvent = { _ in
        recorder.record("destroy event"); return 0
      }
      $0.destroyExecutableGraph = { _ in
        recorder.record("destroy graph"); return 0
      }
      $0.destroyPool = { _ in
        recorder.record("destroy pool"); return 0
      }
    }
    do {
      let context = try PrimaryContext(driver.device(0))
      let stream = try Stream(context)
      _ = try Event(context)
      _ = try MemoryPool(context)
      _ = try stream.capture { () throws(CUDAError) in }
    }
    let calls = recorder.calls
    for what in ["destroy stream", "destroy event", "destroy graph", "destroy pool"] {
      let place = try #require(calls.firstIndex(of: what))
      #expect(calls[place - 1] == "push" && calls[place + 1] == "pop", "\(calls)")
    }
  }

  @Test func aContextIsCurrentOnlyWhileItIsUsed() throws {
    let context = try PrimaryContext(driver().device(0))
    recorder.forget()
    _ = sentence { try context.use { () throws(CUDAError) in throw CUDAError.noDevice } }
    #expect(recorder.calls == ["push", "pop"])
  }

  @Test func loadsDuringACaptureWithoutEndingIt() throws {
    let driver = try driver()
    recorder.forget()
    _ = sentence { try driver.duringCaptures { () throws(CUDAError) in throw CUDAError.noDevice } }
    // Relaxed, and back to what it was.
    #expect(recorder.calls == ["capture mode 2", "capture mode 0"])
  }

  @Test func knowsACaptureAndAStreamByTheirNumbers() throws {
    #expect(try driver().number(of: StreamHandle(OpaquePointer(bitPattern: 3))) == 103)
    #expect(try driver().capture(in: StreamHandle(nil)) == 7)
    let idle = try driver { $0.getCaptureInfo = { _, _, _, _, _, _ in 0 } }
    #expect(try idle.capture(in: StreamHandle(nil)) == nil)
  }

  @Test func launchesWithItsArgumentsAndAttributes() throws {
    let driver = try driver()
    let device = try driver.device(0)
    let library = try Library(driver, ptx: "", version: "7.0", kernel: "f")
    try library.allow(dynamicSharedByteCount: 99_000, on: device)
    #expect(recorder.calls.suffix(2) == ["attribute 8 99000", "attribute 9 100"])
    // Less is allowed already; more is asked for.
    let count = recorder.calls.count
    try library.allow(dynamicSharedByteCount: 6000, on: device)
    #expect(recorder.calls.count == count)
    try library.allow(dynamicSharedByteCount: 100_000, on: device)
    #expect(recorder.calls.suffix(2) == ["attribute 8 100000", "attribute 9 100"])
    #expect(try library.resources(on: device).registers == 200 && library.resources(on: device).localBytes == 8)
    recorder.forget()
    var arguments: [UInt8] = [1, 2, 3, 4, 5, 6, 7, 8]
    try arguments.withUnsafeMutableBytes { bytes in
      try library.launch(
        LaunchShape(blocks: 70_000, threads: 128, sharedByteCount: 4096), arguments: bytes, in: StreamHandle(nil))
      try library.launch(
        LaunchShape(
          blocks: 3, threads: 64, attributes: [.programmaticStreamSerialization, .cluster(x: 2, y: 1, z: 1)]),
        arguments: bytes, in: StreamHandle(nil))
    }
    #expect(
      recorder.calls == [
        "launch 70000 1 1 128 1 1 4096", "bytes 1 2 3 4 5 6 7 8",
        "launch 3 1 1 64 1 1 0 attribute 6 1 0 0 attribute 4 2 1 1", "bytes 1 2 3 4 5 6 7 8",
      ])
  }

  @Test func aCaptureEndsAlsoWhereItFails() throws {
    let stream = try Stream(try PrimaryContext(driver().device(0)))
    let text = sentence { _ = try stream.capture { () throws(CUDAError) in throw CUDAError.noDevice } }
    #expect(text == "the NVIDIA driver sees no device." && recorder.calls.last == "end capture")
  }

  @Test func errorsAreSentences() throws {
    #expect(
      sentence {
        _ = try driver {
          $0.getDeviceCount = {
            $0.pointee = 0; return 0
          }
        }
      } == "the NVIDIA driver sees no device.")
    #expect(sentence { _ = try driver { $0.initialize = { _ in 100 } } } == "the NVIDIA driver sees no device.")
    #expect(
      sentence {
        _ = try driver {
          $0.getVersion = {
            $0.pointee = 11080; return 0
          }
        }
      }
        == "the NVIDIA driver must be for CUDA 12.0 or newer (525 or newer); this one is for CUDA 11.8. Update the "
        + "driver."
    )
    #expect(
      sentence { _ = try driver { $0.getDevice = { _, _ in 101 } }.device(0) }
        == "the NVIDIA driver failed in cuDeviceGet (CUDA_ERROR_TEST: it was a test).")
    #expect(
      sentence { _ = try driver().device(1 << 40) }
        == "there is no GPU number 1099511627776; the NVIDIA driver sees 1, numbered from 0.")

    let stream = try Stream(try PrimaryContext(driver().device(0)))
    let full = try driver { $0.allocateFromPool = { _, _, _, _ in 2 } }
    #expect(
      sentence {
        _ = try MemoryPool(PrimaryContext(full.device(0))).allocate(byteCount: 5_000_000_000, in: stream.handle)
      }
        == "5000 MB of GPU memory were asked for, and 3 MB were free. Choose a smaller batch, or free memory.")

    let faulted = try driver { $0.synchronizeStream = { _ in 700 } }
    #expect(
      sentence { try Stream(PrimaryContext(faulted.device(0))).synchronize() }
        == "its context is lost (CUDA_ERROR_TEST: it was a test): some kernel of this process did it, one of this library or of "
        + "another that shares the context, as PyTorch does; the driver does not say which. Start the process anew; "
        + "compute-sanitizer names the kernel.")
    for (status, free, expected) in [
      (Int32(1), 3_000_000, "and 3 MB of GPU memory are free, which is too little for a launch."),
      (1, 1 << 33, "cuLaunchKernelEx"),
      (2, 1 << 33, "and 8590 MB of GPU memory are free"), (9, 3_000_000, "cuLaunchKernelEx"),
    ] {
      let crowded = try driver {
        $0.launch = { _, _, _, _ in status }
        $0.getMemoryInfo = {
          $0.pointee = free; $1.pointee = 1 << 34; return 0
        }
      }
      let library = try Library(crowded, ptx: "x", version: "7.0", kernel: "f")
      let text = sentence {
        try library.launch(
          LaunchShape(blocks: 1, threads: 32), arguments: UnsafeMutableRawBufferPointer(start: nil, count: 0),
          in: StreamHandle(nil))
      }
      #expect(text.contains(expected), "\(text)")
    }

    let refusing = try driver {
      $0.loadLibrary = { _, _, options, values, count, _, _, _ in
        guard count == 5, options![0] == 5, options![1] == 6, Int(bitPattern: values![1]) >= 1024 else { return 1 }
        for (i, byte) in "line 3: unknown instruction".utf8.enumerated() {
          values![0]!.storeBytes(of: byte, toByteOffset: i, as: UInt8.self)
        }
        return 218
      }
    }
    #expect(
      sentence { _ = try Library(refusing, ptx: "x", version: "7.0", kernel: "f") }
        == "the driver refused the kernel f. Its log: line 3: unknown instruction")

    // Warnings are kept, and nothing else of the compiler's log.
    let remarking = try driver {
      $0.loadLibrary = { library, _, options, values, count, _, _, _ in
        library.pointee = OpaquePointer(bitPattern: 0x10)
        guard count == 5, options![2] == 3, options![3] == 4, options![4] == 12 else { return 1 }
        let log = "ptxas info    : (C7510) Potential Performance Loss: serialized\nptxas info    : Used 168 registers\n"
        for (i, byte) in log.utf8.enumerated() { values![2]!.storeBytes(of: byte, toByteOffset: i, as: UInt8.self) }
        return 0
      }
    }
    #expect(
      try Library(remarking, ptx: "x", version: "8.0", kernel: "f").remarks
        == ["(C7510) Potential Performance Loss: serialized"])

    let old = try driver { $0.loadLibrary = { _, _, _, _, _, _, _, _ in 222 } }
    #expect(
      sentence { _ = try Library(old, ptx: "x", version: "8.7", kernel: "f") }
        == "the kernel is PTX 8.7, which this driver (for CUDA 13.0) does not know. Update the driver to one for "
        + "CUDA 12.8 or newer.")
    #expect(
      "\(CUDAError.gpuTooOld(name: "Tesla V100", capability: 70, needed: 80))"
        == "Tesla V100 has compute capability 7.0; the kernels need 8.0 (Ampere) or newer. Use the CPU.")
  }

  /// What a program does next depends on the kind, which the sentence need not be read for.
  @Test func errorsHaveAKind() throws {
    func kind(_ body: () throws(CUDAError) -> Void) -> CUDAError.Kind? {
      do throws(CUDAError) {
        try body()
        return nil
      } catch { return error.kind }
    }
    let stream = try Stream(try PrimaryContext(driver().device(0)))
    func failing(_ status: Int32) throws -> Stream {
      try Stream(PrimaryContext(driver { $0.synchronizeStream = { _ in status } }.device(0)))
    }
    let pool = try MemoryPool(PrimaryContext(driver { $0.allocateFromPool = { _, _, _, _ in 2 } }.device(0)))
    let lost = try failing(719)
    let failed = try failing(1)
    #expect(kind { () throws(CUDAError) in _ = try pool.allocate(byteCount: 100, in: stream.handle) } == .outOfMemory)
    #expect(kind { () throws(CUDAError) in try lost.synchronize() } == .lost)
    #expect(kind { () throws(CUDAError) in try failed.synchronize() } == .other)
    #expect(CUDAError.forked.kind == .lost && CUDAError.noDriver.kind == .unsupported)
  }

  /// A kernel that is missing in its library leaves no library behind.
  @Test func aMissingKernelUnloadsItsLibrary() throws {
    let driver = try driver { $0.getKernel = { _, _, _ in 500 } }
    #expect(sentence { _ = try Library(driver, ptx: "x", version: "7.0", kernel: "f") }.contains("cuLibraryGetKernel"))
    #expect(recorder.calls.last == "unload" && recorder.live.isEmpty)
  }
}
