internal import ArgumentParser
internal import AttentionBenchmarks
internal import AttentionVerification
internal import FlashAttention

struct BenchCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "bench", abstract: "Measure speed, beside what this machine can do.",
    discussion: """
      Alone it is bench attention, whose options it takes: see flash-attention help bench attention. The kernels of decode, gemm and \
      probes need a GPU.
      """,
    subcommands: [
      BenchAttentionCommand.self, BenchBackwardCommand.self, BenchVariantsCommand.self, BenchDecodeCommand.self,
      BenchEmulatorCommand.self, BenchGEMMCommand.self, BenchProbesCommand.self,
    ],
    defaultSubcommand: BenchAttentionCommand.self)
}

struct BenchAttentionCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "attention",
    abstract: "Measure attention; the same as bench alone.",
    discussion: """
      Without a shape, measures a grid of prefill and decode. Options of the shape take several values, with commas: all \
      combinations are measured, and a line is printed when its case is. GFLOPS count 2 (D + Dv) for each pair of a query and a \
      key that it sees; GB/s count Q, K, V and the output once. The percentages are of what small probes measure in \
      the same run: multiply-adds on registers, and reading a buffer of as many bytes, in turns with the computation; \
      on a GPU, products on tensor cores (mma.sync, or wgmma where the plan's kernels use it), and reading 2 GB. There, each run is timed by events after the L2 \
      cache was filled with something else, and all behind 0.15 s of the same, in which clocks settle; `host` is what putting a launch into a stream costs the processor. \
      \(DefaultType.ofBenchmarks)
      """)

  @OptionGroup(title: "Shape") var shape: SweepOptions

  @OptionGroup(title: "Attention") var options: MaskOptions

  @Flag(help: "Each shape without its mask, too.")
  var andUnmasked = false

  @Option(help: "Where to compute: auto, cpu, gpu, or gpu:1 for another one.")
  var device = Device.auto

  @OptionGroup var vectors: VectorsOption

  @OptionGroup var tiling: TilingOptions

  @Option(help: "Threads on the CPU. (default: all processors)")
  var threads: Int?

  @Option(help: "Runs of each case; the median counts.")
  var iterations = 11

  @Option(help: "On a GPU, also compute this often and compare all bits of the outputs.")
  var repeats = 0

  @Option(help: JSONReport.help)
  var json: JSONReport?

  func validate() throws {
    if iterations < 1 { throw ValidationError("--iterations is \(iterations); it must be at least 1.") }
    if andUnmasked && options.mask == .none {
      throw ValidationError("--and-unmasked is for a mask; give --causal, --window or --chunk too.")
    }
    if let threads, !(1...Machine.processors).contains(threads) {
      throw ValidationError("--threads is \(threads); it must be from 1 to \(Machine.processors), the processors here.")
    }
    try vectors.choose(for: device)
    if options.isGiven && !shape.isGiven {
      throw ValidationError("Masks, scale and softcap belong to a shape; give --queries or others too.")
    }
  }

  func run() throws {
    let problems = try reportingOptionErrors {
      shape.isGiven
        ? try shape.shapes().flatMap { shape in
          try (andUnmasked ? [.none, options.mask] : [options.mask]).map {
            try shape.problem(
              mask: $0, scale: options.scale, softcap: options.softcap,
              defaultType: device.ordinal != nil ? .bf16 : .f32)
          }
        }
        : device.ordinal != nil
          ? try (shape.dtype?.all ?? [.bf16]).flatMap { try BenchGrid.onGPU($0) }
          : try BenchGrid.problems(shape.dtype?.all ?? [.f32, .bf16])
    }
    let plans = try reportingOptionErrors {
      try problems.map { try AttentionPlan($0, device: device, threads: threads, kernels: tiling.options) }
    }
    try reportingFileErrors { try json?.check() }
    for problem in problems { try requireMemory(for: problem) }
    var progress = Progress()
    var measurements: [Measurement] = []
    let gpu = try plans.lazy.compactMap(\.gpu).first.map { gpu in try reportingFileErrors { try GPUBench(gpu) } }
    let cpu = CPUBench(threads: threads)
    let header =
      ["problem", "time", "GFLOPS", "of peak", "GB/s", "of reading"] + (gpu == nil ? [] : ["first", "host"])
    let widths = [problems.map { "\($0)".count }.max() ?? 0] + header.dropFirst().map { max($0.count, 8) }
    json.say(line(header, widths: widths))
    var last: (problem: AttentionProblem, inputs: ProblemInputs)?
    for (index, plan) in plans.enumerated() {
      progress.show("bench: case \(index + 1) of \(plans.count), \(plan.problem)")
      // Shapes that are alike have the same numbers, which take longer to make than to multiply.
      // Never two at once: there is memory for one.
      if last?.problem.hasInputs(of: plan.problem) == false { last = nil }
      let inputs = try last?.inputs ?? ProblemInputs(plan.problem)
      last = (plan.problem, inputs)
      let measurement = try reportingFileErrors {
        plan.gpu == nil
          ? try cpu.measure(plan, inputs, iterations: iterations)
          : try gpu!.measure(plan, inputs, iterations: iterations, hostCalls: 200, repeats: repeats)
      }
      measurements.append(measurement)
      progress.clear()
      json.say(line(Self.row(measurement), widths: widths))
    }
    if plans.count == 1 { json.say("\n\(plans[0])") }
    if let gpu { json.say("limits: \(gpu.limits)") }
    if let differing = measurements.first(where: { $0.gpu?.areRepeatsEqual == false }) {
      printError("Error: \(differing.problem): repeated computations differ in some bit.")
      throw ExitCode.comparisonFailed
    }
    if let wrong = measurements.first(where: { $0.gpu != nil && $0.exceedsALimit }) {
      printError("Error: \(wrong.problem): faster than the probes say is possible; the measurement is wrong.")
      throw ExitCode.comparisonFailed
    }
    if gpu != nil && repeats > 0 { json.say("\(repeats) repeats of each case gave the same bits.") }
    let report = Report(
      instructionSet: Machine.instructionSet, threads: threads ?? Machine.processors, cases: measurements)
    try reportingFileErrors { try json?.write(report) }
  }

  private static func row(_ m: Measurement) -> [String] {
    let seconds = median(m.seconds)
    let (gigaflops, gigabytes) = (m.flops / seconds / 1e9, m.bytes / seconds / 1e9)
    return [
      m.problem, duration(seconds), fixed(gigaflops, 1), percent(gigaflops / m.peakGigaflops), fixed(gigabytes, 2),
      percent(gigabytes / m.readGigabytesPerSecond),
    ] + (m.gpu.map { [duration($0.prepareSeconds), duration($0.hostSeconds)] } ?? [])
  }

  private struct Report: Encodable {
    let instructionSet: String
    let threads: Int
    let cases: [Measurement]
  }
}

extension AttentionProblem {
  /// Whether its inputs have the shapes and the type of another's.
  fileprivate func hasInputs(of other: AttentionProblem) -> Bool {
    (queryShape, keyShape, valueShape) == (other.queryShape, other.keyShape, other.valueShape)
      && scalarType == other.scalarType
  }
}

/// What `bench` measures without a shape: prefill at three lengths, and one query over long caches.
enum BenchGrid {
  static func problems(_ types: [ScalarType]) throws(AttentionError) -> [AttentionProblem] {
    var problems: [AttentionProblem] = []
    for type in types {
      for (length, dimension) in [(512, 64), (2048, 64), (2048, 128), (4096, 128)] {
        for mask in [AttentionMask.none, .causal] {
          let shape = TensorShape(batch: 1, heads: 8, length: length, dimension: dimension)
          problems.append(
            try AttentionProblem(queries: shape, keys: shape, values: shape, scalarType: type, mask: mask))
        }
      }
      for (batch, keys) in [(1, 1024), (1, 16384), (4, 16384)] {
        let cache = TensorShape(batch: batch, heads: 8, length: keys, dimension: 128)
        problems.append(
          try AttentionProblem(
            queries: TensorShape(batch: batch, heads: 32, length: 1, dimension: 128), keys: cache, values: cache,
            scalarType: type))
      }
    }
    return problems
  }

  /// Prefill on a GPU: 16384 tokens in all, 2048 columns of heads.
  static func onGPU(_ type: ScalarType) throws(AttentionError) -> [AttentionProblem] {
    var problems: [AttentionProblem] = []
    for dimension in [64, 128, 256] {
      for mask in [AttentionMask.none, .causal] {
        for length in [512, 2048, 8192] {
          let shape = TensorShape(
            batch: 16384 / length, heads: 2048 / dimension, length: length, dimension: dimension)
          problems.append(
            try AttentionProblem(queries: shape, keys: shape, values: shape, scalarType: type, mask: mask))
        }
      }
    }
    return problems
  }
}
