package import FlashAttention

/// A random call over a cache, wholly determined by a seed and its number.
package struct CacheCase: Sendable {
  package let seed: UInt64
  package let number: Int
  package let scenario: CacheScenario
  package var problem: AttentionProblem { scenario.problem }

  /// - Parameters:
  ///   - kernels: what a kernel is made for is drawn by `number % kernels`, everything else by `number`.
  ///   - isForGPU: leaves out what only the CPU takes: f32, and over e4m3 caches head dimensions that are no multiple
  ///     of 16.
  package init(seed: UInt64, number: Int, kernels: Int, isForGPU: Bool) {
    (self.seed, self.number) = (seed, number)
    // What a kernel is made for.
    var kernel = RandomSource(seed: seed, stream: UInt64(number % kernels) | 1 << 42)
    let type: ScalarType = kernel.pick(isForGPU ? [.bf16, .f16] : [.bf16, .f16, .f32])
    let cacheType: ScalarType = kernel.pick([type, type, .e4m3])
    let queryType: ScalarType = cacheType == .e4m3 ? kernel.pick([type, type, .e4m3]) : type
    let group = kernel.pick([1, 1, 2, 3, 4, 5, 7, 8, 16])
    let queries = kernel.pick([1, 1, 1, 2, 3, 4, 8, 13, 70, 150])
    let hasPackedQueries = kernel.int(0...3) == 0
    var dimension = kernel.pick([8, 24, 64, 64, 72, 96, 128, 128, 160, 256])
    var valueDimension = kernel.int(0...3) == 0 ? 8 * kernel.int(1...32) : dimension
    if cacheType == .e4m3 {
      (dimension, valueDimension) = ((dimension + 15) / 16 * 16, (valueDimension + 15) / 16 * 16)
    }
    let pageSize = kernel.pick([nil, nil, 1, 3, 16, 16, 48, 64, 100])
    let hasPackedKeys = pageSize == nil && kernel.int(0...2) == 0
    let hasLeftPadding = kernel.int(0...3) == 0
    let appends = !hasPackedKeys && kernel.int(0...2) == 0
    let hasRotary = appends && dimension >= 16 && kernel.int(0...1) == 0
    let (rotaryDimension, isInterleaved) = (16 * kernel.int(1...max(dimension / 16, 1)), kernel.int(0...1) == 0)
    let mask = kernel.pick([
      AttentionMask.causal, .causal, .none, .window(left: 50, right: 0), .window(left: nil, right: 2), .chunks(of: 37),
      .chunks(of: 64, left: 20, right: nil),
    ])
    let (scale, softcap) = (kernel.pick([nil, nil, 0.3, -0.2]), kernel.pick([nil, nil, nil, 4.0]))
    let keysPerSplit = kernel.int(0...3) == 0 ? kernel.pick([1, 100, 256, AttentionProblem.allKeys]) : nil
    let leavesParts = keysPerSplit ?? 0 > 1 && !hasPackedQueries && kernel.int(0...1) == 0

    var random = RandomSource(seed: seed, stream: UInt64(number) | 1 << 43)
    let batch = random.pick([1, 1, 2, 3, 5, 40])
    // 16 log-sum-exps or more, also where one query sees keys: the yardstick of fewer is luck.
    let rows = batch * group
    let heads = max(random.int(1...3), (15 + rows) / rows)
    let capacity = max(1, (batch > 5 ? 60 : random.pick([5, 70, 300, 1500])) + random.int(0...20))
    /// The starts of so many rows for each sequence.
    func starts(_ counts: [Int]) -> [Int] { counts.reduce(into: [0]) { $0.append($0.last! + $1) } }
    let longestNew = appends ? min(capacity, random.pick([1, 1, 3, 20])) : 0
    let hasPackedNew = appends && random.int(0...2) == 0
    let new = (0..<batch).map { _ in hasPackedNew ? random.int(0...longestNew) : longestNew }
    let lengths = new.map { new in
      let room = capacity - new
      return switch random.int(0...5) {
      case 0: 0
      case 1: room
      case 2: min(room, random.int(1...4))
      default: random.int(0...room)
      }
    }
    let cache: AttentionProblem.KeyStorage
    var batchIndex: [Int]?
    var pageTable: [[Int]]?
    if let pageSize {
      let perSequence = (capacity + pageSize - 1) / pageSize
      let pages = perSequence * batch + random.int(0...3)
      cache = .paged(pages: pages, pageSize: pageSize, pagesPerSequence: perSequence)
      var order = Array(0..<pages)
      for i in stride(from: pages - 1, to: 0, by: -1) { order.swapAt(i, random.int(0...i)) }
      pageTable = (0..<batch).map { Array(order[$0 * perSequence..<($0 + 1) * perSequence]) }
    } else if hasPackedKeys {
      cache = .packed(total: lengths.reduce(0, +), longest: lengths.max()!)
    } else {
      let sequences = batch + random.int(0...2)
      cache = .contiguous(sequences: sequences, capacity: capacity)
      if random.int(0...2) == 0 { batchIndex = (0..<batch).map { sequences - 1 - $0 } }
    }
    let queryCounts = (0..<batch).map { _ in hasPackedQueries ? random.int(0...queries) : queries }
    let rotary =
      hasRotary
      ? RotaryEmbedding(
        dimension: rotaryDimension, isInterleaved: isInterleaved, positions: capacity + max(queries, longestNew)) : nil
    // Every draw is valid; one that is not is a mistake here.
    var problem = try! AttentionProblem(
      batch: batch, queries: queries, packedQueries: hasPackedQueries ? queryCounts.reduce(0, +) : nil,
      queryHeads: heads * group, keyValueHeads: heads, dimension: dimension, valueDimension: valueDimension,
      keys: cache,
      hasLeftPadding: hasLeftPadding,
      newKeys: appends ? .init(longestNew, packedTotal: hasPackedNew ? new.reduce(0, +) : nil, rotary: rotary) : nil,
      scalarType: type, queryType: queryType, cacheType: cacheType, mask: mask, scale: scale, softcap: softcap,
      keysPerSplit: keysPerSplit, leavesParts: leavesParts)
    problem.sinkType = !leavesParts && number % kernels % 3 == 1 ? .f32 : nil
    problem.ranges = .example(number % kernels, mask)
    func scales(_ isThere: Bool) -> [Float]? {
      isThere ? (0..<batch * heads).map { _ in Float(random.int(1...400)) / 100 } : nil
    }
    let hasScales = cacheType == .e4m3 && random.int(0...3) > 0
    let entries = CacheEntries<HostMemory>(
      lengths: hasPackedKeys && random.int(0...1) == 0 ? nil : lengths, batchIndex: batchIndex,
      leftPadding: hasLeftPadding ? lengths.map { random.int(0...$0) } : nil, pageTable: pageTable,
      queryStarts: hasPackedQueries ? starts(queryCounts) : nil, keyStarts: hasPackedKeys ? starts(lengths) : nil,
      queryScales: scales(queryType == .e4m3), keyScales: scales(hasScales), valueScales: scales(hasScales),
      sinks: problem.exampleSinks, ranges: problem.exampleRanges)
    scenario = CacheScenario(
      problem, entries, newStarts: hasPackedNew ? starts(new) : nil,
      positions: hasRotary && random.int(0...2) == 0 ? lengths.map { $0 / 2 } : nil, seed: seed &+ UInt64(number) << 20)
  }

  /// The command that runs this case alone.
  package func command(device: Device, kernels: Int) -> String {
    "flash-attention verify --cache --seed \(seed) --only \(number) --device \(device) --kernels \(kernels)"
  }

  /// Computes the case with a plan and compares with the 64-bit reference.
  package func run(_ plan: AttentionPlan) throws(AttentionError) -> CaseOutcome {
    let result = try scenario.run(plan)
    var failures: [String] = []
    if !result.output.passes { failures.append("output: \(result.output)") }
    if !result.logSumExp.passes { failures.append("log-sum-exp: \(result.logSumExp)") }
    if let fault = result.cacheFault { failures.append(fault) }
    return CaseOutcome(
      ratio: max(result.output.ratio, result.logSumExp.ratio),
      failure: failures.isEmpty ? nil : failures.joined(separator: "; "))
  }
}
