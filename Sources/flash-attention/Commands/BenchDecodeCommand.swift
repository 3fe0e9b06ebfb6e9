internal import ArgumentParser
internal import AttentionKernels
internal import FlashAttention
internal import FoundationEssentials
internal import TensorFiles

struct BenchDecodeCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "decode",
    abstract: "Measure decoding: a few queries over a long cache, on a GPU.",
    discussion: """
      Without a shape, measures a grid of batches, contexts, query rows and heads at D 128. Each call runs through a CUDA \
      graph, after the L2 cache was filled with something else by reading; times are medians of events. GB/s count K and V \
      once; splits are the blocks that divide a sequence's keys; the floor is what a probe needs in this run to read as many bytes, and a kernel that does nothing. The error \
      is that of the first sequence's last group of heads beside the 64-bit reference, as a part of what is allowed, for \
      contiguous caches of up to 16384 keys.
      """)

  @Option(help: "Element type: f16 or bf16.")
  var dtype = ScalarType.bf16

  @Option(help: "Sequences. (default: the grid)")
  var batch: Int?

  @Option(help: "Keys of each sequence. (default: the grid)")
  var context: Int?

  @Option(help: "Queries of each sequence. (default: 1)")
  var queries: Int?

  @Option(help: "Query heads. (default: 32)")
  var queryHeads: Int?

  @Option(help: "Key/value heads. (default: 8)")
  var kvHeads: Int?

  @Option(help: "Head dimension.")
  var dim = 128

  @Option(help: "Keys on a page; the cache is contiguous without.")
  var pageSize: Int?

  @Option(
    help: ArgumentHelp(
      "Change the tiling, for experiments: any of \(DecodeTiling.changeSyntax), with commas.", valueName: "CHANGES"))
  var tiling: String?

  @Option(help: "Runs of each case; the median counts.")
  var iterations = 21

  @Option(help: "Also write all samples to this file, as JSON.")
  var json: String?

  func validate() throws {
    if iterations < 1 { throw ValidationError("--iterations is \(iterations); it must be at least 1.") }
    if (batch == nil) != (context == nil) {
      throw ValidationError("A shape has both --batch and --context; give both, or none for the grid.")
    }
    if batch == nil && (queries != nil || queryHeads != nil || kvHeads != nil) {
      throw ValidationError("--queries, --query-heads and --kv-heads belong to a shape; give --batch and --context too.")
    }
    for (name, value) in [("--batch", batch), ("--context", context), ("--page-size", pageSize)] {
      if let value, value < 1 { throw ValidationError("\(name) is \(value); it must be at least 1.") }
    }
  }

  /// A case of the grid.
  struct Case: Encodable {
    let batch, context, queries, queryHeads, kvHeads: Int
  }

  static var grid: [Case] {
    let shapes: [(batch: Int, context: Int, queries: [Int])] = [
      (4, 16384, [1, 4, 8]), (1, 1024, [1]), (1, 8192, [1]), (1, 32768, [1, 4, 8]), (1, 131072, [1]), (8, 1024, [1]),
      (8, 8192, [1, 4, 8]), (8, 32768, [1]), (32, 2048, [1]), (32, 8192, [1, 4, 8]), (128, 1024, [1]),
      (128, 4096, [1]), (128, 16384, [1]),
    ]
    return [(16, 1), (32, 8), (32, 4), (64, 8)].flatMap { heads in
      shapes.flatMap { shape in
        shape.queries.map {
          Case(batch: shape.batch, context: shape.context, queries: $0, queryHeads: heads.0, kvHeads: heads.1)
        }
      }
    }
  }

  func run() throws {
    let cases =
      batch.map {
        [
          Case(
            batch: $0, context: context!, queries: queries ?? 1, queryHeads: queryHeads ?? 32, kvHeads: kvHeads ?? 8)
        ]
      } ?? Self.grid
    if let json { try reportingFileErrors { try OutputFile.check(json) } }
    let plans = try reportingOptionErrors {
      try cases.map { try CachedAttentionPlan(problem($0), device: .gpu, tiling: tiling) }
    }
    try reportingFileErrors {
      let bench = try DecodeBench(plans)
      var progress = Progress()
      var results: [DecodeBench.Result] = []
      for (number, (plan, one)) in zip(plans, cases).enumerated() {
        progress.show("bench decode: case \(number + 1) of \(plans.count)")
        results.append(try bench.measure(plan, context: one.context, iterations: iterations))
      }
      progress.clear()
      print(Self.table(results))
      if plans.count == 1 { print("\n\(plans[0])") }
      print(
        "limits: \(fixed(bench.readGigabytesPerSecond, 0)) GB/s of reading, \(duration(bench.emptySeconds)) of an empty kernel"
      )
      if let json {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        try OutputFile.write([[UInt8](try encoder.encode(results)), [0x0a]], to: json)
      }
      if let wrong = results.first(where: { !(($0.errorRatio ?? 0) <= 1) }) {
        printError("Error: \(wrong.problem): the error is \(fixed(wrong.errorRatio!, 2)) times what is allowed.")
        throw ExitCode.comparisonFailed
      }
    }
  }

  private func problem(_ one: Case) throws(AttentionError) -> CachedAttentionProblem {
    let pages = pageSize.map { (one.context + $0 - 1) / $0 }
    return try CachedAttentionProblem(
      batch: one.batch, queries: one.queries, queryHeads: one.queryHeads, keyValueHeads: one.kvHeads, dimension: dim,
      cache: pages.map { .paged(pages: $0 * one.batch, pageSize: pageSize!, pagesPerSequence: $0) }
        ?? .contiguous(sequences: one.batch, capacity: one.context), scalarType: dtype, mask: .causal)
  }

  private static func table(_ results: [DecodeBench.Result]) -> String {
    flash_attention.table(
      [["B", "context", "rows", "heads", "time", "GB/s", "floor", "of floor", "splits", "error"]]
        + results.map { r in
          let seconds = median(r.seconds)
          return [
            "\(r.batch)", "\(r.context)", "\(r.queries)", "\(r.queryHeads)/\(r.kvHeads)", duration(seconds),
            fixed(r.bytes / seconds / 1e9, 0), duration(r.floorSeconds), percent(r.floorSeconds / seconds), "\(r.splits)",
            r.errorRatio.map { fixed($0, 2) } ?? "",
          ]
        })
  }
}
