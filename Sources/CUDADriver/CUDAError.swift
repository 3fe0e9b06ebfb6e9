/// Why the GPU cannot do what was asked, as a sentence.
package enum CUDAError: Error, Hashable, Sendable {
  /// The driver's library is not there.
  case noDriver
  /// The driver sees no GPU.
  case noDevice
  /// There are fewer GPUs.
  case noSuchDevice(ordinal: Int, count: Int)
  /// The driver is older than CUDA 12.0; `version` is major * 1000 + minor * 10, nil where even that is unknown.
  case driverTooOld(version: Int?)
  /// A function of CUDA 12.0 is missing.
  case missingFunction(String)
  /// The GPU is older than the kernels.
  case gpuTooOld(name: String, capability: Int, needed: Int)
  /// The driver does not know the PTX version.
  case ptxTooNew(needed: String, driverVersion: Int)
  /// The driver's assembler refused the PTX; `log` is what it said.
  case rejectedPTX(kernel: String, log: String)
  /// The copy engine takes no such tensor.
  case impossibleTensorMap(kernel: String, reason: String)
  /// There is not enough memory; `free` is what there was.
  case outOfMemory(asked: Int, free: Int)
  /// The process was forked from one that used the driver.
  case forked
  /// A launch failed, and so little memory is free that this is why; `free` in bytes.
  case noMemoryToLaunch(kernel: String, name: String, free: Int)
  /// A kernel did something forbidden; the context is lost.
  case faulted(name: String, meaning: String)
  /// A call failed.
  case failed(call: String, name: String, meaning: String)
}

extension CUDAError {
  /// What a program would do about it.
  package enum Kind: Hashable, Sendable { case outOfMemory, lost, unsupported, other }

  /// What a program would do about it.
  package var kind: Kind {
    switch self {
    case .outOfMemory, .noMemoryToLaunch: .outOfMemory
    case .faulted, .forked: .lost
    case .noDriver, .noDevice, .noSuchDevice, .driverTooOld, .missingFunction, .gpuTooOld, .ptxTooNew, .rejectedPTX:
      .unsupported
    case .impossibleTensorMap, .failed: .other
    }
  }
}

extension CUDAError: CustomStringConvertible {
  /// The sentence that a user reads.
  package var description: String {
    switch self {
    case .noDriver:
      return "no NVIDIA driver was found (libcuda.so.1 could not be opened)."
    case .noDevice:
      return "the NVIDIA driver sees no device."
    case .noSuchDevice(let ordinal, let count):
      return "there is no GPU number \(ordinal); the NVIDIA driver sees \(count), numbered from 0."
    case .driverTooOld(let version):
      let found = version.map { "this one is for CUDA \(Self.text($0))" } ?? "this one is older"
      return "the NVIDIA driver must be for CUDA 12.0 or newer (525 or newer); \(found). Update the driver."
    case .missingFunction(let name):
      return "the NVIDIA driver has no function \(name); it must be for CUDA 12.0 or newer. Update the driver."
    case .gpuTooOld(let name, let capability, let needed):
      return
        "\(name) has compute capability \(Self.capability(capability)); the kernels need \(Self.capability(needed)) "
        + "(Ampere) or newer. Use the CPU."
    case .ptxTooNew(let needed, let driverVersion):
      let first = Self.firstCUDA(withPTX: needed).map { " to one for CUDA \($0) or newer" } ?? ""
      return
        "the kernel is PTX \(needed), which this driver (for CUDA \(Self.text(driverVersion))) does not know. Update "
        + "the driver\(first)."
    case .rejectedPTX(let kernel, let log):
      return "the driver refused the kernel \(kernel). Its log: \(log.isEmpty ? "(empty)" : log)"
    case .impossibleTensorMap(let kernel, let reason):
      return "the kernel \(kernel) cannot be given this tensor. \(reason)"
    case .outOfMemory(let asked, let free):
      return "\(Self.megabytes(asked)) of GPU memory were asked for, and \(Self.megabytes(free)) were free. Choose a "
        + "smaller batch, or free memory."
    case .forked:
      return
        "this process was forked from one that used the GPU, and CUDA works in none of these. Start it anew: in Python by "
        + "multiprocessing's \"spawn\"."
    case .noMemoryToLaunch(let kernel, let name, let free):
      return
        "the driver could not launch \(kernel) (\(name)), and \(Self.megabytes(free)) of GPU memory are free, which is too little "
        + "for a launch. Free memory; other processes on the GPU count."
    case .faulted(let name, let meaning):
      return
        "its context is lost (\(name): \(meaning)): some kernel of this process did it, one of this library or of another that "
        + "shares the context, as PyTorch does; the driver does not say which. Start the process anew; compute-sanitizer names "
        + "the kernel."
    case .failed(let call, let name, let meaning):
      return "the NVIDIA driver failed in \(call) (\(name): \(meaning))."
    }
  }

  /// The first CUDA that knows a PTX version. Source: PTX ISA, release notes.
  private static func firstCUDA(withPTX version: String) -> String? {
    let parts = version.split(separator: ".").compactMap { Int($0) }
    guard parts.count == 2 else { return nil }
    switch (parts[0], parts[1]) {
    case (7, let minor): return "11.\(minor)"
    // There is no PTX of CUDA 12.6.
    case (8, let minor): return "12.\(minor + (minor > 5 ? 1 : 0))"
    case (9, let minor): return "13.\(minor)"
    default: return nil
    }
  }

  private static func text(_ version: Int) -> String { "\(version / 1000).\(version % 1000 / 10)" }
  private static func capability(_ number: Int) -> String { "\(number / 10).\(number % 10)" }
  private static func megabytes(_ bytes: Int) -> String { "\((bytes + 999_999) / 1_000_000) MB" }
}

extension DriverFunctions {
  private static let outOfMemory: Status = 2
  private static let noDevice: Status = 100
  /// Errors after which the context is lost: illegal address, launch timeout, assertion, hardware exceptions.
  private static let faults: Set<Status> = [700, 702, 710, 714, 715, 716, 717, 718, 719, 214, 220]

  /// Turns what a call returned into an error.
  package func check(_ status: Status, _ call: String) throws(CUDAError) {
    if status != 0 { throw error(status, call) }
  }

  private func error(_ status: Status, _ call: String) -> CUDAError {
    if status == Self.noDevice { return .noDevice }
    let (name, meaning) = (name(of: status), text(getErrorString, status) ?? "no description")
    return Self.faults.contains(status)
      ? .faulted(name: name, meaning: meaning) : .failed(call: call, name: name, meaning: meaning)
  }

  /// As `check`, of a launch, which fails in several ways where there is no memory.
  func checkLaunch(_ status: Status, kernel: String) throws(CUDAError) {
    let enough = 64 << 20
    var (free, total) = (0, 0)
    // CUDA_ERROR_INVALID_VALUE, _OUT_OF_MEMORY, _LAUNCH_OUT_OF_RESOURCES
    if [1, Self.outOfMemory, 701].contains(status), getMemoryInfo(&free, &total) == 0,
      free < enough || status == Self.outOfMemory
    {
      throw .noMemoryToLaunch(kernel: kernel, name: name(of: status), free: free)
    }
    try check(status, "cuLaunchKernelEx")
  }

  private func text(_ get: (Status, Out<UnsafePointer<CChar>?>) -> Status, _ status: Status) -> String? {
    var pointer: UnsafePointer<CChar>?
    return get(status, &pointer) == 0 ? pointer.map { String(cString: $0) } : nil
  }

  private func name(of status: Status) -> String { text(getErrorName, status) ?? "error \(status)" }

  /// As `check`, where memory is asked for.
  func checkAllocation(_ status: Status, byteCount: Int, _ call: String) throws(CUDAError) {
    guard status == Self.outOfMemory else { return try check(status, call) }
    var (free, total) = (0, 0)
    _ = getMemoryInfo(&free, &total)
    throw .outOfMemory(asked: byteCount, free: free)
  }
}
