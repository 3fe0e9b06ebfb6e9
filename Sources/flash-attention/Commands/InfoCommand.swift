internal import ArgumentParser
internal import AttentionBenchmarks
internal import FlashAttention

struct InfoCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "info", abstract: "Say what this machine offers; good to have in a bug report.")

  @Option(help: "Size of the buffer that the memory probe reads, in MB.")
  var probeMegabytes = 256

  @Option(help: "Of what to speak: auto (all of the machine), cpu, or gpu, whose limits are then measured.")
  var device = Device.auto

  @Option(help: JSONReport.helpWithoutSamples)
  var json: JSONReport?

  func validate() throws {
    let most = Machine.memoryByteCount / 2_000_000
    guard (1...most).contains(probeMegabytes) else {
      throw ValidationError("--probe-megabytes is \(probeMegabytes); it must be from 1 to \(most), half of the memory.")
    }
  }

  func run() throws {
    try reportingFileErrors { try json?.check() }
    if let ordinal = device.ordinal { return try describeGPU(ordinal) }
    let sets = Machine.instructionSets
    let probe = MemoryProbe(byteCount: probeMegabytes * 1_000_000)
    let bandwidth = median((0..<7).map { _ in probe.readGigabytesPerSecond() })
    let gigaflops = Machine.measuredGigaflops()
    json.say(
      fields(
        [
          ("vectors", sets[0] + (sets.count > 1 ? " (also: \(sets.dropFirst().joined(separator: ", ")))" : "")),
          ("threads", "\(Machine.processors)"),
          ("arithmetic", "\(fixed(gigaflops, 0)) GFLOPS of f32 multiply-adds, measured"),
          ("memory", "\(fixed(bandwidth, 1)) GB/s reading \(probeMegabytes) MB, measured"),
        ] + (device == .cpu ? [] : [("GPU", GPUSupport.summary)])))
    try write(
      InfoReport(
        version: "\(Version.current)", vectors: sets, threads: Machine.processors, gigaflops: gigaflops,
        gigabytesPerSecond: bandwidth, gpu: device == .cpu ? nil : GPUSupport.summary))
  }

  private func write(_ report: InfoReport) throws { try reportingFileErrors { try json?.write(report) } }

  private func describeGPU(_ ordinal: Int) throws {
    try reportingFileErrors {
      let gpu = try GPU.device(ordinal)
      let probe = try GPUProbe(gpu)
      let (read, products) = (try probe.readGigabytesPerSecond(), try probe.matrixTeraflops(.bf16))
      let hopper = try HopperProbe.summary(on: gpu)
      json.say(
        fields(
          [
            ("GPU", GPUSupport.summary), ("arithmetic", "\(fixed(products, 0)) TFLOPS of mma.sync on bf16, measured"),
            ("memory", "\(fixed(read, 0)) GB/s reading 2 GB, measured"),
          ] + (hopper.map { [("wgmma", $0)] } ?? [])))
      try write(
        InfoReport(
          version: "\(Version.current)", gigabytesPerSecond: read, gpu: GPUSupport.summary, teraflops: products,
          wgmma: hopper))
    }
  }
}
