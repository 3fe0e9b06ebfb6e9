import FlashAttention
import Testing

/// Attention over a cache on the CPU: every kind of cache beside the reference, and what is refused.
@Suite struct CachedAttentionTests {
  private func element(_ tensor: Int, _ b: Int, _ h: Int, _ n: Int, _ d: Int) -> Float {
    Float((tensor * 31 + b * 17 + h * 13 + n * 7 + d * 3) * 2_654_435_761 % 97) / 48 - 1
  }

  /// Lays the sequences' keys into a cache full of NaN, computes, and compares with the reference.
  private func check(
    _ problem: CachedAttentionProblem, _ entries: CacheEntries, sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    func keyCount(_ b: Int) -> Int { max(0, entries.lengths[b] - (entries.leftPadding?[b] ?? 0)) }
    func cache(_ number: Int, _ shape: TensorShape) -> Tensor {
      var places: [[Int]: Float] = [:]
      for b in 0..<problem.batch {
        for n in 0..<keyCount(b) {
          var (place, row) = (entries.batchIndex?[b] ?? b, n + (entries.leftPadding?[b] ?? 0))
          if case .paged(_, let pageSize, _) = problem.cache {
            (place, row) = (entries.pageTable![b][row / pageSize], row % pageSize)
          }
          for h in 0..<shape.heads {
            for d in 0..<shape.dimension { places[[place, h, row, d]] = element(number, b, h, n, d) }
          }
        }
      }
      return Tensor(shape: shape, scalarType: problem.scalarType) { places[[$0, $1, $2, $3]] ?? .nan }
    }
    let queries = Tensor(shape: problem.queryShape, scalarType: problem.scalarType) { element(1, $0, $1, $2, $3) }
    let (keys, values) = (cache(2, problem.keyShape), cache(3, problem.valueShape))
    let plan = try CachedAttentionPlan(problem, device: .cpu)
    var statistics = [Float](repeating: .nan, count: problem.logSumExpCount)
    let output = try Tensor(shape: problem.outputShape, scalarType: problem.scalarType) { destination in
      try queries.withView { q in
        try keys.withView { k in
          try values.withView { v in
            try statistics.withUnsafeMutableBufferPointer {
              try plan.run(queries: q, keys: k, values: v, entries: entries, output: destination, logSumExp: $0)
            }
          }
        }
      }
    }
    for b in 0..<problem.batch {
      let one = try problem.sequence(length: keyCount(b))
      func tensor(_ number: Int, _ shape: TensorShape) -> Tensor {
        Tensor(shape: shape, scalarType: problem.scalarType) { _, h, n, d in element(number, b, h, n, d) }
      }
      let (q, k, v) = (tensor(1, one.queryShape), tensor(2, one.keyShape), tensor(3, one.valueShape))
      let (reference, plain) = q.withView { q in
        k.withView { k in
          v.withView { v in
            (
              AttentionCheck.reference(one, queries: q, keys: k, values: v),
              AttentionCheck.plain(one, queries: q, keys: k, values: v)
            )
          }
        }
      }
      var own: [Double] = []
      for h in 0..<problem.queryHeads {
        for n in 0..<problem.queries {
          for d in 0..<problem.valueDimension { own.append(Double(output[b, h, n, d])) }
        }
      }
      let perSequence = problem.queryHeads * problem.queries
      let outputs = Comparison(
        actual: own, plain: plain.output, reference: reference.output, type: problem.scalarType)
      let logSumExps = Comparison(
        actual: statistics[b * perSequence..<(b + 1) * perSequence].map(Double.init), plain: plain.logSumExp,
        reference: reference.logSumExp, type: .f32)
      #expect(
        outputs.passes && logSumExps.passes, "sequence \(b): \(outputs), \(logSumExps)", sourceLocation: sourceLocation)
    }
  }

  private func problem(
    _ cache: CachedAttentionProblem.Cache, batch: Int = 3, queries: Int = 2, hasLeftPadding: Bool = false,
    type: ScalarType = .f32, mask: AttentionMask = .causal
  ) throws -> CachedAttentionProblem {
    try CachedAttentionProblem(
      batch: batch, queries: queries, queryHeads: 6, keyValueHeads: 2, dimension: 24, valueDimension: 16, cache: cache,
      hasLeftPadding: hasLeftPadding, scalarType: type, mask: mask)
  }

  @Test(arguments: ScalarType.computed) func contiguous(type: ScalarType) throws {
    try check(
      problem(.contiguous(sequences: 3, capacity: 40), type: type), CacheEntries(lengths: [40, 0, 7]))
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

  @Test func refusesInSentences() throws {
    let contiguous = try problem(.contiguous(sequences: 3, capacity: 40))
    let paged = try problem(.paged(pages: 4, pageSize: 8, pagesPerSequence: 2))
    let plan = try CachedAttentionPlan(contiguous, device: .cpu)
    func sentence(_ problem: CachedAttentionProblem, _ entries: CacheEntries) throws -> String {
      let plan = try CachedAttentionPlan(problem, device: .cpu)
      let q = Tensor(shape: problem.queryShape, scalarType: .f32) { _, _, _, _ in 0 }
      let k = Tensor(shape: problem.keyShape, scalarType: .f32) { _, _, _, _ in 0 }
      let v = Tensor(shape: problem.valueShape, scalarType: .f32) { _, _, _, _ in 0 }
      do {
        _ = try Tensor(shape: problem.outputShape, scalarType: .f32) { o in
          try q.withView { q in
            try k.withView { k in
              try v.withView { v in try plan.run(queries: q, keys: k, values: v, entries: entries, output: o) }
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
    #expect("\(plan)".hasPrefix("CPU, ") && "\(plan)".hasSuffix("The CPU was asked for."))
    #expect(plan.workspaceByteCount == 0)
  }
}
