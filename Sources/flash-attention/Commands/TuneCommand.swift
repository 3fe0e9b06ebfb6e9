internal import ArgumentParser
internal import AttentionBenchmarks
internal import AttentionKernels
internal import AttentionVerification
internal import FlashAttention
internal import PTX

struct TuneCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "tune", abstract: "Measure what a plan could choose on this GPU, beside what it chooses.",
    subcommands: [TuneAttentionCommand.self, TuneDecodeCommand.self], defaultSubcommand: TuneAttentionCommand.self)
}

struct TuneAttentionCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "attention",
    abstract: "Measure every tiling that there is for a shape on this GPU; the same as tune alone.",
    discussion: """
      The plan's choice is the first of a list that a cost model ranks; emit --explain prints the list. This command \
      measures the list instead: a line for each tiling, the fastest first, with what the model predicted for it. Any \
      line's tiling can be used by --tiling. \(DefaultType.ofTuning)
      """)

  @OptionGroup(title: "Shape") var shape: ShapeOptions

  @OptionGroup(title: "Attention") var options: MaskOptions

  @Option(
    help: "Only tilings of this rung of the ladder, such as split-q-shared-kv. (default: those that win somewhere)")
  var rung: Rung?

  @Option(help: "How many tilings at most: those that the model ranks first.")
  var candidates = 100

  @Option(help: "Runs of each tiling; the median counts.")
  var iterations = 7

  @Option(
    help:
      "Only tilings of this family of kernels: forward, decode, hopper or hopper-decode. (default: that of the plan)")
  var family: String?

  @Option(help: JSONReport.help)
  var json: JSONReport?

  func validate() throws {
    if rung != nil && family != nil && family != ForwardFamily.name {
      throw ValidationError("--rung belongs to the forward kernels; leave out --family \(family!).")
    }
    if candidates < 1 { throw ValidationError("--candidates is \(candidates); it must be at least 1.") }
    if iterations < 1 { throw ValidationError("--iterations is \(iterations); it must be at least 1.") }
  }

  func run() throws {
    let problem = try reportingOptionErrors {
      try shape.problem(mask: options.mask, scale: options.scale, softcap: options.softcap, defaultType: .bf16)
    }
    try requireMemory(for: problem)
    try reportingFileErrors { try json?.check() }
    let gpu = try reportingFileErrors { try GPU.device() }
    let chosen = try reportingOptionErrors { try AttentionPlan(problem, device: .gpu) }
    let choice = try reportingOptionErrors {
      try rung.map {
        Choice(problem, on: gpu.limits, among: ForwardFamily.tilings(of: $0), of: ForwardFamily.self)
      }
        ?? Choice(
          problem, on: gpu.limits, options: KernelOptions(family: family ?? chosen.kernelPlan?.family, tiling: nil))
    }
    let ranked = choice.ranked.prefix(candidates)
    let plans = try reportingOptionErrors {
      try ranked.map {
        try AttentionPlan(
          problem, device: .gpu,
          kernels: KernelOptions(family: $0.family, tiling: try TilingChanges($0.tiling.changes)))
      }
    }
    try reportingFileErrors {
      try eachAtOnce(plans.count) { index throws(AttentionError) in try plans[index].prepare() }
    }
    let inputs = try ProblemInputs(problem)
    var progress = Progress()
    let bench = try reportingFileErrors { try GPUBench(gpu) }
    var results: [Result] = []
    for (number, (plan, candidate)) in zip(plans, ranked).enumerated() {
      progress.show("tune: tiling \(number + 1) of \(plans.count)")
      let measurement = try reportingFileErrors {
        try bench.measure(plan, inputs, iterations: iterations)
      }
      results.append(Result(candidate, plan, measurement, rank: number + 1))
    }
    progress.clear()
    json.say("\(problem), on \(gpu.name)")
    let fastest = results.sorted { median($0.seconds) < median($1.seconds) }
    json.say(
      table(
        [["tiling", "time", "TFLOPS", "registers", "model's rank"]]
          + fastest.map { result in
            [
              result.tiling, duration(median(result.seconds)), fixed(problem.flops / median(result.seconds) / 1e12, 1),
              result.registers.map { "\($0)" + (result.spilledBytes == 0 ? "" : ", spills") } ?? "", "\(result.rank)",
            ]
          }))
    if let own = results.first(where: { $0.isChosen(by: chosen) }) {
      let ratio = median(own.seconds) / median(fastest[0].seconds)
      json.say("The plan chooses \(own.tiling): \(fixed(ratio, 3)) times the time of the fastest.")
    } else {
      json.say("The plan chooses another rung or family.")
    }
    try reportingFileErrors { try json?.write(results) }
  }

  /// A tiling, measured.
  private struct Result: Encodable {
    let problem: String
    let dimension: Int
    let tiling: String
    let rank: Int
    let seconds: [Double]
    let predictedSeconds: Double
    let terms: [String: Double]
    let registers, spilledBytes: Int?

    init(_ candidate: Choice.Candidate, _ plan: AttentionPlan, _ measurement: Measurement, rank: Int) {
      problem = "\(plan.problem)"
      dimension = plan.problem.dimension
      tiling = candidate.tiling.changes
      self.rank = rank
      seconds = measurement.seconds
      predictedSeconds = candidate.cost.seconds
      terms = Dictionary(uniqueKeysWithValues: candidate.cost.terms.map { ($0.name, $0.seconds) })
      (registers, spilledBytes) = (plan.compiled?.registers, plan.compiled?.spilledBytes)
    }

    func isChosen(by plan: AttentionPlan) -> Bool { plan.kernelPlan?.tiling.changes == tiling }
  }
}
