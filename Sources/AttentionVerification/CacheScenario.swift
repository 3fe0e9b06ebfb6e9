internal import CPUAttention
package import FlashAttention
internal import Synchronization

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// A call over a cache with numbers that look random, NaN wherever nobody should look, and what should come out of it.
/// For tests and for `verify`; it shares no arithmetic with what it checks.
package struct CacheScenario: Sendable {
  package let problem: AttentionProblem
  package let entries: CacheEntries<HostMemory>
  /// Of new keys, where they are packed; and the positions of their first.
  package let newStarts, positions: [Int]?
  private let seed: UInt64

  package init(
    _ problem: AttentionProblem, _ entries: CacheEntries<HostMemory>, newStarts: [Int]? = nil, positions: [Int]? = nil,
    seed: UInt64 = 1
  ) {
    (self.problem, self.entries, self.newStarts, self.positions) = (problem, entries, newStarts, positions)
    self.seed = seed
  }

  private var rotary: RotaryEmbedding? { problem.newKeys?.rotary }

  /// What the numbers are drawn for.
  private enum Subject: UInt64 { case query = 1, key, value, newKey, newValue, angle }

  /// A number from -2 to 2 that looks random.
  private func element(_ subject: Subject, _ b: Int, _ h: Int, _ n: Int, _ d: Int) -> Float {
    var x = seed &+ subject.rawValue &+ UInt64(b) << 12 &+ UInt64(h) << 24 &+ UInt64(n) << 36
    x = (x &+ UInt64(d) << 54) &* 0x9e37_79b9_7f4a_7c15
    x = (x ^ x >> 31) &* 0x7fb5_d329_728e_a185
    x = (x ^ x >> 27) &* 0x81da_def4_bc2d_d44d
    return Float(Int((x ^ x >> 33) & 0xffff) - 0x8000) / 0x4000
  }

  /// A tensor `[B, N, H, D]` of a problem's shape, which can be, and is small.
  private func tensor(_ shape: TensorShape, _ type: ScalarType, _ value: (Int, Int, Int, Int) -> Float) -> Tensor {
    try! Tensor(shape: shape, scalarType: type, layout: .bnhd, value: value)
  }

  // MARK: - What goes in

  private func queryRange(_ b: Int) -> Range<Int> {
    entries.queries(of: b, problem)
  }
  private func newCount(_ b: Int) -> Int { entries.newKeys(of: b, problem, starts: newStarts).count }
  /// The rows of a sequence's cache that hold keys after the call.
  private func rows(_ b: Int) -> Range<Int> {
    let end = entries.rows(of: b) + newCount(b)
    return min(entries.firstRow(of: b), end)..<end
  }
  /// Where a row of a sequence's cache lies.
  private func place(ofRow row: Int, _ b: Int) -> (batch: Int, token: Int) {
    if let starts = entries.keyStarts { return (0, starts[b] + row) }
    guard let pages = entries.pageTable?[b], let size = problem.pages?.size else {
      return (entries.batchIndex.map { $0[b] } ?? b, row)
    }
    let (number, token) = row.quotientAndRemainder(dividingBy: size)
    return (pages[number], token)
  }
  private func scale(_ scales: [Float]?, _ b: Int, _ h: Int) -> Float { scales?[b * problem.keyValueHeads + h] ?? 1 }

  /// Rows that belong to sequences: `[B or 1, H, s or total, D]`, NaN where no sequence has one.
  private func rows(
    _ subject: Subject, _ shape: TensorShape, _ type: ScalarType, starts: [Int]?, isPacked: Bool
  ) -> Tensor {
    var owners: [Int: (sequence: Int, row: Int)] = [:]
    for b in 0..<problem.batch {
      let rows = starts.map { $0[b]..<$0[b + 1] } ?? 0..<shape.length
      for row in rows { owners[(isPacked ? 0 : b) * shape.length + row] = (b, row - rows.lowerBound) }
    }
    return tensor(shape, type) { place, h, row, d in
      owners[place * shape.length + row].map { element(subject, $0.sequence, h, $0.row, d) } ?? .nan
    }
  }

  package var queries: Tensor {
    rows(
      .query, problem.queryShape, problem.queryType, starts: entries.queryStarts, isPacked: problem.packedQueries != nil
    )
  }
  package var newKeys: Tensor {
    rows(
      .newKey, problem.newKeyShape, problem.scalarType, starts: newStarts, isPacked: problem.newKeys?.packedTotal != nil
    )
  }
  package var newValues: Tensor {
    rows(
      .newValue, problem.newValueShape, problem.scalarType, starts: newStarts,
      isPacked: problem.newKeys?.packedTotal != nil)
  }

  private func angle(_ position: Int, _ i: Int) -> Double { 3 * Double(element(.angle, 0, 0, position, i)) }

  /// The tables of the embedding.
  package var rotaryTables: (cosines: Tensor, sines: Tensor)? {
    guard let rotary else { return nil }
    let shape = TensorShape(batch: 1, heads: 1, length: rotary.positions, dimension: rotary.dimension / 2)
    func table(_ function: @escaping (Double) -> Double) -> Tensor {
      tensor(shape, problem.scalarType) { _, _, position, i in Float(function(angle(position, i))) }
    }
    return (table(cos), table(sin))
  }

  /// A row of a query or a new key, turned.
  private func turned(_ row: (Int) -> Float, count: Int, _ number: Int, _ b: Int, isKey: Bool) -> [Double] {
    let plain = (0..<count).map { Double(row($0)) }
    guard let rotary else { return plain }
    let base = positions?[b] ?? entries.rows(of: b)
    let advances = isKey || problem.mask.isLimited
    let position = advances ? base + number : base
    let half = rotary.dimension / 2
    var result = plain
    for i in 0..<half {
      let (first, second) = rotary.isInterleaved ? (2 * i, 2 * i + 1) : (i, i + half)
      let cosine = Double(problem.scalarType.rounded(Float(cos(angle(position, i)))))
      let sine = Double(problem.scalarType.rounded(Float(sin(angle(position, i)))))
      result[first] = plain[first] * cosine - plain[second] * sine
      result[second] = plain[first] * sine + plain[second] * cosine
    }
    return result
  }

  /// A row of the cache as it is after the call, before scales.
  private func cached(isKey: Bool, _ b: Int, _ h: Int, row: Int) -> [Float] {
    let count = isKey ? problem.dimension : problem.valueDimension
    let before = entries.rows(of: b)
    let type = problem.cacheType
    if row < before { return (0..<count).map { type.rounded(element(isKey ? .key : .value, b, h, row, $0)) } }
    let new = { problem.scalarType.rounded(element(isKey ? .newKey : .newValue, b, h, row - before, $0)) }
    let values = isKey ? turned(new, count: count, row - before, b, isKey: true) : (0..<count).map { Double(new($0)) }
    let scale = type == .e4m3 ? Double(self.scale(isKey ? entries.keyScales : entries.valueScales, b, h)) : 1
    return values.map { type.rounded(Float($0 / scale)) }
  }

  /// The cache before the call, or after it.
  private func cache(isKey: Bool, isAfter: Bool) -> Tensor {
    let shape = isKey ? problem.keyShape : problem.valueShape
    var owners: [Int: (sequence: Int, row: Int)] = [:]
    for b in 0..<problem.batch {
      let rows = rows(b)
      for row in rows where isAfter || row < entries.rows(of: b) {
        let place = place(ofRow: row, b)
        owners[place.batch * shape.length + place.token] = (b, row)
      }
    }
    // Of a problem's shape, and small.
    return try! Tensor(shape: shape, scalarType: problem.cacheType, layout: .bnhd) { view in
      for place in 0..<shape.batch {
        for token in 0..<shape.length {
          let owner = owners[place * shape.length + token]
          for h in 0..<shape.heads {
            let values = owner.map { cached(isKey: isKey, $0.sequence, h, row: $0.row) }
            for d in 0..<shape.dimension {
              problem.cacheType.store(values?[d] ?? .nan, to: view.row(batch: place, head: h, token: token), at: d)
            }
          }
        }
      }
    }
  }

  package var keys: Tensor { cache(isKey: true, isAfter: false) }
  package var values: Tensor { cache(isKey: false, isAfter: false) }

  // MARK: - What comes out

  /// How far a cache is from what the call should have left; nil where it is right: old rows and copied ones to the
  /// bit, computed ones to an ulp.
  package func fault(ofCache view: TensorView, isKey: Bool) -> String? {
    let expected = cache(isKey: isKey, isAfter: true)
    let isComputed = problem.cacheType == .e4m3 || (isKey && rotary != nil)
    return expected.withView { expected in
      for b in 0..<expected.shape.batch {
        for h in 0..<expected.shape.heads {
          for n in 0..<expected.shape.length {
            for d in 0..<expected.shape.dimension {
              let type = expected.scalarType
              let value = type.load(from: view.row(batch: b, head: h, token: n), at: d)
              let right = type.load(from: expected.row(batch: b, head: h, token: n), at: d)
              if value == right || (value.isNaN && right.isNaN) { continue }
              // Results near 0 come from larger ones, whose rounding in 32 bits shows.
              let allowed = isComputed ? max(type.ulp(of: Double(right)), 1e-6) : 0
              if !(Double(value - right).magnitude <= allowed) {
                return "cached \(isKey ? "key" : "value") (\(b), \(h), \(n), \(d)) is \(value), not \(right)"
              }
            }
          }
        }
      }
      return nil
    }
  }

  /// Compares a result with the 64-bit reference.
  ///
  /// - Parameters:
  ///   - output: element (batch, head, token, d) of `problem.outputShape`.
  ///   - cache: keys and values as the call left them, where it brought some: what was rounded to them is no error of
  ///     the attention.
  ///   - hasCutSums: whether sums may be those of tensor cores.
  package func compare(
    output parts: @escaping (Int, Int, Int, Int) -> Float, logSumExp ofParts: [Float],
    cache: (keys: TensorView, values: TensorView)? = nil,
    hasCutSums: Bool
  ) throws(AttentionError) -> (output: Comparison, logSumExp: Comparison) {
    var heads: [(b: Int, h: Int)] = []
    for b in 0..<problem.batch where !queryRange(b).isEmpty { for h in 0..<problem.queryHeads { heads.append((b, h)) } }
    let results = Mutex([Int: [HeadValues]]())
    let work = heads
    // Refused here if it were later.
    _ = try problem.sequence(queries: 1, length: 1)
    WorkerTeam.run(items: work.count, threads: WorkerTeam.processors) { queue in
      while let item = queue.next() {
        let values = head(work[item].b, work[item].h, cache, hasCutSums: hasCutSums)
        results.withLock { $0[item] = values }
      }
    }
    let all = results.withLock { values in work.indices.map { values[$0]! } }
    let (output, logSumExp) = combined(parts, ofParts)
    var (own, statistics) = ([Double](), [Double]())
    for (b, h) in heads {
      let isPacked = problem.packedQueries != nil
      for n in queryRange(b) {
        for d in 0..<problem.valueDimension { own.append(Double(output(isPacked ? 0 : b, h, n, d))) }
        let row = isPacked ? h * problem.queryShape.length + n : (b * problem.queryHeads + h) * problem.queries + n
        statistics.append(Double(logSumExp[row]))
      }
    }
    func joined(_ i: Int, _ path: KeyPath<HeadValues, [Double]>) -> [Double] { all.flatMap { $0[i][keyPath: path] } }
    return (
      Comparison(
        actual: own, plain: joined(1, \.output), other: hasCutSums ? joined(2, \.output) : nil,
        reference: joined(0, \.output), type: problem.scalarType),
      Comparison(
        actual: statistics, plain: joined(1, \.logSumExp), other: hasCutSums ? joined(2, \.logSumExp) : nil,
        reference: joined(0, \.logSumExp), type: .f32)
    )
  }

  /// Partial results that were left, put together; others as they are.
  private func combined(
    _ parts: @escaping (Int, Int, Int, Int) -> Float, _ logSumExps: [Float]
  ) -> ((Int, Int, Int, Int) -> Float, [Float]) {
    if !problem.leavesParts { return (parts, logSumExps) }
    let count = logSumExps.count / problem.parts
    let rows = (0..<count).map { row in
      let own = (0..<problem.parts).map { Double(logSumExps[$0 * count + row]) }
      let largest = own.contains { $0.isNaN } ? .nan : own.max()!
      if largest == -.infinity { return (weights: own.map { _ in 0.0 }, logSumExp: largest) }
      let sum = own.reduce(0) { $0 + exp($1 - largest) }
      return (weights: own.map { exp($0 - largest) / sum }, logSumExp: largest + log(sum))
    }
    return (
      { b, h, n, d in
        let weights = rows[(b * problem.queryHeads + h) * problem.queries + n].weights
        // A part without keys may hold anything.
        return Float(
          weights.enumerated().reduce(0.0) { sum, part in
            part.element == 0 ? sum : sum + part.element * Double(parts(part.offset * problem.batch + b, h, n, d))
          })
      }, rows.map { Float($0.logSumExp) }
    )
  }

  /// The 64-bit result of a head of a sequence, and plain computations.
  private func head(
    _ b: Int, _ h: Int, _ cache: (keys: TensorView, values: TensorView)?, hasCutSums: Bool
  ) -> [HeadValues] {
    let (shared, rows, queries) = (h / problem.groupSize, rows(b), queryRange(b))
    let factor = Double(scale(entries.queryScales, b, shared)) * Double(scale(entries.keyScales, b, shared))
    func shape(_ length: Int, _ dimension: Int) -> TensorShape {
      TensorShape(batch: 1, heads: 1, length: length, dimension: dimension)
    }
    // Valid, as the whole problem is.
    var one = try! AttentionProblem(
      queries: shape(queries.count, problem.dimension), keys: shape(rows.count, problem.dimension),
      values: shape(rows.count, problem.valueDimension), scalarType: problem.scalarType, mask: problem.mask,
      scale: problem.scale * factor, softcap: problem.softcap)
    (one.sinkType, one.ranges) = (problem.sinkType, problem.ranges)
    if case .given(let count, _) = problem.ranges { one.ranges = .given(count: count, isShared: true) }
    let sinks = problem.exampleSinks.map { [$0[h]] }
    let ranges = entries.ranges(of: b, problem)
    func numbers(isKey: Bool, _ shape: TensorShape) -> Tensor {
      let all = rows.map { row in
        guard let cache else { return cached(isKey: isKey, b, shared, row: row) }
        let (view, place) = (isKey ? cache.keys : cache.values, place(ofRow: row, b))
        return (0..<shape.dimension).map {
          problem.cacheType.load(from: view.row(batch: place.batch, head: shared, token: place.token), at: $0)
        }
      }
      return tensor(shape, .f32) { _, _, n, d in all[n][d] }
    }
    let (k, v) = (numbers(isKey: true, one.keyShape), numbers(isKey: false, one.valueShape))
    let turnedQueries = queries.indices.map { n in
      let number = n - queries.lowerBound
      return turned(
        { problem.queryType.rounded(element(.query, b, h, number, $0)) }, count: problem.dimension, number, b,
        isKey: false)
    }
    let exact = tensor(one.queryShape, .f32) { _, _, n, d in Float(turnedQueries[n][d]) }
    let rounded = tensor(one.queryShape, problem.scalarType) { _, _, n, d in Float(turnedQueries[n][d]) }
    let ofValues = Double(scale(entries.valueScales, b, shared))
    return k.withView { k in
      v.withView { v in
        var results = [
          exact.withView {
            ReferenceAttention.head(0, batch: 0, of: one, queries: $0, keys: k, values: v, sinks: sinks, ranges: ranges)
          },
          rounded.withView {
            PlainAttention.head(0, batch: 0, of: one, queries: $0, keys: k, values: v, sinks: sinks, ranges: ranges)
          },
        ]
        if hasCutSums {
          results.append(
            rounded.withView {
              PlainAttention.head(
                0, batch: 0, of: one, queries: $0, keys: k, values: v, sums: .cut, sinks: sinks, ranges: ranges)
            })
        }
        for i in results.indices { results[i].output = results[i].output.map { $0 * ofValues } }
        return results
      }
    }
  }

  /// Computes the call with a plan on memory of the host.
  ///
  /// - Returns: the comparisons, and what is wrong with the cache afterwards.
  package func run(
    _ plan: AttentionPlan
  ) throws(AttentionError) -> (output: Comparison, logSumExp: Comparison, cacheFault: String?) {
    var statistics = [Float](repeating: .nan, count: problem.logSumExpCount)
    var fault: String?
    let (queries, keys, values, newKeys, newValues) = (queries, keys, values, self.newKeys, newValues)
    let tables = rotaryTables
    let output = try Tensor(shape: problem.outputShape, scalarType: problem.outputType, layout: .bnhd) {
      (o) throws(AttentionError) in
      try statistics.withUnsafeMutableBufferPointer { (lse) throws(AttentionError) in
        try queries.withView { (q) throws(AttentionError) in
          try keys.withView { (k) throws(AttentionError) in
            try values.withView { (v) throws(AttentionError) in
              if problem.newKeys == nil {
                try plan.run(queries: q, keys: k, values: v, output: o, logSumExp: lse, entries: entries)
                return
              }
              try newKeys.withView { (nk) throws(AttentionError) in
                try newValues.withView { (nv) throws(AttentionError) in
                  var new = NewKeyTensors<HostMemory>(keys: nk, values: nv, starts: newStarts, positions: positions)
                  func call() throws(AttentionError) {
                    // These tensors are this function's own.
                    try plan.run(
                      AttentionTensors(
                        queries: q, keys: MutableTensorView(mutating: k), values: MutableTensorView(mutating: v),
                        appending: new, output: o, logSumExp: lse, entries: entries))
                  }
                  guard let tables else { return try call() }
                  try tables.cosines.withView { (c) throws(AttentionError) in
                    try tables.sines.withView { (s) throws(AttentionError) in
                      new.rotary = (c, s)
                      try call()
                    }
                  }
                }
              }
              fault = self.fault(ofCache: k, isKey: true) ?? self.fault(ofCache: v, isKey: false)
            }
          }
        }
      }
    }
    let result = try keys.withView { (k) throws(AttentionError) in
      try values.withView { (v) throws(AttentionError) in
        try compare(
          output: { output[$0, $1, $2, $3] }, logSumExp: statistics, cache: problem.newKeys == nil ? nil : (k, v),
          hasCutSums: plan.gpu != nil)
      }
    }
    return (result.output, result.logSumExp, fault)
  }
}
