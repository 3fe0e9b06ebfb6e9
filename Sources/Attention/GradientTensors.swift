/// The tensors of a call for gradients: what the forward pass read and wrote, the gradient of its output, and where those of
/// its inputs go.
///
/// With dO the gradient of the output and dLSE that of the log-sum-exp, P the weights and S the scores (Dao 2023, section
/// 2.3.2; dLSE by the derivative of a log-sum-exp, which is P):
///
///     delta = rows of (dO * O) - dLSE
///     dV = P^T dO;  dS = P * (dO V^T - delta);  dQ = scale dS K;  dK = scale dS^T Q
///     dsink = -sum of exp(sink - LSE) delta, over the rows of a head
///
/// Gradients of a key/value head are sums over the query heads that read it. A query that sees no key, and a key that no query
/// sees, get zeros. Every element of the gradients is written.
public struct GradientTensors<Memory: TensorMemory> {
  /// `[B, H_q, N_q, D]`; packed `[1, H_q, total, D]`.
  public var queries: Memory.View
  /// `[B, H_kv, N_k, D]`; packed `[1, H_kv, total, D]`.
  public var keys: Memory.View
  /// The same with D_v.
  public var values: Memory.View
  /// O, as the forward pass left it: `[B, H_q, N_q, D_v]`; packed `[1, H_q, total, D_v]`.
  public var output: Memory.View
  /// `[B, H_q, N_q]`, packed `[H_q, total]`, contiguous f32, as the forward pass left it.
  public var logSumExp: Memory.Statistics
  /// dO, of the output's shape.
  public var outputGradient: Memory.View
  /// dLSE, as the log-sum-exp lies; nil for zeros.
  public var logSumExpGradient: Memory.Statistics?
  /// Of the shapes of queries, keys and values; nil for those that nobody wants.
  public var queryGradient, keyGradient, valueGradient: Memory.Output?
  /// `[H_q]`, f32: of the sinks, where the problem has some; nil where nobody wants it.
  public var sinkGradient: Memory.Statistics?
  /// Where each sequence begins, where they are packed; and the sinks, where there are some.
  public var entries: CacheEntries<Memory>

  /// The tensors of a call.
  public init(
    queries: Memory.View, keys: Memory.View, values: Memory.View, output: Memory.View, logSumExp: Memory.Statistics,
    outputGradient: Memory.View, logSumExpGradient: Memory.Statistics? = nil, queryGradient: Memory.Output?,
    keyGradient: Memory.Output?, valueGradient: Memory.Output?, sinkGradient: Memory.Statistics? = nil,
    entries: CacheEntries<Memory> = CacheEntries()
  ) {
    self.sinkGradient = sinkGradient
    (self.queries, self.keys, self.values, self.output) = (queries, keys, values, output)
    (self.logSumExp, self.outputGradient, self.logSumExpGradient) = (logSumExp, outputGradient, logSumExpGradient)
    (self.queryGradient, self.keyGradient, self.valueGradient) = (queryGradient, keyGradient, valueGradient)
    self.entries = entries
  }
}

extension AttentionProblem {
  /// - Throws: `AttentionError.unsupported` for problems that have no gradients.
  package func checkHasGradients() throws(AttentionError) {
    let what: String? =
      switch storage {
      case .contiguous, .paged: "Caches of keys and values have"
      case .whole, .packed:
        cacheType != scalarType || queryType != scalarType
          ? "e4m3 numbers have" : keysPerSplit != nil ? "Splits of a fixed length have" : nil
      }
    if let what {
      throw .unsupported(
        "\(what) no gradients; train with whole keys [B, H, N, D], or packed ones with a list of starts, of the queries' type."
      )
    }
  }

  /// Floating-point operations of the gradients by the field's convention: five products for each pair of a query and a key
  /// that it sees, whatever a kernel computes again.
  public var gradientFlops: Double {
    2 * Double(3 * dimension + 2 * valueDimension) * visiblePairs * Double(batch) * Double(queryHeads)
  }
}

extension GradientTensors {
  private func checkTensors(_ problem: AttentionProblem) throws(AttentionError) {
    let type = problem.scalarType
    if sinkGradient != nil && problem.sinkType == nil {
      throw .notInThePlan(tensor: "gradient of sinks", isMissing: false)
    }
    if queryGradient == nil && keyGradient == nil && valueGradient == nil && sinkGradient == nil {
      throw .unsupported(
        "No gradient is asked for; give memory for that of the queries, the keys, the values or the sinks.")
    }
    for (view, name, shape) in [
      (queries, "queries", problem.queryShape), (keys, "keys", problem.keyShape),
      (values, "values", problem.valueShape),
      (output, "output", problem.outputShape), (outputGradient, "the gradient of the output", problem.outputShape),
    ] as [(Memory.View, StaticString, TensorShape)] {
      try Memory.check(view, name, isFor: shape, type, isWritten: false)
    }
    let read: [(Memory.View, String)] = [
      (queries, "queries"), (keys, "keys"), (values, "values"), (output, "output"),
      (outputGradient, "the gradient of the output"),
    ]
    var written: [(Memory.View, String)] = []
    for (gradient, name, shape) in [
      (queryGradient, "the gradient of the queries", problem.queryShape),
      (keyGradient, "the gradient of the keys", problem.keyShape),
      (valueGradient, "the gradient of the values", problem.valueShape),
    ] as [(Memory.Output?, StaticString, TensorShape)] {
      guard let gradient else { continue }
      let view = Memory.readOnly(gradient)
      try Memory.check(view, name, isFor: shape, type, isWritten: true)
      for (other, otherName) in read + written where Memory.sharesMemory(view, other) {
        throw .sharedMemory(written: "\(name)", read: otherName)
      }
      written.append((view, "\(name)"))
    }
  }

  private func checkPresence(_ problem: AttentionProblem) throws(AttentionError) {
    try entries.checkPresence(problem)
  }
}

extension GradientTensors where Memory == HostMemory {
  /// - Throws: `AttentionError` where a tensor is not what a problem needs, or a number leads out of it.
  package func check(_ problem: AttentionProblem) throws(AttentionError) {
    try problem.checkHasGradients()
    try checkTensors(problem)
    for statistics in [logSumExp, logSumExpGradient] {
      if let statistics, statistics.count != problem.logSumExpCount {
        throw .logSumExpCount(given: statistics.count, needed: problem.logSumExpCount)
      }
    }
    if let sinkGradient, sinkGradient.count != problem.queryHeads {
      throw .unsupported(
        "The gradient of sinks has room for \(sinkGradient.count) numbers; there are \(problem.queryHeads) query heads."
      )
    }
    try checkPresence(problem)
    try entries.checkSinks(problem)
    try entries.checkRanges(problem)
    if !problem.hasWholeKeys { try entries.check(problem, newStarts: nil) }
  }
}

extension GradientTensors where Memory == GPUMemory {
  /// - Throws: `AttentionError` where a tensor is not what a problem needs, or is not aligned.
  package func check(_ problem: AttentionProblem) throws(AttentionError) {
    try problem.checkHasGradients()
    try checkTensors(problem)
    try GPUMemory.checkAligned("log-sum-exp", logSumExp)
    try GPUMemory.checkAligned("gradient of the log-sum-exp", logSumExpGradient)
    try GPUMemory.checkAligned("gradient of sinks", sinkGradient)
    try checkPresence(problem)
    try entries.checkSinks(problem)
    try entries.checkRanges(problem)
    if !problem.hasWholeKeys { try entries.checkAligned() }
  }
}
