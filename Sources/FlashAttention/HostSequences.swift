internal import Attention
internal import CPUAttention

/// Attention of sequence after sequence on the CPU, each a problem without a cache.
struct HostSequences {
  private let problem: AttentionProblem
  private let threads: Int
  private let tensors: AttentionTensors<HostMemory>
  private var keys: TensorView { tensors.keys }
  private var values: TensorView { tensors.values }
  private var entries: CacheEntries<HostMemory> { tensors.entries }
  /// Whether all is computed in f32: some numbers are bytes, and the CPU's kernels know no scales; or parts are left,
  /// which are f32.
  private let isWidened: Bool

  /// The tensors are what the problem needs.
  init(_ problem: AttentionProblem, _ tensors: AttentionTensors<HostMemory>, threads: Int) {
    (self.problem, self.tensors, self.threads) = (problem, tensors, threads)
    isWidened =
      problem.cacheType == .e4m3 || tensors.queries.scalarType == .e4m3
      || (problem.leavesParts && problem.scalarType != .f32)
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
    let (output, logSumExp) = (tensors.output, tensors.logSumExp)
    // The first part has all keys.
    if problem.leavesParts { logSumExp?.update(repeating: -.infinity) }
    for sequence in 0..<problem.batch {
      let queries = entries.queries(of: sequence, problem)
      if queries.isEmpty { continue }
      let count = max(0, entries.rows(of: sequence) - entries.firstRow(of: sequence))
      let one = try problem.sequence(queries: queries.count, length: count, type: isWidened ? .f32 : nil)
      let q = rows(tensors.queries, of: sequence, queries, one.queryShape)
      let own = MutableTensorView(
        base: UnsafeMutableRawPointer(mutating: rows(output.readOnly, of: sequence, queries, one.outputShape).base),
        scalarType: output.scalarType, shape: one.outputShape, strides: output.strides)
      var statistics = [Float](repeating: 0, count: one.logSumExpCount)
      try statistics.withUnsafeMutableBufferPointer { (statistics) throws(AttentionError) in
        try run(one, sequence, q, own, statistics)
      }
      guard let logSumExp else { continue }
      for head in 0..<problem.queryHeads {
        for (i, query) in queries.enumerated() {
          let row =
            problem.packedQueries.map { head * $0 + query } ?? (sequence * problem.queryHeads + head) * problem.queries
            + query
          logSumExp[row] = statistics[head * queries.count + i]
        }
      }
    }
  }

  /// The rows of a sequence in queries or output.
  private func rows(_ view: TensorView, of sequence: Int, _ rows: Range<Int>, _ shape: TensorShape) -> TensorView {
    let isPacked = problem.packedQueries != nil
    return TensorView(
      base: view.row(batch: isPacked ? 0 : sequence, head: 0, token: rows.lowerBound), scalarType: view.scalarType,
      shape: shape, strides: view.strides)
  }

  private func run(
    _ one: AttentionProblem, _ sequence: Int, _ q: TensorView, _ output: MutableTensorView,
    _ statistics: UnsafeMutableBufferPointer<Float>
  ) throws(AttentionError) {
    if isWidened {
      for head in 0..<problem.keyValueHeads { try runWidened(one, sequence, head: head, q, output, statistics) }
      return
    }
    let plan = try CPUPlan(one, threads: threads)
    let ranges = entries.ranges(of: sequence, problem)
    if let k = contiguous(keys, of: sequence, one.keyShape), let v = contiguous(values, of: sequence, one.valueShape) {
      return try plan.run(
        queries: q, keys: k, values: v, output: output, logSumExp: statistics, sinks: entries.sinks, ranges: ranges)
    }
    let heads = 0..<problem.keyValueHeads
    let (k, v) = (
      try gathered(keys, of: sequence, heads, one.keyShape, one.scalarType),
      try gathered(values, of: sequence, heads, one.valueShape, one.scalarType)
    )
    try k.withView { (k) throws(AttentionError) in
      try v.withView { (v) throws(AttentionError) in
        try plan.run(
          queries: q, keys: k, values: v, output: output, logSumExp: statistics, sinks: entries.sinks, ranges: ranges)
      }
    }
  }

  /// A key/value head in f32, where bytes and 16 bits are exact: the scales of scores go into the problem's, that of
  /// values onto the result.
  private func runWidened(
    _ all: AttentionProblem, _ sequence: Int, head: Int, _ q: TensorView, _ output: MutableTensorView,
    _ statistics: UnsafeMutableBufferPointer<Float>
  ) throws(AttentionError) {
    let group = problem.groupSize
    let factor = Double(scale(entries.queryScales, sequence, head)) * Double(scale(entries.keyScales, sequence, head))
    func shape(_ heads: Int, _ length: Int, _ dimension: Int) -> TensorShape {
      TensorShape(batch: 1, heads: heads, length: length, dimension: dimension)
    }
    var one = try AttentionProblem(
      queries: shape(group, all.queries, all.dimension), keys: shape(1, all.keys, all.dimension),
      values: shape(1, all.keys, all.valueDimension), scalarType: .f32, mask: all.mask, scale: all.scale * factor,
      softcap: all.softcap)
    (one.sinkType, one.ranges) = (all.sinkType, all.ranges)
    let (k, v) = (
      try gathered(keys, of: sequence, head..<head + 1, one.keyShape, .f32),
      try gathered(values, of: sequence, head..<head + 1, one.valueShape, .f32)
    )
    let widened = try Tensor(shape: one.queryShape, scalarType: .f32) { _, h, n, d in
      q.scalarType.load(from: q.row(batch: 0, head: head * group + h, token: n), at: d)
    }
    let plan = try CPUPlan(one, threads: threads)
    let rows = group * all.queries
    let ranges = entries.ranges(of: sequence, problem)
    let sinks = entries.sinks.map { Array($0[head * group..<(head + 1) * group]) }
    let own = UnsafeMutableBufferPointer(rebasing: statistics[head * rows..<(head + 1) * rows])
    let result = try Tensor(shape: one.outputShape, scalarType: .f32) { (wide) throws(AttentionError) in
      try widened.withView { (q) throws(AttentionError) in
        try k.withView { (k) throws(AttentionError) in
          try v.withView { (v) throws(AttentionError) in
            try plan.run(queries: q, keys: k, values: v, output: wide, logSumExp: own, sinks: sinks, ranges: ranges)
          }
        }
      }
    }
    let ofValues = scale(entries.valueScales, sequence, head)
    result.withView { wide in
      for h in 0..<group {
        for n in 0..<one.queries {
          let (from, to) = (
            wide.row(batch: 0, head: h, token: n), output.row(batch: 0, head: head * group + h, token: n)
          )
          for d in 0..<one.valueDimension {
            output.scalarType.store(wide.scalarType.load(from: from, at: d) * ofValues, to: to, at: d)
          }
        }
      }
    }
  }

  private func scale(_ scales: [Float]?, _ sequence: Int, _ head: Int) -> Float {
    scales?[sequence * problem.keyValueHeads + head] ?? 1
  }

  /// The keys or values of a sequence where they lie one after the other; nil on pages.
  private func contiguous(_ cache: TensorView, of sequence: Int, _ shape: TensorShape) -> TensorView? {
    if problem.pages != nil { return nil }
    // Without a key there is no row to begin at.
    let base = shape.length == 0 ? cache.base : place(of: 0, head: 0, sequence, in: cache)
    return TensorView(base: base, scalarType: cache.scalarType, shape: shape, strides: cache.strides)
  }

  /// Where key `n` of a sequence is.
  private func place(of n: Int, head: Int, _ sequence: Int, in cache: TensorView) -> UnsafeRawPointer {
    let row = n + entries.firstRow(of: sequence)
    let place = problem.place(ofRow: row, sequence, entries)
    return cache.row(batch: place.batch, head: head, token: place.token)
  }

  /// A copy of a sequence's keys or values of some heads, in another type where they are bytes.
  private func gathered(
    _ cache: TensorView, of sequence: Int, _ heads: Range<Int>, _ shape: TensorShape, _ type: ScalarType
  ) throws(AttentionError) -> Tensor {
    try Tensor(shape: shape, scalarType: type) { destination in
      for (i, h) in heads.enumerated() {
        for n in 0..<shape.length {
          let (from, to) = (place(of: n, head: h, sequence, in: cache), destination.row(batch: 0, head: i, token: n))
          if cache.scalarType == type {
            to.copyMemory(from: from, byteCount: shape.dimension * type.byteCount)
          } else {
            for d in 0..<shape.dimension { type.store(cache.scalarType.load(from: from, at: d), to: to, at: d) }
          }
        }
      }
    }
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
