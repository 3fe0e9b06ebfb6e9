internal import ArgumentParser
internal import AttentionBenchmarks
internal import FlashAttention

struct TuneDecodeCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "decode",
    abstract: "Measure decoding with splits of every length on this GPU, beside what the plan makes of the lengths.",
    discussion: """
      Over the grid of bench decode: each case as the plan shares it out, and with splits of 64, 128, 256, ... keys up to the \
      context (--keys-per-split of bench decode). A line for each case, with the fastest length of a split; a ratio above 1 \
      says how much the plan loses by its own choice.
      """)

  @Option(help: "Element type: f16 or bf16.")
  var dtype = ScalarType.bf16

  @Option(help: "Only cases of so many query heads. (default: all)")
  var queryHeads: Int?

  @Option(help: "Runs of each choice; the median counts.")
  var iterations = 11

  func validate() throws {
    if iterations < 1 { throw ValidationError("--iterations is \(iterations); it must be at least 1.") }
  }

  func run() throws {
    let cases = DecodeCase.grid.filter { queryHeads == nil || $0.queryHeads == queryHeads }
    if cases.isEmpty {
      throw ValidationError("The grid has no case of \(queryHeads!) query heads; it has 16, 32 and 64.")
    }
    func plan(_ one: DecodeCase, _ keysPerSplit: Int?) throws(AttentionError) -> AttentionPlan {
      try AttentionPlan(try one.problem(dtype, keysPerSplit: keysPerSplit), device: .gpu)
    }
    let plans = try reportingOptionErrors { try cases.map { try plan($0, nil) } }
    try reportingFileErrors {
      let bench = try DecodeBench(plans)
      var progress = Progress()
      var (rows, ratios) = ([[String]](), [Double]())
      for (number, (one, own)) in zip(cases, plans).enumerated() {
        progress.show("tune decode: case \(number + 1) of \(cases.count)")
        let chosen = try bench.measure(own, context: one.context, iterations: iterations, isChecked: false)
        var best: (seconds: Double, keys: Int, splits: Int)?
        for keys in sequence(first: 64, next: { $0 < one.context ? 2 * $0 : nil }) {
          let result = try bench.measure(
            try plan(one, keys), context: one.context, iterations: iterations, isChecked: false)
          let seconds = median(result.seconds)
          if seconds < best?.seconds ?? .infinity { best = (seconds, keys, result.splits) }
        }
        let ratio = median(chosen.seconds) / best!.seconds
        ratios.append(ratio)
        rows.append([
          "\(one.batch)", "\(one.context)", "\(one.queries)", "\(one.queryHeads)/\(one.kvHeads)",
          duration(median(chosen.seconds)), "\(chosen.splits)", duration(best!.seconds), "\(best!.splits)",
          "\(best!.keys)",
          fixed(ratio, 2),
        ])
      }
      progress.clear()
      print(
        table([["B", "context", "rows", "heads", "plan", "splits", "fastest", "splits", "keys each", "ratio"]] + rows))
      print(
        "The plan needs \(fixed(geometricMean(ratios), 3)) times as long as the fastest split length, in the geometric mean of "
          + "\(ratios.count) cases; \(fixed(ratios.max()!, 2)) times at the most.")
    }
  }
}
