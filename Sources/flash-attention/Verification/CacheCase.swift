package import FlashAttention

/// A random problem over a cache with its inputs, wholly determined by a seed and its number. Every row of the cache that holds no
/// key is NaN.
package struct CacheCase: Sendable {
  package let seed: UInt64
  package let number: Int
  package let problem: CachedAttentionProblem
  package let entries: CacheEntries

  /// - Parameters:
  ///   - kernels: what a kernel is made for is drawn by `number % kernels`, everything else by `number`.
  ///   - isForGPU: leaves out what only the CPU takes: f32.
  package init(seed: UInt64, number: Int, kernels: Int, isForGPU: Bool) {
    (self.seed, self.number) = (seed, number)
    // What a kernel is made for.
    var kernel = RandomSource(seed: seed, stream: UInt64(number % kernels) | 1 << 42)
    let type: ScalarType = kernel.pick(isForGPU ? [.bf16, .f16] : [.bf16, .f16, .f32])
    let group = kernel.pick([1, 1, 2, 3, 4, 5, 7, 8, 16])
    let queries = kernel.pick([1, 1, 1, 2, 3, 4, 8, 13])
    let dimension = kernel.pick([8, 24, 64, 64, 72, 96, 128, 128, 160, 256])
    let valueDimension = kernel.int(0...3) == 0 ? 8 * kernel.int(1...32) : dimension
    let pageSize = kernel.pick([nil, nil, 1, 3, 16, 16, 48, 64, 100])
    let hasLeftPadding = kernel.int(0...3) == 0
    let mask = kernel.pick([
      AttentionMask.causal, .causal, .none, .window(left: 50, right: 0), .window(left: nil, right: 2),
    ])
    let (scale, softcap) = (kernel.pick([nil, nil, 0.3, -0.2]), kernel.pick([nil, nil, nil, 4.0]))

    var random = RandomSource(seed: seed, stream: UInt64(number) | 1 << 43)
    let batch = random.pick([1, 1, 2, 3, 5, 40])
    // 16 log-sum-exps or more: the yardstick of fewer is luck.
    let rows = batch * group * queries
    let heads = max(random.int(1...3), (15 + rows) / rows)
    let capacity = max(1, (batch > 5 ? 60 : random.pick([5, 70, 300, 1500])) + random.int(0...20))
    let cache: CachedAttentionProblem.Cache
    var batchIndex: [Int]?
    var pageTable: [[Int]]?
    if let pageSize {
      let perSequence = (capacity + pageSize - 1) / pageSize
      let pages = perSequence * batch + random.int(0...3)
      cache = .paged(pages: pages, pageSize: pageSize, pagesPerSequence: perSequence)
      var order = Array(0..<pages)
      for i in stride(from: pages - 1, to: 0, by: -1) { order.swapAt(i, random.int(0...i)) }
      pageTable = (0..<batch).map { Array(order[$0 * perSequence..<($0 + 1) * perSequence]) }
    } else {
      let sequences = batch + random.int(0...2)
      cache = .contiguous(sequences: sequences, capacity: capacity)
      if random.int(0...2) == 0 { batchIndex = (0..<batch).map { sequences - 1 - $0 } }
    }
    // Every draw is valid; one that is not is a mistake here.
    problem = try! CachedAttentionProblem(
      batch: batch, queries: queries, queryHeads: heads * group, keyValueHeads: heads, dimension: dimension,
      valueDimension: valueDimension, cache: cache, hasLeftPadding: hasLeftPadding, scalarType: type, mask: mask,
      scale: scale, softcap: softcap)
    let lengths = (0..<batch).map { _ in
      switch random.int(0...5) {
      case 0: 0
      case 1: capacity
      case 2: min(capacity, random.int(1...4))
      default: random.int(0...capacity)
      }
    }
    entries = CacheEntries(
      lengths: lengths, batchIndex: batchIndex,
      leftPadding: hasLeftPadding ? lengths.map { random.int(0...$0) } : nil, pageTable: pageTable)
  }

  /// The command that runs this case alone.
  package func command(device: Device, kernels: Int) -> String {
    "flash-attention verify --cache --seed \(seed) --only \(number) --device \(device) --kernels \(kernels)"
  }

  /// A number from -2 to 2 that looks random.
  private func element(_ tensor: Int, _ b: Int, _ h: Int, _ n: Int, _ d: Int) -> Float {
    var x = seed &+ UInt64(number) << 8 &+ UInt64(tensor) &+ UInt64(b) << 16 &+ UInt64(h) << 28 &+ UInt64(n) << 36
    x = (x &+ UInt64(d) << 54) &* 0x9e37_79b9_7f4a_7c15
    x = (x ^ x >> 31) &* 0x7fb5_d329_728e_a185
    x = (x ^ x >> 27) &* 0x81da_def4_bc2d_d44d
    return Float(Int((x ^ x >> 33) & 0xffff) - 0x8000) / 0x4000
  }

  private func keyCount(_ b: Int) -> Int { max(0, entries.lengths[b] - (entries.leftPadding?[b] ?? 0)) }

  /// The cache, by where its rows are.
  private func cache(_ tensor: Int, _ shape: TensorShape) -> Tensor {
    var owners: [Int: (sequence: Int, key: Int)] = [:]
    for b in 0..<problem.batch {
      for n in 0..<keyCount(b) {
        var (place, row) = (entries.batchIndex?[b] ?? b, n + (entries.leftPadding?[b] ?? 0))
        if case .paged(_, let pageSize, _) = problem.cache {
          (place, row) = (entries.pageTable![b][row / pageSize], row % pageSize)
        }
        owners[place * shape.length + row] = (b, n)
      }
    }
    return Tensor(shape: shape, scalarType: problem.scalarType, layout: .bnhd) { place, h, row, d in
      owners[place * shape.length + row].map { element(tensor, $0.sequence, h, $0.key, d) } ?? .nan
    }
  }

  /// Computes the case with a plan and compares with the 64-bit reference.
  package func run(_ plan: CachedAttentionPlan) throws(AttentionError) -> CaseOutcome {
    let type = problem.scalarType
    let queries = Tensor(shape: problem.queryShape, scalarType: type, layout: .bnhd) { element(1, $0, $1, $2, $3) }
    let (keys, values) = (cache(2, problem.keyShape), cache(3, problem.valueShape))
    var statistics = [Float](repeating: .nan, count: problem.logSumExpCount)
    let output = try queries.withView { (q) throws(AttentionError) in
      try keys.withView { (k) throws(AttentionError) in
        try values.withView { (v) throws(AttentionError) in
          try Tensor(shape: problem.outputShape, scalarType: type, layout: .bnhd) {
            (destination) throws(AttentionError) in
            try statistics.withUnsafeMutableBufferPointer { (buffer) throws(AttentionError) in
              try plan.run(queries: q, keys: k, values: v, entries: entries, output: destination, logSumExp: buffer)
            }
          }
        }
      }
    }
    // All sequences together, as `VerificationCase` has them: one alone may have a single log-sum-exp, whose yardstick is luck.
    var (own, reference, plain, other) = ([Double](), Values(), Values(), Values())
    for b in 0..<problem.batch {
      let one = try problem.sequence(length: keyCount(b))
      func tensor(_ number: Int, _ shape: TensorShape) -> Tensor {
        Tensor(shape: shape, scalarType: type) { _, h, n, d in element(number, b, h, n, d) }
      }
      let (q, k, v) = (tensor(1, one.queryShape), tensor(2, one.keyShape), tensor(3, one.valueShape))
      q.withView { q in
        k.withView { k in
          v.withView { v in
            reference.add(AttentionCheck.reference(one, queries: q, keys: k, values: v))
            plain.add(AttentionCheck.plain(one, queries: q, keys: k, values: v))
            if plan.gpu != nil { other.add(AttentionCheck.plain(one, queries: q, keys: k, values: v, sums: .cut)) }
          }
        }
      }
      for h in 0..<problem.queryHeads {
        for n in 0..<problem.queries {
          for d in 0..<problem.valueDimension { own.append(Double(output[b, h, n, d])) }
        }
      }
    }
    let isOnGPU = plan.gpu != nil
    let outputs = Comparison(
      actual: own, plain: plain.output, other: isOnGPU ? other.output : nil, reference: reference.output, type: type)
    let logSumExps = Comparison(
      actual: statistics.map(Double.init), plain: plain.logSumExp, other: isOnGPU ? other.logSumExp : nil,
      reference: reference.logSumExp, type: .f32)
    var failures: [String] = []
    if !outputs.passes { failures.append("output: \(outputs)") }
    if !logSumExps.passes { failures.append("log-sum-exp: \(logSumExps)") }
    return CaseOutcome(
      ratio: max(outputs.ratio, logSumExps.ratio), failure: failures.isEmpty ? nil : failures.joined(separator: "; "))
  }

  /// Results of sequence after sequence.
  private struct Values {
    var output: [Double] = []
    var logSumExp: [Double] = []

    mutating func add(_ values: AttentionValues) {
      output += values.output
      logSumExp += values.logSumExp
    }
  }
}
