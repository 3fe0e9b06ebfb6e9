package import Attention

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// Gradients as a careful programmer would first write them in the problem's own precision: from the output and the log-sum-exp
/// of `PlainAttention`, with weights and gradients of scores rounded to the type before they are multiplied, and
/// sums in f32. Their error is the yardstick of `Comparison`.
package enum PlainGradients {
  /// Those of one key/value head, as `ReferenceGradients.group`.
  ///
  /// - Parameters:
  ///   - forward: what the forward pass made of each query head of the group: rounded outputs, f32 log-sum-exps.
  ///   - isNudged: whether the log-sum-exps are one ulp larger: a forward pass rounds them more than once, and where one is large,
  ///     that is the largest error of a gradient in f32.
  package static func group(
    _ keyValueHead: Int, batch: Int, of problem: AttentionProblem, _ inputs: GradientInputs,
    forward: (_ head: Int) -> HeadValues, sums: PlainAttention.Sums = .rounded, isNudged: Bool = false
  ) -> GroupGradients {
    let (d, dv, type) = (problem.dimension, problem.valueDimension, problem.scalarType)
    let (keys, queries) = (problem.keys, problem.queries)
    let k = inputs.keys.floats(batch: batch, head: keyValueHead)
    let v = inputs.values.floats(batch: batch, head: keyValueHead)
    let scale = Float(problem.scale)
    var result = GroupGradients(problem)
    // [n_q of all heads of the group, n_k], rounded to the type.
    let rows = problem.groupSize * queries
    var weights = [Float](repeating: 0, count: rows * keys)
    var scoreGradients = weights
    var allQueries: [Float] = []
    var allGiven: [Float] = []
    for member in 0..<problem.groupSize {
      let head = keyValueHead * problem.groupSize + member
      let q = inputs.queries.floats(batch: batch, head: head)
      let given = inputs.outputGradient.floats(batch: batch, head: head)
      let made = forward(head)
      allQueries += q
      allGiven += given
      var ofSink: Float = 0
      defer { result.sinks[member] = Double(ofSink) }
      for i in 0..<queries {
        let visible = problem.seenKeys(byQuery: i, sequence: batch, inputs.ranges)
        let row = (member * queries + i) * keys
        var delta: Float = 0
        for c in 0..<dv { delta += given[i * dv + c] * Float(made.output[i * dv + c]) }
        delta -= inputs.logSumExpGradient?[(batch * problem.queryHeads + head) * queries + i] ?? 0
        if let sink = inputs.sinks?[head], sink != -.infinity {
          let logSumExp = Float(made.logSumExp[i])
          // Each in the direction that makes the sum's error larger: terms of both signs nearly cancel.
          let nudged = isNudged ? (delta > 0 ? logSumExp.nextDown : logSumExp.nextUp) : logSumExp
          ofSink -= expf(sink - nudged) * delta
        }
        if visible.isEmpty { continue }
        for j in visible {
          var score = sums.sum(0, count: d) { (q[i * d + $0], k[j * d + $0]) } * scale
          var slope: Float = 1
          if let cap = problem.softcap.map(Float.init) {
            let t = tanhf(score / cap)
            (score, slope) = (cap * t, 1 - t * t)
          }
          let logSumExp = Float(made.logSumExp[i])
          let weight = expf(score - (isNudged ? logSumExp.nextUp : logSumExp))
          let product = sums.sum(0, count: dv) { (given[i * dv + $0], v[j * dv + $0]) }
          weights[row + j] = type.rounded(weight)
          scoreGradients[row + j] = type.rounded(weight * (product - delta) * slope)
        }
        for c in 0..<d {
          let sum = sums.sum(0, count: visible.count) {
            (scoreGradients[row + visible[$0]], k[visible[$0] * d + c])
          }
          result.queries[(member * queries + i) * d + c] = Double(type.rounded(sum * scale))
        }
      }
    }
    for j in 0..<keys {
      for c in 0..<d {
        let sum = sums.sum(0, count: rows) { (scoreGradients[$0 * keys + j], allQueries[$0 * d + c]) }
        result.keys[j * d + c] = Double(type.rounded(sum * scale))
      }
      for c in 0..<dv {
        let sum = sums.sum(0, count: rows) { (weights[$0 * keys + j], allGiven[$0 * dv + c]) }
        result.values[j * dv + c] = Double(type.rounded(sum))
      }
    }
    return result
  }
}

extension TensorView {
  /// The rows of a head, one behind the other.
  func floats(batch: Int, head: Int) -> [Float] {
    let d = shape.dimension
    return [Float](unsafeUninitializedCapacity: shape.length * d) { buffer, count in
      for n in 0..<shape.length {
        readRow(batch: batch, head: head, token: n, into: buffer.baseAddress! + n * d)
      }
      count = shape.length * d
    }
  }
}
