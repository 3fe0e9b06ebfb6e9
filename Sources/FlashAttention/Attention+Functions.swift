/// An attention result: the output and, for each query, the logarithm of its softmax's denominator.
public struct AttentionResult: Sendable {
  /// `[B, H_q, N_q, D_v]`, in the layout of the queries.
  public let output: Tensor
  /// `[B, H_q, N_q]`, natural logarithm, scale and sink included; -inf for a query that sees no key, and no sink.
  public let logSumExp: [Float]

  package init(output: Tensor, logSumExp: [Float]) { (self.output, self.logSumExp) = (output, logSumExp) }
}

/// Computes `softmax(mask(scale * Q K^T)) V`, exactly and without an N x N buffer.
///
///     let output = try attention(queries: q, keys: k, values: v, mask: .causal)
///
/// - Parameters:
///   - queries: `[B, H_q, N_q, D]`.
///   - keys: `[B, H_kv, N_k, D]`; `H_q` a multiple of `H_kv` (grouped-query attention needs nothing else).
///   - values: `[B, H_kv, N_k, D_v]`.
///   - mask: which keys a query sees, aligned to the last key.
///   - scale: nil for `1/sqrt(D)`.
///   - softcap: c of `c * tanh(scale * s / c)`; nil for none.
///   - sinks: `[H_q]`, a logit for each query head that is in the softmax's denominator and has no value; nil for none.
///   - ranges: keys that queries see by ranges, beside or within what the mask says; nil for none.
///   - device: where; `.auto` picks.
/// - Returns: `[B, H_q, N_q, D_v]` in the type and layout of the queries.
/// - Throws: `AttentionError` where shapes or types do not fit, or the device cannot be used.
public func attention(
  queries: Tensor, keys: Tensor, values: Tensor, mask: AttentionMask = .none, scale: Double? = nil,
  softcap: Double? = nil, sinks: [Float]? = nil, ranges: KeyRanges? = nil, device: Device = .auto
) throws(AttentionError) -> Tensor {
  try attentionWithLogSumExp(
    queries: queries, keys: keys, values: values, mask: mask, scale: scale, softcap: softcap,
    sinks: sinks, ranges: ranges, device: device
  ).output
}

/// As `attention`, with the log-sum-exp, from which results over parts of the keys can be combined.
public func attentionWithLogSumExp(
  queries: Tensor, keys: Tensor, values: Tensor, mask: AttentionMask = .none, scale: Double? = nil,
  softcap: Double? = nil, sinks: [Float]? = nil, ranges: KeyRanges? = nil, device: Device = .auto
) throws(AttentionError) -> AttentionResult {
  var problem = try AttentionProblem(
    queries: queries, keys: keys, values: values, mask: mask, scale: scale, softcap: softcap)
  (problem.sinkType, problem.ranges) = (sinks == nil ? nil : .f32, ranges?.form)
  return try AttentionPlan(problem, device: device).run(
    queries: queries, keys: keys, values: values, sinks: sinks, ranges: ranges)
}

extension AttentionProblem {
  /// The problem that three tensors pose.
  /// - Throws: `AttentionError` where shapes or types do not fit.
  public init(
    queries: Tensor, keys: Tensor, values: Tensor, mask: AttentionMask = .none, scale: Double? = nil,
    softcap: Double? = nil
  ) throws(AttentionError) {
    for (name, tensor) in [("keys", keys), ("values", values)] where tensor.scalarType != queries.scalarType {
      throw .mixedTypes(
        first: "queries", firstType: queries.scalarType, second: name, secondType: tensor.scalarType)
    }
    try self.init(
      queries: queries.shape, keys: keys.shape, values: values.shape, scalarType: queries.scalarType, mask: mask,
      scale: scale, softcap: softcap)
  }
}

extension AttentionPlan {
  /// Computes the problem on tensors; the output is new.
  ///
  /// - Parameters:
  ///   - queries: `[B, H_q, N_q, D]`.
  ///   - keys: `[B, H_kv, N_k, D]`.
  ///   - values: `[B, H_kv, N_k, D_v]`.
  ///   - sinks: `[H_q]`, where the problem has some.
  ///   - ranges: of the form that the problem has, where it has some.
  /// - Throws: `AttentionError` where a tensor is not what the plan was made for.
  public func run(
    queries: Tensor, keys: Tensor, values: Tensor, sinks: [Float]? = nil, ranges: KeyRanges? = nil
  ) throws(AttentionError) -> AttentionResult {
    try problem.check(ranges)
    var logSumExp = [Float](repeating: 0, count: problem.logSumExpCount)
    let output = try Tensor(
      shape: problem.outputShape, scalarType: problem.scalarType, layout: queries.layout
    ) { (destination) throws(AttentionError) in
      try logSumExp.withUnsafeMutableBufferPointer { (statistics) throws(AttentionError) in
        try queries.withView { (q) throws(AttentionError) in
          try keys.withView { (k) throws(AttentionError) in
            try values.withView { (v) throws(AttentionError) in
              try run(
                queries: q, keys: k, values: v, output: destination, logSumExp: statistics,
                entries: CacheEntries(sinks: sinks, ranges: ranges?.numbers))
            }
          }
        }
      }
    }
    return AttentionResult(output: output, logSumExp: logSumExp)
  }
}
