import AttentionKernels
import AttentionVerification
import PTX
import Testing

@testable import FlashAttention

/// Attention over a cache on the CPU: every kind of cache beside the reference, and what is refused.
@Suite struct CachedAttentionTests {
  private func check(
    _ problem: AttentionProblem, _ entries: CacheEntries<HostMemory>, newStarts: [Int]? = nil, positions: [Int]? = nil,
    sourceLocation: Testing.SourceLocation = #_sourceLocation
  ) throws {
    let scenario = CacheScenario(problem, entries, newStarts: newStarts, positions: positions, seed: 3)
    let result = try scenario.run(try AttentionPlan(problem, device: .cpu))
    #expect(
      result.output.passes && result.logSumExp.passes && result.cacheFault == nil,
      "\(result.output), \(result.logSumExp), \(result.cacheFault ?? "")", sourceLocation: sourceLocation)
  }

  private func problem(
    _ cache: AttentionProblem.KeyStorage, batch: Int = 3, queries: Int = 2, hasLeftPadding: Bool = false,
    type: ScalarType = .f32, mask: AttentionMask = .causal
  ) throws -> AttentionProblem {
    try AttentionProblem(
      batch: batch, queries: queries, queryHeads: 6, keyValueHeads: 2, dimension: 24, valueDimension: 16, keys: cache,
      hasLeftPadding: hasLeftPadding, scalarType: type, mask: mask)
  }

  @Test(arguments: ScalarType.computed) func contiguous(type: ScalarType) throws {
    try check(
      problem(.contiguous(sequences: 3, capacity: 40), type: type), CacheEntries(lengths: [40, 0, 7]))
  }

  /// A long sequence, whose keys several threads divide, has the same bits alone and beside others.
  @Test(arguments: [ScalarType.f32, .bf16]) func bitsDoNotDependOnTheBatch(type: ScalarType) throws {
    var random = RandomSource(seed: 5)
    let all = try problem(.contiguous(sequences: 4, capacity: 2100), batch: 4, type: type)
    let (k, v) = (
      try Tensor.normal(all.keyShape, type, from: &random), try Tensor.normal(all.valueShape, type, from: &random)
    )
    func output(_ places: [Int]) throws -> [Float] {
      let own = try problem(.contiguous(sequences: 4, capacity: 2100), batch: places.count, type: type)
      // Those of each sequence are the same.
      let each = own.queryShape.elementCount / places.count
      let queries = try Tensor(shape: own.queryShape, scalarType: type) { view in
        for i in 0..<own.queryShape.elementCount {
          type.store(Float((i % each * 7919) % 1013) / 500 - 1, to: view.base, at: i)
        }
      }
      let result = try Tensor(shape: own.outputShape, scalarType: type) { (output) throws(AttentionError) in
        try queries.withView { (q) throws(AttentionError) in
          try k.withView { (k) throws(AttentionError) in
            try v.withView { (v) throws(AttentionError) in
              try AttentionPlan(own, device: .cpu, threads: 2).run(
                queries: q, keys: k, values: v, output: output,
                entries: CacheEntries(lengths: places.map { $0 == 2 ? 2100 : 300 }, batchIndex: places))
            }
          }
        }
      }
      let (count, place) = (result.floats.count / places.count, places.firstIndex(of: 2)!)
      return Array(result.floats[place * count..<(place + 1) * count])
    }
    #expect(try output([2]) == output([0, 1, 2, 3]))
  }

  @Test func placesInTheCache() throws {
    try check(
      problem(.contiguous(sequences: 9, capacity: 30)), CacheEntries(lengths: [30, 1, 7], batchIndex: [8, 0, 3]))
  }

  @Test func leftPadding() throws {
    try check(
      problem(.contiguous(sequences: 3, capacity: 30), hasLeftPadding: true, mask: .window(left: 9, right: 0)),
      CacheEntries(lengths: [30, 12, 7], leftPadding: [4, 0, 7]))
  }

  @Test(arguments: [1, 3, 16]) func pages(size: Int) throws {
    let perSequence = (33 + size - 1) / size
    let count = 3 * perSequence + 2
    let table = (0..<3).map { b in (0..<perSequence).map { count - 1 - (b * perSequence + $0) } }
    try check(
      problem(.paged(pages: count, pageSize: size, pagesPerSequence: perSequence)),
      CacheEntries(lengths: [33, 16, 2], pageTable: table))
    try check(
      problem(.paged(pages: count, pageSize: size, pagesPerSequence: perSequence), hasLeftPadding: true, type: .bf16),
      CacheEntries(lengths: [33, 16, 2], leftPadding: [5, 0, 2], pageTable: table))
  }

  private func wide(
    _ cache: AttentionProblem.KeyStorage, batch: Int = 2, packedQueries: Int? = nil,
    newKeys: AttentionProblem.NewKeys? = nil, type: ScalarType = .bf16, queryType: ScalarType? = nil,
    cacheType: ScalarType? = nil, mask: AttentionMask = .causal
  ) throws -> AttentionProblem {
    try AttentionProblem(
      batch: batch, queries: 5, packedQueries: packedQueries, queryHeads: 6, keyValueHeads: 2, dimension: 32,
      valueDimension: 16, keys: cache, newKeys: newKeys, scalarType: type, queryType: queryType, cacheType: cacheType,
      mask: mask)
  }

  @Test(arguments: ScalarType.computed, [AttentionMask.none, .causal, .chunks(of: 7)])
  func variableLengths(type: ScalarType, mask: AttentionMask) throws {
    try check(
      wide(.packed(total: 43, longest: 30), batch: 4, packedQueries: 11, type: type, mask: mask),
      CacheEntries(queryStarts: [0, 5, 5, 6, 11], keyStarts: [0, 30, 31, 31, 43]))
    // Less keys than the starts say.
    try check(
      wide(.packed(total: 43, longest: 30), batch: 4, packedQueries: 11, type: type, mask: mask),
      CacheEntries(lengths: [3, 1, 0, 9], queryStarts: [0, 5, 5, 6, 11], keyStarts: [0, 30, 31, 31, 43]))
  }

  @Test(arguments: [true, false]) func newKeys(isInterleaved: Bool) throws {
    let rotary = RotaryEmbedding(dimension: 16, isInterleaved: isInterleaved, positions: 34)
    for mask in [AttentionMask.none, .causal] {
      try check(
        wide(.contiguous(sequences: 2, capacity: 20), newKeys: .init(3, rotary: rotary), mask: mask),
        CacheEntries(lengths: [17, 0]), positions: [2, 29])
      for (positions, row) in [([2, 32], 34), ([2, -1], -1)] {
        #expect(
          sentence {
            try check(
              wide(.contiguous(sequences: 2, capacity: 20), newKeys: .init(3, rotary: rotary), mask: mask),
              CacheEntries(lengths: [17, 0]), positions: positions)
          }
            == "Sequence 1 reaches position \(row), and the rotary tables have 34 rows; give tables with a row for each position "
            + "from 0 on.")
      }
    }
    try check(
      wide(.paged(pages: 9, pageSize: 4, pagesPerSequence: 4), newKeys: .init(3, packedTotal: 4, rotary: rotary)),
      CacheEntries(lengths: [11, 0], pageTable: [[8, 0, 3, 2], [1]]), newStarts: [0, 3, 4])
  }

  @Test func e4m3() throws {
    let scales: [Float] = [0.5, 2.25, 0.03, 11]
    for (type, queryType) in [(ScalarType.bf16, nil), (.f32, nil), (.f16, ScalarType.e4m3)] {
      try check(
        wide(
          .contiguous(sequences: 2, capacity: 20), newKeys: .init(1), type: type, queryType: queryType, cacheType: .e4m3
        ),
        CacheEntries(
          lengths: [17, 0], queryScales: queryType == nil ? nil : scales, keyScales: scales,
          valueScales: scales.reversed()))
    }
  }

  @Test func refusesWhatCannotBe() throws {
    #expect(
      sentence { _ = try wide(.packed(total: 9, longest: 9), newKeys: .init(1)) }
        == "Keys that are packed leave no room for new ones; append to a contiguous or paged cache.")
    #expect(
      sentence { _ = try wide(.contiguous(sequences: 2, capacity: 9), type: .e4m3) }
        == "e4m3 is a type for the keys and values of a cache; attention itself is computed in f32, f16 or bf16.")
    #expect(
      sentence { _ = try wide(.contiguous(sequences: 2, capacity: 9), cacheType: .f32) }
        == "the cache is f32, but the output is bf16; convert them to one type.")
    #expect(
      sentence { _ = try wide(.contiguous(sequences: 2, capacity: 9), mask: .chunks(of: 0)) }
        == "The chunk size of the mask is 0; it must be at least 1.")
    let rotary = RotaryEmbedding(dimension: 24, isInterleaved: true, positions: 4)
    #expect(
      sentence { _ = try wide(.contiguous(sequences: 2, capacity: 9), newKeys: .init(1, rotary: rotary)) }
        == "The rotary dimension is 24; it must be a multiple of 16 from 16 to the head dimension, 32.")
    let appending = try wide(.contiguous(sequences: 2, capacity: 9), newKeys: .init(4))
    #expect(
      sentence { _ = try check(appending, CacheEntries(lengths: [6, 0])) }
        == "The length with 4 new keys of sequence 0 is 10; it must be from 0 to 9.")
    let packed = try wide(.packed(total: 9, longest: 6), packedQueries: 6)
    #expect(
      sentence { _ = try check(packed, CacheEntries(queryStarts: [0, 6, 6], keyStarts: [0, 3, 9])) }
        == "The query count of sequence 0 is 6; it must be from 0 to 5.")
    func starts(_ entries: CacheEntries<HostMemory>) -> String {
      sentence { try entries.check(packed, newStarts: nil) }
    }
    #expect(
      starts(CacheEntries(queryStarts: [0, 3], keyStarts: [0, 3, 9]))
        == "There are 2 query starts (with the end of the last) for 2 sequences; give one for each.")
  }

  /// Kernels of a family that is asked for, or a sentence; the others by their ranking.
  @Test func takesTheKernelsThatAreAskedFor() throws {
    let limits = GPULimits.typical(of: .sm90)
    func family(_ problem: AttentionProblem, _ asked: String?) throws -> String {
      try KernelPlan(problem, on: limits, options: KernelOptions(family: asked)).family
    }
    let few = try problem(.contiguous(sequences: 3, capacity: 40), type: .f16)
    let many = try AttentionProblem(
      batch: 8, queries: 512, queryHeads: 32, keyValueHeads: 8, dimension: 64,
      keys: .contiguous(sequences: 8, capacity: 1024), scalarType: .f16, mask: .causal)
    #expect(try family(few, nil) == "decode" && family(many, nil) == "hopper")
    for problem in [few, many] {
      for asked in ["decode", "forward"] { #expect(try family(problem, asked) == asked) }
    }
    let paged = try problem(.paged(pages: 4, pageSize: 8, pagesPerSequence: 2), type: .f16)
    #expect(try family(paged, nil) == "decode")
    #expect(
      sentence { _ = try family(paged, "forward") }
        == "The forward kernels know no pages; leave the choice of kernels to the plan, or leave out the pages.")
    #expect(
      sentence { _ = try family(paged, "fast") }
        == "There are no fast kernels; there are forward, decode, hopper and hopper-decode ones.")
    #expect(
      sentence { _ = try AttentionPlan(few, device: .cpu, kernels: KernelOptions(family: "decode")) }
        == "The decode kernels are for GPUs; leave the choice to the plan on the CPU.")
  }

  /// On the CPU the first part has all keys; what is put together is the result.
  @Test(arguments: [ScalarType.f32, .bf16]) func leavesParts(type: ScalarType) throws {
    let problem = try AttentionProblem(
      batch: 2, queries: 3, queryHeads: 4, keyValueHeads: 2, dimension: 16,
      keys: .contiguous(sequences: 2, capacity: 50), scalarType: type, mask: .causal, keysPerSplit: 20,
      leavesParts: true)
    #expect(problem.parts == 3 && problem.outputType == .f32 && problem.outputShape.batch == 6)
    let scenario = CacheScenario(problem, CacheEntries(lengths: [45, 0]), seed: 5)
    let result = try scenario.run(try AttentionPlan(problem, device: .cpu))
    #expect(result.output.passes && result.logSumExp.passes, "\(result)")
    try combines(problem, scenario)
    for (keysPerSplit, packed) in [(nil, nil), (20, 6)] as [(Int?, Int?)] {
      #expect(
        sentence {
          _ = try AttentionProblem(
            batch: 2, queries: 3, packedQueries: packed, queryHeads: 4, keyValueHeads: 2, dimension: 16,
            keys: .contiguous(sequences: 2, capacity: 50), scalarType: .f16, mask: .causal, keysPerSplit: keysPerSplit,
            leavesParts: true)
        }
          == "Partial results are those of splits of a fixed length, of queries [B, s, H, D]: set keysPerSplit, and do not pack "
          + "the queries.")
    }
    let plan = try AttentionPlan(problem, device: .cpu)
    let (q, k, v) = (scenario.queries, scenario.keys, scenario.values)
    #expect(
      sentence {
        _ = try Tensor(shape: problem.outputShape, scalarType: .f32) { o in
          try q.withView { q in
            try k.withView { k in
              try v.withView { v in
                try plan.run(queries: q, keys: k, values: v, output: o, entries: scenario.entries)
              }
            }
          }
        }
      } == "There is no log-sum-exp, and the plan needs it; give its address.")
  }

  /// `PartialResults` takes what a plan leaves, and makes of it what the plan that leaves nothing makes.
  private func combines(_ problem: AttentionProblem, _ scenario: CacheScenario) throws {
    let whole = try AttentionProblem(
      batch: problem.batch, queries: problem.queries, queryHeads: problem.queryHeads,
      keyValueHeads: problem.keyValueHeads, dimension: problem.dimension, keys: problem.storage, scalarType: .f32,
      mask: problem.mask)
    let parts = try PartialResultsProblem(
      parts: problem.parts, batch: problem.batch, heads: problem.queryHeads, queries: problem.queries,
      dimension: problem.valueDimension)
    func run(_ problem: AttentionProblem) throws -> (output: Tensor, logSumExp: [Float]) {
      var statistics = [Float](repeating: .nan, count: problem.logSumExpCount)
      let output = try statistics.withUnsafeMutableBufferPointer { statistics in
        try Tensor(shape: problem.outputShape, scalarType: .f32) { o in
          // What is not written may be anything.
          for row in 0..<o.shape.elementCount / o.shape.dimension {
            for d in 0..<o.shape.dimension {
              (o.base + row * o.strides.length * 4).storeBytes(of: Float.nan, toByteOffset: d * 4, as: Float.self)
            }
          }
          try scenario.queries.converted(to: problem.scalarType).withView { q in
            try scenario.keys.converted(to: problem.scalarType).withView { k in
              try scenario.values.converted(to: problem.scalarType).withView { v in
                try AttentionPlan(problem, device: .cpu).run(
                  queries: q, keys: k, values: v, output: o, logSumExp: statistics, entries: scenario.entries)
              }
            }
          }
        }
      }
      return (output, statistics)
    }
    let (left, expected) = (try run(problem), try run(whole))
    let result = try Tensor(shape: parts.shape, scalarType: .f32) { output in
      try left.output.withView { view in
        try left.logSumExp.withUnsafeBufferPointer { logSumExps in
          let views = (0..<parts.parts).map { part in
            TensorView(
              base: view.row(batch: part * parts.batch, head: 0, token: 0), scalarType: .f32, shape: parts.shape,
              strides: view.strides)
          }
          try PartialResults.combine(parts, partials: views, logSumExps: logSumExps, output: output)
        }
      }
    }
    for (own, other) in zip(result.floats, expected.output.floats) { #expect(abs(own - other) < 1e-5) }
  }

  /// Sequences of one call that would append to the same row of the cache.
  @Test func rowsThatTwoSequencesWouldWriteAreRefused() throws {
    func sentence(
      _ cache: AttentionProblem.KeyStorage, _ entries: CacheEntries<HostMemory>, starts: [Int]? = nil
    ) -> String? {
      do throws(AttentionError) {
        let problem = try AttentionProblem(
          batch: 3, queries: 1, queryHeads: 2, keyValueHeads: 2, dimension: 16, keys: cache,
          newKeys: .init(3, packedTotal: starts?.last), scalarType: .f32, mask: .causal)
        try entries.check(problem, newStarts: starts)
        return nil
      } catch { return "\(error)" }
    }
    let contiguous = AttentionProblem.KeyStorage.contiguous(sequences: 3, capacity: 40)
    #expect(
      sentence(contiguous, CacheEntries(lengths: [1, 2, 3], batchIndex: [1, 0, 1]))
        == "Sequences 0 and 2 of the call would both append to row 3 of sequence 1 of the cache; give each rows of its own."
    )
    #expect(sentence(contiguous, CacheEntries(lengths: [1, 2, 4], batchIndex: [1, 0, 1])) == nil)
    #expect(
      sentence(contiguous, CacheEntries(lengths: [1, 2, 3], batchIndex: [1, 0, 1]), starts: [0, 3, 3, 3]) == nil)
    let paged = AttentionProblem.KeyStorage.paged(pages: 9, pageSize: 4, pagesPerSequence: 3)
    func tables(_ rows: [[Int]]) -> CacheEntries<HostMemory> { CacheEntries(lengths: [6, 3, 0], pageTable: rows) }
    #expect(sentence(paged, tables([[0, 1, 2], [3, 4], [5]])) == nil)
    // What both have already is shared, as prefixes are.
    #expect(sentence(paged, tables([[0, 1, 2], [3, 4], [0]])) == nil)
    #expect(
      sentence(paged, tables([[0, 1, 2], [3, 4], [2]]))
        == "Sequences 0 and 2 of the call would both append to row 0 of page 2 of the cache; give each rows of its own."
    )
    #expect(sentence(paged, tables([[0, 1, 2], [2, 4], [5]])) == nil)
  }

  /// New keys and queries that lie in the cache which is written.
  @Test func whatIsAppendedDoesNotLieInTheCache() throws {
    let problem = try AttentionProblem(
      batch: 1, queries: 1, queryHeads: 2, keyValueHeads: 2, dimension: 16,
      keys: .contiguous(sequences: 1, capacity: 8),
      newKeys: .init(1), scalarType: .f32, mask: .causal)
    let plan = try AttentionPlan(problem, device: .cpu)
    let memory = try (0..<5).map { _ in try Tensor(shape: problem.keyShape, scalarType: .f32, layout: .bnhd) { _ in } }
    let bases = memory.map { $0.withView { UnsafeMutableRawPointer(mutating: $0.base) } }
    func view(_ base: UnsafeMutableRawPointer, _ shape: TensorShape, token: Int = 0) -> MutableTensorView {
      MutableTensorView(base: base + token * 2 * 16 * 4, scalarType: .f32, shape: shape, layout: .bnhd)
    }
    func sentence(keys: Int, values: Int, queries: Int, token: Int = 7) -> String {
      do throws(AttentionError) {
        try plan.run(
          AttentionTensors(
            queries: view(bases[queries], problem.queryShape, token: token).readOnly,
            keys: view(bases[0], problem.keyShape), values: view(bases[1], problem.valueShape),
            appending: NewKeyTensors(
              keys: view(bases[keys], problem.newKeyShape, token: token).readOnly,
              values: view(bases[values], problem.newValueShape, token: token).readOnly),
            output: view(bases[4], problem.outputShape), entries: CacheEntries(lengths: [3])))
        return "nothing was refused"
      } catch { return "\(error)" }
    }
    #expect(sentence(keys: 2, values: 2, queries: 3) == "nothing was refused")
    #expect(
      sentence(keys: 0, values: 2, queries: 3)
        == "the cached keys and the new keys share memory, and the first is written while the other is read; give each memory of "
        + "its own.")
    #expect(sentence(keys: 2, values: 0, queries: 3).hasPrefix("the cached keys and the new values share memory"))
    #expect(sentence(keys: 2, values: 2, queries: 1).hasPrefix("the cached values and queries share memory"))
    withExtendedLifetime(memory) {}
  }

  /// Lists of any numbers are refused by name, and nothing traps.
  @Test func anyNumberInAListIsASentence() throws {
    let nasty = [Int.min, .min + 1, -1, 0, 1, 7, 40, 41, 1 << 32, .max - 1, .max]
    var random = RandomSource(seed: 7)
    let caches: [AttentionProblem.KeyStorage] = [
      .contiguous(sequences: 3, capacity: 40), .paged(pages: 9, pageSize: 4, pagesPerSequence: 3),
      .packed(total: 40, longest: 40),
    ]
    for cache in caches {
      for packsQueries in [false, true] {
        for newStarts in [nil, 9, 0] as [Int?] {
          let problem = try? AttentionProblem(
            batch: 2, queries: 5, packedQueries: packsQueries ? 9 : nil, queryHeads: 2, keyValueHeads: 2, dimension: 16,
            keys: cache, hasLeftPadding: newStarts == nil,
            newKeys: newStarts.map { .init(3, packedTotal: $0 == 0 ? nil : $0) },
            scalarType: .f32, mask: .causal)
          guard let problem else { continue }
          for _ in 0..<2000 {
            func list(_ count: Int) -> [Int] { (0..<count).map { _ in nasty.randomElement(using: &random)! } }
            var entries = CacheEntries<HostMemory>(lengths: list(2))
            if Bool.random(using: &random) { entries.batchIndex = list(2) }
            if problem.hasLeftPadding { entries.leftPadding = list(2) }
            if packsQueries {
              (entries.queryStarts, entries.queryCounts) = (list(3), Bool.random(using: &random) ? list(2) : nil)
            }
            switch cache {
            case .paged: (entries.pageTable, entries.batchIndex) = ([list(3), list(3)], nil)
            case .packed: (entries.keyStarts, entries.batchIndex) = (list(3), nil)
            case .contiguous, .whole: break
            }
            _ = try? entries.check(problem, newStarts: newStarts == 9 ? list(3) : nil)
          }
        }
      }
    }
  }

  @Test func refusesInSentences() throws {
    let contiguous = try problem(.contiguous(sequences: 3, capacity: 40))
    let paged = try problem(.paged(pages: 4, pageSize: 8, pagesPerSequence: 2))
    let plan = try AttentionPlan(contiguous, device: .cpu)
    func sentence(_ problem: AttentionProblem, _ entries: CacheEntries<HostMemory>) throws -> String {
      let plan = try AttentionPlan(problem, device: .cpu)
      let q = try Tensor(shape: problem.queryShape, scalarType: .f32) { _, _, _, _ in 0 }
      let k = try Tensor(shape: problem.keyShape, scalarType: .f32) { _, _, _, _ in 0 }
      let v = try Tensor(shape: problem.valueShape, scalarType: .f32) { _, _, _, _ in 0 }
      do {
        _ = try Tensor(shape: problem.outputShape, scalarType: .f32) { o in
          try q.withView { q in
            try k.withView { k in
              try v.withView { v in try plan.run(queries: q, keys: k, values: v, output: o, entries: entries) }
            }
          }
        }
        return "nothing was refused"
      } catch { return "\(error)" }
    }
    #expect(
      try sentence(contiguous, CacheEntries(lengths: [1, 41, 2]))
        == "The length of sequence 1 is 41; it must be from 0 to 40.")
    #expect(
      try sentence(contiguous, CacheEntries(lengths: [1, 2]))
        == "There are 2 lengths for 3 sequences; give one for each.")
    #expect(
      try sentence(contiguous, CacheEntries(lengths: [1, 2, 3], batchIndex: [0, 1, 3]))
        == "The place in the cache of sequence 2 is 3; it must be from 0 to 2.")
    #expect(
      try sentence(contiguous, CacheEntries(lengths: [1, 2, 3], leftPadding: [0, 0, 0]))
        == "There is a left padding, and the plan was made without; leave it out, or make a plan with it.")
    #expect(
      try sentence(paged, CacheEntries(lengths: [1, 2, 3]))
        == "There is no page table, and the plan needs it; give its address.")
    #expect(
      try sentence(paged, CacheEntries(lengths: [1, 9, 3], pageTable: [[0], [1], [2]]))
        == "The length of sequence 1 is 9; it must be from 0 to 8.")
    #expect(
      try sentence(paged, CacheEntries(lengths: [1, 9, 3], pageTable: [[0], [1, 4], [2]]))
        == "The page of sequence 1 is 4; it must be from 0 to 3.")
    let packed = try problem(.packed(total: 9, longest: 6))
    #expect(
      try sentence(packed, CacheEntries(lengths: [3, 3, 3]))
        == "There is no list of key starts, and the plan needs it; give its address.")
    #expect("\(plan)".hasPrefix("CPU, ") && "\(plan)".hasSuffix("The CPU was asked for."))
    #expect(plan.workspaceByteCount == 0)
  }
}

/// What a call throws, in words.
private func sentence(_ body: () throws -> Void) -> String {
  do {
    try body()
    return "nothing was refused"
  } catch { return "\(error)" }
}
