internal import ArgumentParser
internal import AttentionBenchmarks
internal import AttentionKernels
internal import FlashAttention
internal import PTX

struct BenchDecodeCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "decode",
    abstract: "Measure decoding: a few queries over a long cache, on a GPU.",
    discussion: """
      Without a shape, measures a grid of batches, contexts, query rows and heads at D 128. Each call runs through a CUDA \
      graph, after the L2 cache was filled with something else by reading, which a probe proves; times are medians of events. \
      GB/s count K and V once; splits are the blocks that divide a sequence's keys; the floor is what a probe needs in this run to read as many \
      bytes, and a kernel that does nothing. The error \
      is that of the first sequence's last group of heads beside the 64-bit reference, as a part of what is allowed, for \
      contiguous caches of up to 16384 keys.
      """)

  @Option(help: "Element type: f16 or bf16.")
  var dtype = ScalarType.bf16

  @Option(help: "Element type of the cache: e4m3; that of the queries without.")
  var cacheDtype: ScalarType?

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

  @Option(help: "Keys that each call appends to each sequence.")
  var newKeys = 0

  @Option(help: "Keys of a split, for results that do not depend on the batch; what is fast without.")
  var keysPerSplit: Int?

  @Option(help: "Only the kernels of a family: forward, decode, hopper or hopper-decode. (default: what is fast)")
  var kernels: String?

  @Option(
    help: ArgumentHelp(
      "Compare with others' times of the same cases: lines of JSON with peer, B, Nk, Nq, Hq, Hkv, D and ms_graph.",
      valueName: "FILE"))
  var peers: String?

  @Option(
    help: ArgumentHelp(
      "Change the tiling, for experiments: any of \(TilingOptions.syntaxOfDecoding).", valueName: "CHANGES"))
  var tiling: String?

  @Flag(
    help: """
      Print instead how the work is shared out over the blocks of a GPU, by the rule that the kernel follows, and what a \
      cost model expects; for an H200 where there is no GPU.
      """)
  var explain = false

  @Option(
    help: ArgumentHelp(
      "Lengths for --explain, with commas: sequences after one another. (default: all as long as the context)",
      valueName: "KEYS,..."))
  var lengths: String?

  @Option(help: "Runs of each case; the median counts.")
  var iterations = Self.defaultIterations

  private static let defaultIterations = 21
  private static let mostExplained = 65536

  @Option(help: JSONReport.help)
  var json: JSONReport?

  func validate() throws {
    if iterations < 1 { throw ValidationError("--iterations is \(iterations); it must be at least 1.") }
    if (batch == nil) != (context == nil) {
      throw ValidationError("A shape has both --batch and --context; give both, or none for the grid.")
    }
    if batch == nil && (queries != nil || queryHeads != nil || kvHeads != nil) {
      throw ValidationError(
        "--queries, --query-heads and --kv-heads belong to a shape; give --batch and --context too.")
    }
    for (name, value) in [
      ("--batch", batch), ("--context", context), ("--page-size", pageSize), ("--keys-per-split", keysPerSplit),
    ] {
      if let value, value < 1 { throw ValidationError("\(name) is \(value); it must be at least 1.") }
    }
    if explain && batch == nil { throw ValidationError("--explain is for a shape; give --batch and --context too.") }
    if explain, let batch, batch > Self.mostExplained {
      throw ValidationError(
        "--explain prints a line for each of \(batch) sequences; give a --batch of \(Self.mostExplained) at most.")
    }
    if explain {
      for (name, isGiven) in [
        ("--json", json != nil), ("--peers", peers != nil), ("--iterations", iterations != Self.defaultIterations),
      ] where isGiven {
        throw ValidationError("--explain measures nothing; leave out \(name).")
      }
    }
    if let lengths {
      guard explain else { throw ValidationError("--lengths belongs to --explain; give both.") }
      let numbers = lengths.split(separator: ",").map { Int($0) }
      guard numbers.count == batch, numbers.allSatisfy({ $0.map { (0...context!).contains($0) } ?? false }) else {
        throw ValidationError(
          "--lengths '\(lengths)' is not understood; write \(batch!) numbers from 0 to \(context!), with commas.")
      }
    }
    if newKeys < 0 { throw ValidationError("--new-keys is \(newKeys); it must be 0 or more.") }
    if newKeys > 0 && cacheDtype == .e4m3 {
      throw ValidationError("--new-keys are measured in caches of the queries' type; leave out --cache-dtype.")
    }
  }

  func run() throws {
    let all =
      batch.map {
        [
          DecodeCase(
            batch: $0, context: context!, queries: queries ?? 1, queryHeads: queryHeads ?? 32, kvHeads: kvHeads ?? 8)
        ]
      } ?? DecodeCase.grid
    if explain { return try printShares(of: all[0]) }
    try reportingFileErrors { try json?.check() }
    let others = try peers.map { path in try reportingFileErrors { try PeerTimes(path) } }
    let (cases, plans) = try plans(of: all)
    try reportingFileErrors {
      let bench = try DecodeBench(plans)
      var progress = Progress()
      var results: [DecodeBench.Result] = []
      for (number, (plan, one)) in zip(plans, cases).enumerated() {
        progress.show("bench decode: case \(number + 1) of \(plans.count)")
        var result = try bench.measure(plan, context: one.context, iterations: iterations)
        result.peers = others?.seconds(one, dimension: dim) ?? [:]
        results.append(result)
      }
      progress.clear()
      json.say(Self.table(results, peers: others?.names ?? []))
      for name in others?.names ?? [] {
        let ratios = results.compactMap { r in r.peers[name].map { $0 / median(r.seconds) } }
        if ratios.isEmpty { continue }
        json.say(
          "\(name) needs \(fixed(geometricMean(ratios), 2)) times as long, in the geometric mean of \(ratios.count) cases; "
            + "from \(fixed(ratios.min()!, 2)) to \(fixed(ratios.max()!, 2))")
      }
      if plans.count == 1 { json.say("\n\(plans[0])") }
      json.say(
        "limits: \(fixed(bench.readGigabytesPerSecond, 0)) GB/s of reading, \(duration(bench.emptySeconds)) of an empty kernel; a "
          + "quarter of the L2 cache read again in \(duration(bench.reading.again)), after the eviction in \(duration(bench.reading.evicted))"
      )
      try json?.write(results)
      if !bench.isEvicted {
        printError("Error: the L2 cache was not evicted between the runs; the times are those of a warm cache.")
        throw ExitCode.comparisonFailed
      }
      if let wrong = results.first(where: { $0.floorSeconds > median($0.seconds) }) {
        printError(
          "Error: \(wrong.problem): \(duration(median(wrong.seconds))) are less than the floor, \(duration(wrong.floorSeconds)); the "
            + "measurement is wrong.")
        throw ExitCode.comparisonFailed
      }
      if let wrong = results.first(where: { !(($0.errorRatio ?? 0) <= 1) }) {
        printError("Error: \(wrong.problem): the error is \(fixed(wrong.errorRatio!, 2)) times what is allowed.")
        throw ExitCode.comparisonFailed
      }
    }
  }

  /// Plans of the cases, and for which there is none: of the grid, those that a change of the tiling does not suit are
  /// left out.
  private func plans(of all: [DecodeCase]) throws -> ([DecodeCase], [AttentionPlan]) {
    var (cases, plans) = ([DecodeCase](), [AttentionPlan]())
    for one in all {
      do throws(AttentionError) {
        plans.append(try AttentionPlan(problem(one), device: .gpu, kernels: options))
        cases.append(one)
      } catch {
        if case .tiling = error, tiling != nil, batch == nil {
          printError("left out: \(try problem(one)): \(error)")
        } else {
          try reportingOptionErrors { throw error }
        }
      }
    }
    if plans.isEmpty { throw ValidationError("--tiling suits no case of the grid.") }
    return (cases, plans)
  }

  private func problem(_ one: DecodeCase) throws(AttentionError) -> AttentionProblem {
    try one.problem(
      dtype, cacheType: cacheDtype, dimension: dim, pageSize: pageSize, newKeys: newKeys, keysPerSplit: keysPerSplit)
  }

  /// What the options ask of the kernels.
  private var options: KernelOptions {
    get throws(AttentionError) {
      KernelOptions(
        family: kernels, tiling: try tiling.map { (text) throws(AttentionError) in try TilingChanges(text) })
    }
  }

  private func printShares(of one: DecodeCase) throws {
    let (plan, choice) = try reportingOptionErrors {
      let limits: GPULimits
      do throws(AttentionError) { limits = try GPU.device().limits } catch { limits = .typical(of: .sm90) }
      let problem = try problem(one)
      return (
        try KernelPlan(problem, on: limits, options: options), try Choice(problem, on: limits, options: options)
      )
    }
    let numbers =
      lengths.map { $0.split(separator: ",").map { Int($0)! } }
      ?? [Int](repeating: one.context, count: one.batch)
    print(plan)
    if let shares = plan.launches.sharing?.shares(lengths: numbers) {
      print(
        "\(shares.units) units (key/value heads x blocks of rows) of each sequence; \(shares.busyBlocks) blocks take "
          + "\(shares.tilesOfBlock) tiles of \(shares.tileKeys) keys each")
      print(
        AttentionBenchmarks.table(
          [["sequence", "keys", "tiles", "parts"]]
            + shares.sequences.enumerated().map { ["\($0)", "\($1.keys)", "\($1.tiles)", "\($1.parts)"] }))
      print("cost model, for these lengths: \(shares.cost)")
    }
    print(choice)
  }

  private static func table(_ results: [DecodeBench.Result], peers: [String]) -> String {
    AttentionBenchmarks.table(
      [
        ["B", "context", "rows", "heads", "time", "GB/s", "floor", "of floor", "splits", "error"]
          + peers.flatMap { [$0, "ratio"] }
      ]
        + results.map { (r: DecodeBench.Result) -> [String] in
          let seconds = median(r.seconds)
          return [
            "\(r.batch)", "\(r.context)", "\(r.queries)", "\(r.queryHeads)/\(r.kvHeads)", duration(seconds),
            fixed(r.bytes / seconds / 1e9, 0), duration(r.floorSeconds), percent(r.floorSeconds / seconds),
            "\(r.splits)",
            r.errorRatio.map { fixed($0, 2) } ?? "",
          ]
            + peers.flatMap { name in
              r.peers[name].map { [duration($0), fixed($0 / seconds, 2)] } ?? ["", ""]
            }
        })
  }
}
