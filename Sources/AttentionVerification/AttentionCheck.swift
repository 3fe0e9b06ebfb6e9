package import Attention
internal import CPUAttention
internal import Synchronization

/// Computes what a result is held against, on all processors. Meant for tests and for `verify`: a thousand times slower
/// than attention itself.
package enum AttentionCheck {
  /// The definition in 64-bit floats.
  package static func reference(
    _ problem: AttentionProblem, queries: TensorView, keys: TensorView, values: TensorView, sinks: [Float]? = nil,
    ranges: [Int]? = nil
  ) -> AttentionValues {
    eachHead(of: problem) { batch, head in
      ReferenceAttention.head(
        head, batch: batch, of: problem, queries: queries, keys: keys, values: values, sinks: sinks, ranges: ranges)
    }
  }

  /// The plain computation in the problem's precision, whose error is the yardstick; on a GPU, its sums are made as
  /// tensor cores make them.
  package static func plain(
    _ problem: AttentionProblem, queries: TensorView, keys: TensorView, values: TensorView,
    sums: PlainAttention.Sums = .rounded, sinks: [Float]? = nil, ranges: [Int]? = nil
  ) -> AttentionValues {
    eachHead(of: problem) { batch, head in
      PlainAttention.head(
        head, batch: batch, of: problem, queries: queries, keys: keys, values: values, sums: sums, sinks: sinks,
        ranges: ranges)
    }
  }

  private static func eachHead(
    of problem: AttentionProblem, _ compute: @Sendable (_ batch: Int, _ head: Int) -> HeadValues
  ) -> AttentionValues {
    let result = Mutex(AttentionValues(for: problem))
    if problem.logSumExpCount == 0 { return result.withLock { $0 } }
    WorkerTeam.run(items: problem.batch * problem.queryHeads, threads: WorkerTeam.processors) { queue in
      while let item = queue.next() {
        let (batch, head) = (item / problem.queryHeads, item % problem.queryHeads)
        let rows = compute(batch, head)
        result.withLock { $0.set(rows, batch: batch, head: head, of: problem) }
      }
    }
    return result.withLock { $0 }
  }
}

/// What a result of a problem is held against: the definition, and the plain computations whose worse error is what is
/// allowed.
package struct Yardstick: Sendable {
  package let reference, plain: AttentionValues
  /// The plain computation with the sums of tensor cores, where the result may have them.
  package let other: AttentionValues?
  private let type: ScalarType

  /// - Parameters:
  ///   - exact: Q, K and V as they were before they were rounded to the problem's type; nil for the same.
  ///   - sums: how tensor cores made the result's sums; nil where none did.
  package init(
    _ problem: AttentionProblem, queries: TensorView, keys: TensorView, values: TensorView,
    exact: (queries: TensorView, keys: TensorView, values: TensorView)? = nil, sums: PlainAttention.Sums?,
    sinks: [Float]? = nil, ranges: [Int]? = nil
  ) {
    let (q, k, v) = exact ?? (queries, keys, values)
    reference = AttentionCheck.reference(problem, queries: q, keys: k, values: v, sinks: sinks, ranges: ranges)
    plain = AttentionCheck.plain(problem, queries: queries, keys: keys, values: values, sinks: sinks, ranges: ranges)
    other = sums.map {
      AttentionCheck.plain(
        problem, queries: queries, keys: keys, values: values, sums: $0, sinks: sinks, ranges: ranges)
    }
    type = problem.scalarType
  }

  /// An output in the order batch, head, query.
  package func judge(output: [Double], expected: [Double]? = nil) -> Comparison {
    Comparison(
      actual: output, expected: expected, plain: plain.output, other: other?.output, reference: reference.output,
      type: type)
  }

  /// Log-sum-exps in the order batch, head, query.
  package func judge(logSumExp: [Double], expected: [Double]? = nil) -> Comparison {
    Comparison(
      actual: logSumExp, expected: expected, plain: plain.logSumExp, other: other?.logSumExp,
      reference: reference.logSumExp, type: .f32)
  }
}

// MARK: - Gradients

extension AttentionCheck {
  /// Those of the definition in 64-bit floats.
  package static func gradients(_ problem: AttentionProblem, _ inputs: GradientInputs) -> GradientValues {
    eachGroup(of: problem, inputs) { batch, head, inputs in
      ReferenceGradients.group(head, batch: batch, of: problem, inputs)
    }
  }

  /// The plain computation in the problem's precision, of its own forward pass.
  package static func plainGradients(
    _ problem: AttentionProblem, _ inputs: GradientInputs, sums: PlainAttention.Sums = .rounded, isNudged: Bool = false
  ) -> GradientValues {
    let forward = plain(
      problem, queries: inputs.queries, keys: inputs.keys, values: inputs.values, sums: sums, sinks: inputs.sinks,
      ranges: inputs.ranges)
    return eachGroup(of: problem, inputs) { batch, keyValueHead, inputs in
      PlainGradients.group(
        keyValueHead, batch: batch, of: problem, inputs,
        forward: { head in
          let rows = (batch * problem.queryHeads + head) * problem.queries
          let columns = problem.valueDimension
          return HeadValues(
            output: Array(forward.output[rows * columns..<(rows + problem.queries) * columns]),
            logSumExp: Array(forward.logSumExp[rows..<rows + problem.queries]))
        }, sums: sums, isNudged: isNudged)
    }
  }

  private static func eachGroup(
    of problem: AttentionProblem, _ inputs: GradientInputs,
    _ compute: @Sendable (_ batch: Int, _ keyValueHead: Int, _ inputs: GradientInputs) -> GroupGradients
  ) -> GradientValues {
    let result = Mutex(GradientValues(for: problem))
    WorkerTeam.run(items: problem.batch * problem.keyValueHeads, threads: WorkerTeam.processors) { queue in
      while let item = queue.next() {
        let (batch, head) = (item / problem.keyValueHeads, item % problem.keyValueHeads)
        let group = compute(batch, head, inputs)
        result.withLock { $0.set(group, batch: batch, keyValueHead: head, of: problem) }
      }
    }
    return result.withLock { $0 }
  }
}
