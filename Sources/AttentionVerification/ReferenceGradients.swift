package import Attention

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// Gradients in plain arrays, contiguous: `queries` `[b, h_q, n_q, d]`, `keys` `[b, h_kv, n_k, d]`, `values` `[b, h_kv,
/// n_k, d_v]`, `sinks` `[h_q]` (zeros where there are none).
package struct GradientValues: Sendable {
  package var queries, keys, values, sinks: [Double]
  /// What the terms of a sink's gradient amount to, each number of dO and O by its magnitude, `[h_q]`: rounding the output moves the
  /// gradient by a part of that.
  package var sinkMagnitudes: [Double]

  /// Room for those of a problem, all zero.
  package init(for problem: AttentionProblem) {
    queries = .init(repeating: 0, count: problem.queryShape.elementCount)
    keys = .init(repeating: 0, count: problem.keyShape.elementCount)
    values = .init(repeating: 0, count: problem.valueShape.elementCount)
    sinks = .init(repeating: 0, count: problem.queryHeads)
    sinkMagnitudes = sinks
  }

  /// Copies what was computed for one key/value head to its place.
  package mutating func set(_ group: GroupGradients, batch: Int, keyValueHead: Int, of problem: AttentionProblem) {
    func put(_ rows: [Double], _ all: inout [Double]) {
      let first = (batch * problem.keyValueHeads + keyValueHead) * rows.count
      all.replaceSubrange(first..<first + rows.count, with: rows)
    }
    put(group.queries, &queries)
    put(group.keys, &keys)
    put(group.values, &values)
    for (member, part) in group.sinks.enumerated() {
      sinks[keyValueHead * problem.groupSize + member] += part
      sinkMagnitudes[keyValueHead * problem.groupSize + member] += group.sinkMagnitudes[member]
    }
  }
}

/// The gradients that belong to one key/value head: `queries` `[group, n_q, d]`, `keys` `[n_k, d]`, `values` `[n_k, d_v]`,
/// `sinks` `[group]`.
package struct GroupGradients: Sendable {
  package var queries, keys, values, sinks, sinkMagnitudes: [Double]

  init(_ problem: AttentionProblem) {
    queries = .init(repeating: 0, count: problem.groupSize * problem.queries * problem.dimension)
    keys = .init(repeating: 0, count: problem.keys * problem.dimension)
    values = .init(repeating: 0, count: problem.keys * problem.valueDimension)
    sinks = .init(repeating: 0, count: problem.groupSize)
    sinkMagnitudes = sinks
  }
}

/// What gradients are computed from: the inputs of the forward pass, and the gradients of its results.
package struct GradientInputs {
  package let queries, keys, values, outputGradient: TensorView
  /// `[b, h_q, n_q]`; nil for zeros.
  package let logSumExpGradient: [Float]?
  /// `[h_q]`; nil for none.
  package let sinks: [Float]?
  /// What the call gives of the problem's ranges of keys.
  package let ranges: [Int]?

  package init(
    queries: TensorView, keys: TensorView, values: TensorView, outputGradient: TensorView, logSumExpGradient: [Float]?,
    sinks: [Float]? = nil, ranges: [Int]? = nil
  ) {
    (self.sinks, self.ranges) = (sinks, ranges)
    (self.queries, self.keys, self.values) = (queries, keys, values)
    (self.outputGradient, self.logSumExpGradient) = (outputGradient, logSumExpGradient)
  }
}

/// The gradients of the definition of attention in 64-bit floats, one row at a time: what everything else is held against, and
/// what is itself held against finite differences of `ReferenceAttention`.
///
/// It shares nothing with the fast paths: no log-sum-exp that was stored, no delta from the output. By the derivative of a
/// softmax, dS_j = P_j (dP_j - sum of P dP) + P_j dLSE, from weights that are made here.
package enum ReferenceGradients {
  /// Those of one key/value head. Work that is independent for each (batch, key/value head), for callers with threads.
  package static func group(
    _ keyValueHead: Int, batch: Int, of problem: AttentionProblem, _ inputs: GradientInputs
  ) -> GroupGradients {
    let (d, dv) = (problem.dimension, problem.valueDimension)
    let k = inputs.keys.widened(batch: batch, head: keyValueHead)
    let v = inputs.values.widened(batch: batch, head: keyValueHead)
    var result = GroupGradients(problem)
    var weights = [Double](repeating: 0, count: problem.keys)
    // Of the score by the product of Q and K, and of the result by the weight.
    var slopes = weights
    var weightGradients = weights
    for member in 0..<problem.groupSize {
      let head = keyValueHead * problem.groupSize + member
      let q = inputs.queries.widened(batch: batch, head: head)
      let given = inputs.outputGradient.widened(batch: batch, head: head)
      for i in 0..<problem.queries {
        let visible = problem.seenKeys(byQuery: i, sequence: batch, inputs.ranges)
        let sink = inputs.sinks.map { Double($0[head]) } ?? -.infinity
        let ofLogSumExp = Double(
          inputs.logSumExpGradient?[(batch * problem.queryHeads + head) * problem.queries + i] ?? 0)
        if visible.isEmpty {
          // All of the denominator.
          if sink != -.infinity {
            result.sinks[member] += ofLogSumExp
            result.sinkMagnitudes[member] += ofLogSumExp.magnitude
          }
          continue
        }
        var largest = sink
        for j in visible {
          var score = 0.0
          for c in 0..<d { score += q[i * d + c] * k[j * d + c] }
          score *= problem.scale
          slopes[j] = problem.scale
          if let cap = problem.softcap {
            let t = tanh(score / cap)
            score = cap * t
            slopes[j] *= 1 - t * t
          }
          weights[j] = score
          largest = max(largest, score)
        }
        let ofSink = sink == -.infinity ? 0 : exp(sink - largest)
        var sum = ofSink
        for j in visible {
          weights[j] = exp(weights[j] - largest)
          sum += weights[j]
        }
        var mean = 0.0
        for j in visible {
          weights[j] /= sum
          var product = 0.0
          for c in 0..<dv { product += given[i * dv + c] * v[j * dv + c] }
          weightGradients[j] = product
          mean += weights[j] * product
        }
        result.sinks[member] += ofSink / sum * (ofLogSumExp - mean)
        if ofSink > 0 {
          let terms = (0..<dv).reduce(ofLogSumExp.magnitude) { all, c in
            all + (given[i * dv + c] * visible.reduce(0) { $0 + weights[$1] * v[$1 * dv + c] }).magnitude
          }
          result.sinkMagnitudes[member] += ofSink / sum * terms
        }
        let row = (member * problem.queries + i) * d
        for j in visible {
          let ofScore = weights[j] * (weightGradients[j] - mean + ofLogSumExp) * slopes[j]
          for c in 0..<d {
            result.queries[row + c] += ofScore * k[j * d + c]
            result.keys[j * d + c] += ofScore * q[i * d + c]
          }
          for c in 0..<dv { result.values[j * dv + c] += weights[j] * given[i * dv + c] }
        }
      }
    }
    return result
  }
}

extension TensorView {
  /// The rows of a head, in 64 bits, one behind the other.
  package func widened(batch: Int, head: Int) -> [Double] {
    var row = [Float](repeating: 0, count: shape.dimension)
    var result: [Double] = []
    result.reserveCapacity(shape.length * shape.dimension)
    for n in 0..<shape.length {
      row.withUnsafeMutableBufferPointer { readRow(batch: batch, head: head, token: n, into: $0.baseAddress!) }
      for value in row { result.append(Double(value)) }
    }
    return result
  }
}
