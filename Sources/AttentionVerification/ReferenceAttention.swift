package import Attention

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// An attention result in plain arrays: `output` `[b, h_q, n_q, d_v]` and `logSumExp` `[b, h_q, n_q]`, contiguous.
package struct AttentionValues: Sendable {
  /// The outputs.
  package var output: [Double]
  /// The log-sum-exps, natural logarithm.
  package var logSumExp: [Double]

  /// Room for the result of a problem, all zero.
  package init(for problem: AttentionProblem) {
    output = .init(repeating: 0, count: problem.outputShape.elementCount)
    logSumExp = .init(repeating: 0, count: problem.logSumExpCount)
  }

  /// Copies what was computed for one head to its place.
  public mutating func set(_ values: HeadValues, batch: Int, head: Int, of problem: AttentionProblem) {
    let rows = (batch * problem.queryHeads + head) * problem.queries
    output.replaceSubrange(
      rows * problem.valueDimension..<(rows + problem.queries) * problem.valueDimension, with: values.output)
    logSumExp.replaceSubrange(rows..<rows + problem.queries, with: values.logSumExp)
  }
}

/// The rows of one head: `output` `[n_q, d_v]`, `logSumExp` `[n_q]`.
package struct HeadValues: Sendable {
  /// The outputs.
  package var output: [Double]
  /// The log-sum-exps, natural logarithm.
  package var logSumExp: [Double]
}

/// The definition of attention in 64-bit floats, one row at a time: what everything else is held against.
///
/// It shares nothing with the fast paths but the validated problem: no tiles, no running maximum, no base 2.
package enum ReferenceAttention {
  /// The result for one query head. Work that is independent for each (batch, head), for callers with threads.
  ///
  /// - Parameters:
  ///   - sinks: `[H_q]`, where the problem has some.
  ///   - ranges: what the call gives of the problem's ranges of keys.
  package static func head(
    _ head: Int, batch: Int, of problem: AttentionProblem, queries: TensorView, keys: TensorView, values: TensorView,
    sinks: [Float]? = nil, ranges: [Int]? = nil
  ) -> HeadValues {
    let shared = head / problem.groupSize
    let q = queries.widened(batch: batch, head: head)
    let k = keys.widened(batch: batch, head: shared)
    let v = values.widened(batch: batch, head: shared)
    let (d, dv) = (problem.dimension, problem.valueDimension)
    var result = HeadValues(
      output: .init(repeating: 0, count: problem.queries * dv),
      logSumExp: .init(repeating: -.infinity, count: problem.queries))
    var weights = [Double](repeating: 0, count: problem.keys)

    for i in 0..<problem.queries {
      let visible = problem.seenKeys(byQuery: i, sequence: batch, ranges)
      let sink = sinks.map { Double($0[head]) } ?? -.infinity
      if visible.isEmpty {
        result.logSumExp[i] = sink
        continue
      }
      var largest = sink
      for j in visible {
        var score = 0.0
        for c in 0..<d { score += q[i * d + c] * k[j * d + c] }
        score *= problem.scale
        if let cap = problem.softcap { score = cap * tanh(score / cap) }
        weights[j] = score
        largest = max(largest, score)
      }
      var sum = sink == -.infinity ? 0.0 : exp(sink - largest)
      for j in visible {
        weights[j] = exp(weights[j] - largest)
        sum += weights[j]
      }
      for j in visible {
        let weight = weights[j] / sum
        for c in 0..<dv { result.output[i * dv + c] += weight * v[j * dv + c] }
      }
      result.logSumExp[i] = largest + log(sum)
    }
    return result
  }

  /// The whole result, one head after the other.
  package static func compute(
    _ problem: AttentionProblem, queries: TensorView, keys: TensorView, values: TensorView, sinks: [Float]? = nil,
    ranges: [Int]? = nil
  ) -> AttentionValues {
    var result = AttentionValues(for: problem)
    for b in 0..<problem.batch {
      for h in 0..<problem.queryHeads {
        let rows = head(
          h, batch: b, of: problem, queries: queries, keys: keys, values: values, sinks: sinks, ranges: ranges)
        result.set(rows, batch: b, head: h, of: problem)
      }
    }
    return result
  }
}
