package import Attention

/// The rows of a sequence in packed queries and keys.
package struct PackedSequence: Hashable, Sendable {
  package let queries, keys: Range<Int>

  package init(queries: Range<Int>, keys: Range<Int>) { (self.queries, self.keys) = (queries, keys) }
}

/// What gradients of a problem are held against, packed or not: the definition, and the plain computations whose worse error is
/// what is allowed. Rows of no sequence have gradients of zero.
package struct GradientYardstick {
  /// What the forward pass gives, exactly, in the order of the problem's tensors; NaN in rows of no sequence.
  package private(set) var forward: AttentionValues
  package private(set) var reference, plain: GradientValues
  /// The plain computation with the sums of tensor cores, where the result may have them; otherwise with a log-sum-exp that is an
  /// ulp off.
  private var other: GradientValues
  private let type: ScalarType

  /// - Parameters:
  ///   - sequences: where each is, where they are packed; nil where the keys are whole.
  ///   - inputs: all tensors as the problem has them, and dLSE `[B, H_q, N_q]`, packed `[H_q, total]`.
  ///   - sums: how tensor cores made the result's sums; nil where none did.
  package init(
    _ problem: AttentionProblem, sequences: [PackedSequence]?, _ inputs: GradientInputs, sums: PlainAttention.Sums?
  ) throws(AttentionError) {
    type = problem.scalarType
    (reference, plain) = (GradientValues(for: problem), GradientValues(for: problem))
    other = plain
    forward = AttentionValues(for: problem)
    guard let sequences else {
      forward = AttentionCheck.reference(
        problem, queries: inputs.queries, keys: inputs.keys, values: inputs.values, sinks: inputs.sinks,
        ranges: inputs.ranges)
      (reference, plain) = (
        AttentionCheck.gradients(problem, inputs), AttentionCheck.plainGradients(problem, inputs)
      )
      other = AttentionCheck.plainGradients(problem, inputs, sums: sums ?? .rounded, isNudged: sums == nil)
      return
    }
    forward.output = forward.output.map { _ in .nan }
    forward.logSumExp = forward.logSumExp.map { _ in .nan }
    let lists = CacheEntries<HostMemory>(
      queryStarts: sequences.map(\.queries.lowerBound) + [sequences.last?.queries.upperBound ?? 0],
      ranges: inputs.ranges)
    for (number, sequence) in sequences.enumerated() {
      let one = try problem.sequence(queries: sequence.queries.count, length: sequence.keys.count)
      let (q, k) = (sequence.queries, sequence.keys)
      let rows = (0..<problem.queryHeads).flatMap { head in
        q.map { head * problem.queryShape.length + $0 }
      }
      let own = GradientInputs(
        queries: inputs.queries.rows(q), keys: inputs.keys.rows(k), values: inputs.values.rows(k),
        outputGradient: inputs.outputGradient.rows(q),
        logSumExpGradient: inputs.logSumExpGradient.map { all in rows.map { all[$0] } }, sinks: inputs.sinks,
        ranges: lists.ranges(of: number, problem))
      let made = AttentionCheck.reference(
        one, queries: own.queries, keys: own.keys, values: own.values, sinks: own.sinks, ranges: own.ranges)
      forward.output.put(made.output, q, of: problem.outputShape)
      for (row, value) in zip(rows, made.logSumExp) { forward.logSumExp[row] = value }
      func put(_ made: GradientValues, _ all: inout GradientValues) {
        all.queries.put(made.queries, q, of: problem.queryShape)
        all.keys.put(made.keys, k, of: problem.keyShape)
        all.values.put(made.values, k, of: problem.valueShape)
        all.sinks = zip(all.sinks, made.sinks).map { $0 + $1 }
        all.sinkMagnitudes = zip(all.sinkMagnitudes, made.sinkMagnitudes).map { $0 + $1 }
      }
      put(AttentionCheck.gradients(one, own), &reference)
      put(AttentionCheck.plainGradients(one, own), &plain)
      put(AttentionCheck.plainGradients(one, own, sums: sums ?? .rounded, isNudged: sums == nil), &other)
    }
  }

  /// The gradients of sinks, as parts of what their terms amount to. They are few, and their terms nearly cancel: beside the plain
  /// computations' errors, what rounding the output moves them by at most is allowed.
  package func judge(sinks: [Double]) -> Comparison {
    func parts(_ values: [Double]) -> [Double] {
      // GPUs flush weights beneath the normal numbers of f32, 2^-126, to zero. What that loses of a sum of terms up to 2^15 must be within
      // the slack, 2^-11, of what is divided by.
      zip(values, reference.sinkMagnitudes).map { $0 / max($1, 0x1p-100) }
    }
    return Comparison(
      actual: parts(sinks), plain: parts(plain.sinks), other: parts(other.sinks), reference: parts(reference.sinks),
      type: .f32, slack: type.ulp(of: 1) / 2)
  }

  /// dQ, dK and dV, each in the order batch, head, row.
  package func judge(queries: [Double], keys: [Double], values: [Double]) -> [Comparison] {
    [(queries, \GradientValues.queries), (keys, \.keys), (values, \.values)].map { actual, path in
      Comparison(
        actual: actual, plain: plain[keyPath: path], other: other[keyPath: path], reference: reference[keyPath: path],
        type: type)
    }
  }
}

extension TensorView {
  /// Some rows of a packed tensor.
  fileprivate func rows(_ rows: Range<Int>) -> TensorView {
    var own = shape
    own.length = rows.count
    return TensorView(
      base: rows.isEmpty ? base : row(batch: 0, head: 0, token: rows.lowerBound), scalarType: scalarType, shape: own,
      strides: strides)
  }
}

extension [Double] {
  /// Copies `[heads, rows, dimension]` to some rows of `[1, heads, all, dimension]`.
  fileprivate mutating func put(_ values: [Double], _ rows: Range<Int>, of shape: TensorShape) {
    for head in 0..<shape.heads {
      let (from, count) = (head * rows.count * shape.dimension, rows.count * shape.dimension)
      let to = (head * shape.length + rows.lowerBound) * shape.dimension
      replaceSubrange(to..<to + count, with: values[from..<from + count])
    }
  }
}
