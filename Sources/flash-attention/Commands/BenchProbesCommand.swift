internal import ArgumentParser
internal import AttentionBenchmarks
internal import FlashAttention
internal import GPURuntime
internal import PTX

struct BenchProbesCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "probes",
    abstract: "Measure what Hopper's own units give, each by a kernel that does nothing else.",
    discussion: """
      Products by four warps, the copy engine, exponentials, turns, and launches with tensor maps; what kernels are planned \
      on. A rate is the work of some turns over the time that twice as many take more. Cycles are counted by multiply-adds \
      that wait for one another, 4 cycles each, right after the work. Needs compute capability 9.0.
      """)

  @Option(help: "Where to compute: gpu, or gpu:1 for another one.") var device = Device.gpu

  func validate() throws {
    if device.ordinal == nil { throw ValidationError("--device is \(device); these units are a GPU's.") }
  }

  func run() throws {
    try reportingFileErrors {
      let gpu = try GPU.device(device.ordinal ?? 0)
      try gpu.requireHopper("these units")
      print(gpu.name)
      print(fields(try HopperProbe(gpu).lines().map { ($0.what, $0.figure) }))
    }
  }
}

extension GPU {
  /// - Throws: `AttentionError.deviceUnavailable` where `wgmma` is not there.
  func requireHopper(_ what: String) throws(AttentionError) {
    if Target.sm90a.runs(onCapability: capability) { return }
    throw .deviceUnavailable(
      device: "gpu:\(ordinal)",
      reason: "\(name) has compute capability \(capability / 10).\(capability % 10), and \(what) need 9.0")
  }
}
