internal import ArgumentParser
internal import AttentionBenchmarks
internal import AttentionKernels
internal import AttentionVerification
internal import FlashAttention

struct TuneDecodeCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "decode",
    abstract: "Measure decoding by tilings that rank high and splits of every length, beside the plan's choice.",
    discussion: """
      Over the grid of bench decode: each case as the plan has it, by the tilings of all families that the cost model ranks \
      first (--kernels and --tiling of bench decode), and with splits of 64, 128, 256, ... keys up to the context \
      (--keys-per-split). A line for each case, with the fastest tiling and length; a ratio above 1 says how much the plan \
      loses by its own choice, and how noisy the times are: of so many, one is fast by chance. With --all, a line for each \
      of these tilings instead, beside what the cost model expects, and no splits: what the model's constants are fitted to.
      """)

  @Option(help: "Element type: f16 or bf16.")
  var dtype = ScalarType.bf16

  @Option(help: "Element type of the cache: e4m3; that of the queries without.")
  var cacheDtype: ScalarType?

  @Option(help: "Only cases of so many query heads. (default: all)")
  var queryHeads: Int?

  @Option(help: "Only cases of so many queries. (default: all)")
  var queries: Int?

  @Flag(name: .customLong("all"), help: "Print each tiling's time and the cost model's.")
  var printsAll = false

  @Option(help: "How many tilings of a case at most: those that the model ranks first.")
  var candidates = 8

  @Option(help: "Runs of each choice; the median counts.")
  var iterations = 11

  func validate() throws {
    if iterations < 1 { throw ValidationError("--iterations is \(iterations); it must be at least 1.") }
    if candidates < 1 { throw ValidationError("--candidates is \(candidates); it must be at least 1.") }
  }

  /// A case: the plan's own choice, others, and splits of other lengths.
  private struct Choices {
    let one: DecodeCase
    let own: AttentionPlan
    let others: [(name: String, expected: Double, plan: AttentionPlan)]
    let splits: [(keys: Int, plan: AttentionPlan)]
  }

  func run() throws {
    let cases = DecodeCase.grid.filter {
      (queryHeads ?? $0.queryHeads, queries ?? $0.queries) == ($0.queryHeads, $0.queries)
    }
    if cases.isEmpty {
      let asked = [queryHeads.map { "\($0) query heads" }, queries.map { "\($0) queries" }].compactMap(\.self)
      func all(_ count: (DecodeCase) -> Int) -> String {
        Set(DecodeCase.grid.map(count)).sorted().map(String.init).joined(separator: ", ")
      }
      throw ValidationError(
        "The grid has no case of \(asked.joined(separator: " and ")); it has \(all(\.queryHeads)) query heads, and \(all(\.queries)) "
          + "queries.")
    }
    let gpu = try reportingFileErrors { try GPU.device() }
    let all = try reportingOptionErrors { try cases.map { try choices($0, on: gpu.limits) } }
    try reportingFileErrors {
      let plans = all.flatMap { [$0.own] + $0.others.map(\.plan) + $0.splits.map(\.plan) }
      try eachAtOnce(plans.count) { index throws(AttentionError) in try plans[index].prepare() }
      let bench = try DecodeBench(all.map(\.own))
      var progress = Progress()
      var (rows, ratios) = ([[String]](), [Double]())
      for (number, choices) in all.enumerated() {
        progress.show("tune decode: case \(number + 1) of \(cases.count)")
        let one = choices.one
        let name = ["\(one.batch)", "\(one.context)", "\(one.queries)", "\(one.queryHeads)/\(one.kvHeads)"]
        func measure(_ plan: AttentionPlan) throws -> DecodeBench.Result {
          try bench.measure(plan, context: one.context, iterations: iterations, isChecked: false)
        }
        if printsAll {
          rows += try choices.others.map {
            name + [duration(median(try measure($0.plan).seconds)), duration($0.expected), $0.name]
          }
          continue
        }
        let own = try measure(choices.own)
        let seconds = median(own.seconds)
        let tiling = try choices.others.map { (name: $0.name, seconds: median(try measure($0.plan).seconds)) }
          .min { $0.seconds < $1.seconds }!
        let split = try choices.splits.map { (keys: $0.keys, seconds: median(try measure($0.plan).seconds)) }
          .min { $0.seconds < $1.seconds }!
        let ratio = seconds / min(tiling.seconds, split.seconds, seconds)
        ratios.append(ratio)
        rows.append(
          name + [
            duration(seconds), "\(own.splits)", duration(tiling.seconds), duration(split.seconds), "\(split.keys)",
            fixed(ratio, 2), tiling.name,
          ])
      }
      progress.clear()
      let columns =
        printsAll
        ? ["time", "expected", "tiling"]
        : ["plan", "splits", "fastest tiling", "fastest splits", "keys each", "ratio", "tiling"]
      print(table([["B", "context", "queries", "heads"] + columns] + rows))
      if printsAll { return }
      print(
        "The plan needs \(fixed(geometricMean(ratios), 3)) times as long as the fastest, in the geometric mean of \(ratios.count) "
          + "cases; \(fixed(ratios.max()!, 2)) times at the most.")
    }
  }

  private func choices(_ one: DecodeCase, on gpu: GPULimits) throws(AttentionError) -> Choices {
    func plan(_ keysPerSplit: Int?, _ options: KernelOptions = KernelOptions()) throws(AttentionError) -> AttentionPlan
    {
      let problem = try one.problem(dtype, cacheType: cacheDtype, keysPerSplit: keysPerSplit)
      return try AttentionPlan(problem, device: .gpu, kernels: options)
    }
    let ranked = try Choice(try one.problem(dtype, cacheType: cacheDtype), on: gpu).ranked.prefix(candidates)
    var choices: (others: [(String, Double, AttentionPlan)], splits: [(Int, AttentionPlan)]) = ([], [])
    for candidate in ranked {
      let changes = try TilingChanges(candidate.tiling.changes)
      choices.others.append(
        (
          "\(candidate.family): \(changes)", candidate.cost.seconds,
          try plan(nil, KernelOptions(family: candidate.family, tiling: changes))
        ))
    }
    if !printsAll {
      for keys in sequence(first: 64, next: { $0 < one.context ? 2 * $0 : nil }) {
        choices.splits.append((keys, try plan(keys)))
      }
    }
    return Choices(one: one, own: try plan(nil), others: choices.others, splits: choices.splits)
  }
}
