internal import Attention
internal import CPUAttention

/// Attention of sequences on the CPU, all at once: each a problem whose keys are where the cache has them, on pages or not, and in
/// its type.
struct HostSequences {
  private let problem: AttentionProblem
  private let threads: Int
  private let tensors: AttentionTensors<HostMemory>
  private var keys: TensorView { tensors.keys }
  private var values: TensorView { tensors.values }
  private var entries: CacheEntries<HostMemory> { tensors.entries }

  /// The tensors are what the problem needs.
  init(_ problem: AttentionProblem, _ tensors: AttentionTensors<HostMemory>, threads: Int) {
    (self.problem, self.tensors, self.threads) = (problem, tensors, threads)
  }

  /// Appends what the call brings, and attends.
  func run() throws(AttentionError) {
    guard let new = tensors.newKeys else { return try attendAll() }
    let append = HostAppend(problem, new, entries)
    append.append(to: MutableTensorView(mutating: keys), MutableTensorView(mutating: values))
    if problem.logSumExpCount == 0 { return }
    func attend(_ queries: TensorView) throws(AttentionError) {
      var turned = tensors
      (turned.queries, turned.entries) = (queries, append.entriesAfterwards)
      let sequences = HostSequences(problem, turned, threads: threads)
      try sequences.attendAll()
    }
    guard let turned = try append.turned(tensors.queries) else { return try attend(tensors.queries) }
    try turned.withView { (view) throws(AttentionError) in try attend(view) }
  }

  private func attendAll() throws(AttentionError) {
    let logSumExp = tensors.logSumExp
    // The first part has all keys.
    if problem.leavesParts { logSumExp?.update(repeating: -.infinity) }
    // Parts that are left are f32, and are made so; of bytes the plan knows what it can multiply them with.
    let hasBytes = problem.cacheType == .e4m3 || tensors.queries.scalarType == .e4m3
    var calls: [(plan: CPUPlan, sequence: Int, queries: Range<Int>)] = []
    for sequence in 0..<problem.batch {
      let queries = entries.queries(of: sequence, problem)
      if queries.isEmpty { continue }
      let count = max(0, entries.rows(of: sequence) - entries.firstRow(of: sequence))
      let one = try problem.sequence(queries: queries.count, length: count, type: problem.leavesParts ? .f32 : nil)
      // Of the sequence alone: its bits do not depend on the others.
      calls.append((try CPUPlan(one, hasBytes: hasBytes, threads: threads), sequence, queries))
    }
    // Those with the most work first, so that no thread is left alone with one at the end.
    calls.sort {
      ($0.queries.count * $0.plan.problem.keys, $1.sequence) > ($1.queries.count * $1.plan.problem.keys, $0.sequence)
    }
    var statistics = [Float](repeating: 0, count: calls.reduce(0) { $0 + $1.plan.problem.logSumExpCount })
    try statistics.withUnsafeMutableBufferPointer { (statistics) throws(AttentionError) in
      var (first, all) = (0, [CPUCall]())
      for (plan, sequence, queries) in calls {
        all.append(try call(plan, sequence, queries, statistics.baseAddress.map { $0 + first }))
        first += plan.problem.logSumExpCount
      }
      CPUCall.run(all, threads: threads)
    }
    guard let logSumExp else { return }
    var first = 0
    for (plan, sequence, queries) in calls {
      for head in 0..<problem.queryHeads {
        for (i, query) in queries.enumerated() {
          let row =
            problem.packedQueries.map { head * $0 + query } ?? (sequence * problem.queryHeads + head) * problem.queries
            + query
          logSumExp[row] = statistics[first + head * queries.count + i]
        }
      }
      first += plan.problem.logSumExpCount
    }
  }

  /// The rows of a sequence in queries or output.
  private func rows(_ view: TensorView, of sequence: Int, _ rows: Range<Int>, _ shape: TensorShape) -> TensorView {
    let isPacked = problem.packedQueries != nil
    return TensorView(
      base: view.row(batch: isPacked ? 0 : sequence, head: 0, token: rows.lowerBound), scalarType: view.scalarType,
      shape: shape, strides: view.strides)
  }

  /// - Throws: `AttentionError.scale` where scales of bytes make one of scores that cannot be.
  private func call(
    _ plan: CPUPlan, _ sequence: Int, _ queries: Range<Int>, _ statistics: UnsafeMutablePointer<Float>?
  ) throws(AttentionError) -> CPUCall {
    let output = tensors.output
    let heads = 0..<problem.keyValueHeads
    func scales(_ all: [Float]?) -> [Float]? { all.map { all in heads.map { all[sequence * heads.count + $0] } } }
    let (ofQueries, ofKeys) = (scales(entries.queryScales), scales(entries.keyScales))
    let ofScores =
      ofQueries == nil && ofKeys == nil
      ? nil : heads.map { Double(ofQueries?[$0] ?? 1) * Double(ofKeys?[$0] ?? 1) }
    for factor in ofScores ?? [] where !AttentionProblem.isScale(problem.scale * factor) {
      throw .scale(problem.scale * factor)
    }
    return CPUCall(
      plan, queries: rows(tensors.queries, of: sequence, queries, plan.problem.queryShape),
      keys: keyRows(keys, of: sequence),
      values: keyRows(values, of: sequence),
      output: MutableTensorView(
        base: UnsafeMutableRawPointer(
          mutating: rows(output.readOnly, of: sequence, queries, plan.problem.outputShape).base),
        scalarType: output.scalarType, shape: plan.problem.outputShape, strides: output.strides),
      logSumExp: statistics, sinks: entries.sinks, ranges: entries.ranges(of: sequence, problem),
      scoreFactors: ofScores,
      valueFactors: scales(entries.valueScales))
  }

  /// Where a sequence's keys or values are.
  private func keyRows(_ cache: TensorView, of sequence: Int) -> KeyRows {
    let first = entries.firstRow(of: sequence)
    if let pages = problem.pages {
      return KeyRows(cache, pages: entries.pageTable![sequence], size: pages.size, from: first)
    }
    let place = problem.place(ofRow: first, sequence, entries)
    return KeyRows(cache, batch: place.batch, from: place.token)
  }
}

extension AttentionProblem {
  /// Where a row of a sequence's cache is, in the views of keys and values.
  func place(
    ofRow row: Int, _ sequence: Int, _ entries: CacheEntries<HostMemory>
  ) -> (batch: Int, token: Int) {
    switch storage {
    case .whole: (sequence, row)
    case .contiguous: (entries.batchIndex?[sequence] ?? sequence, row)
    case .packed: (0, entries.keyStarts![sequence] + row)
    case .paged(_, let pageSize, _): (entries.pageTable![sequence][row / pageSize], row % pageSize)
    }
  }
}
