internal import ArgumentParser
internal import AttentionBenchmarks
internal import AttentionKernels
internal import FlashAttention

struct BenchBackwardCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "backward",
    abstract: "Measure gradients, after a forward pass that does not count.",
    discussion: """
      Without a shape, measures a grid of 16384 tokens and 2048 columns of heads. TFLOPS count five products for each pair \
      of a query and a key that it sees, whatever a kernel computes again. On a GPU, each run is timed by events after the \
      L2 cache was filled with something else. \(DefaultType.ofBenchmarks)
      """)

  @OptionGroup(title: "Shape") var shape: ShapeOptions

  @OptionGroup(title: "Attention") var options: MaskOptions

  @Option(help: "Where to compute: auto, cpu, gpu, or gpu:1 for another one.")
  var device = Device.auto

  @Option(
    help: ArgumentHelp(
      "Change the GPU's tiling, for experiments: any of \(TilingOptions.syntaxOfGradients).",
      valueName: "CHANGES"))
  var tiling: String?

  @Flag(help: ArgumentHelp(anyOrderHelp))
  var anyOrder = false

  @Option(help: "On a GPU, measure so many of the tilings that the plan considers, its own first. (default: its own)")
  var candidates: Int?

  @Option(help: "Threads on the CPU. (default: all processors)")
  var threads: Int?

  @OptionGroup var vectors: VectorsOption

  @Option(help: "Runs of each case; the median counts.")
  var iterations = 11

  @Option(help: "On a GPU, also compute this often and compare all bits of the gradients.")
  var repeats = 0

  @Option(
    help: ArgumentHelp(
      "Compare with others' times of the same cases: lines of JSON with peer, B, Hq, Nq, D, causal and ms.",
      valueName: "FILE"))
  var peers: String?

  @Option(help: JSONReport.help)
  var json: JSONReport?

  func validate() throws {
    if iterations < 1 { throw ValidationError("--iterations is \(iterations); it must be at least 1.") }
    if let candidates, candidates < 1 { throw ValidationError("--candidates is \(candidates); it must be at least 1.") }
    if let threads, !(1...Machine.processors).contains(threads) {
      throw ValidationError("--threads is \(threads); it must be from 1 to \(Machine.processors), the processors here.")
    }
    if repeats < 0 { throw ValidationError("--repeats is \(repeats); it must be 0 or more.") }
    if device == .cpu && (candidates != nil || repeats > 0 || tiling != nil || anyOrder) {
      throw ValidationError(
        "--candidates, --repeats, --tiling and --any-order are for the kernels of GPUs; leave them out on the CPU.")
    }
    if anyOrder && repeats > 0 {
      throw ValidationError("With --any-order bits may differ from run to run; leave out --repeats.")
    }
    if threads != nil && device.ordinal != nil { throw ValidationError("--threads is for the CPU; leave it out.") }
    try vectors.choose(for: device)
    if candidates != nil && tiling != nil {
      throw ValidationError("--candidates measures tilings, and --tiling gives one; leave out one of them.")
    }
    if options.isGiven && !shape.isGiven {
      throw ValidationError("Masks, scale and softcap belong to a shape; give --queries or others too.")
    }
    if let tiling { try TilingOptions.check(ofGradients: tiling) }
  }

  func run() throws {
    var problems = try reportingOptionErrors {
      shape.isGiven
        ? [
          try shape.problem(
            mask: options.mask, scale: options.scale, softcap: options.softcap,
            defaultType: device.ordinal != nil ? .bf16 : .f32)
        ] : try Self.grid(shape.dtype ?? .bf16)
    }
    if anyOrder { for index in problems.indices { problems[index].gradientOrder = .any } }
    let all = try reportingOptionErrors { try problems.map { try plans(of: $0) } }
    if (candidates != nil || repeats > 0 || anyOrder) && all.contains(where: { $0.contains { $0.gpu == nil } }) {
      throw ValidationError(
        "--candidates, --repeats and --any-order are for the kernels of GPUs, and this runs on the CPU; leave them out."
      )
    }
    try reportingFileErrors { try json?.check() }
    let others = try peers.map { path in try reportingFileErrors { try GradientPeerTimes(path) } }
    for problem in problems { try requireMemory(for: problem) }
    var progress = Progress()
    var results: [GradientBench.Result] = []
    let bench = try reportingFileErrors { try GradientBench(all.lazy.compactMap(\.first?.gpu).first) }
    for (index, plans) in all.enumerated() {
      progress.show("bench backward: case \(index + 1) of \(all.count), \(problems[index])")
      results += try reportingFileErrors { try bench.measure(plans, iterations: iterations, repeats: repeats) }
    }
    progress.clear()
    json.say(table(results, others))
    if all.count == 1, let plan = all[0].first { json.say("\n\(plan)") }
    if let wrong = results.first(where: { $0.areRepeatsEqual == false }) {
      printError("Error: \(wrong.problem): repeated computations differ in some bit.")
      throw ExitCode.comparisonFailed
    }
    if repeats > 0 && results.allSatisfy({ $0.areRepeatsEqual == true }) {
      json.say("\(repeats) repeats of each case gave the same bits.")
    }
    try reportingFileErrors { try json?.write(results) }
  }

  private func plans(of problem: AttentionProblem) throws -> [GradientPlan] {
    let own = try GradientPlan(
      problem, device: device, threads: threads,
      kernels: KernelOptions(tiling: try tiling.map { try TilingChanges($0) }))
    guard let candidates, let gpu = own.gpu else { return [own] }
    return try Choice(problem, on: gpu.limits, families: KernelFamilies.backward).ranked.prefix(candidates).map {
      try GradientPlan(problem, device: device, kernels: KernelOptions(tiling: try TilingChanges($0.tiling.changes)))
    }
  }

  private func table(_ results: [GradientBench.Result], _ peers: GradientPeerTimes?) -> String {
    let names = peers?.names ?? []
    return AttentionBenchmarks.table(
      [
        ["problem", "time", "TFLOPS"] + (candidates == nil ? [] : ["model", "tiling"])
          + names.flatMap { [$0, "ratio"] }
      ]
        + results.map { result in
          let seconds = median(result.seconds)
          return [result.problem, duration(seconds), fixed(result.teraflops, 2)]
            + (candidates == nil ? [] : [result.predictedSeconds.map { duration($0) } ?? "", result.tiling ?? ""])
            + names.flatMap { name in
              peers?.seconds(result, name).map { [duration($0), fixed($0 / seconds, 2)] } ?? ["", ""]
            }
        })
  }

  /// 16384 tokens in all, 2048 columns of heads.
  private static func grid(_ type: ScalarType) throws(AttentionError) -> [AttentionProblem] {
    var problems: [AttentionProblem] = []
    for dimension in [64, 128, 256] {
      for mask in [AttentionMask.none, .causal] {
        for length in [2048, 4096, 8192, 16384] {
          let shape = TensorShape(batch: 16384 / length, heads: 2048 / dimension, length: length, dimension: dimension)
          problems.append(
            try AttentionProblem(queries: shape, keys: shape, values: shape, scalarType: type, mask: mask))
        }
      }
    }
    return problems
  }
}
