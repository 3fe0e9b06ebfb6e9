package import AttentionVerification
package import FlashAttention

/// Holds some rows of a large result against the 64-bit reference: the last queries of the last head, of which every
/// mask that counts from the end shows the same keys as in the whole.
package struct SampledCheck {
  /// How many queries are held against the reference.
  package static let queryCount = 64

  private let problem: AttentionProblem
  private let whole: AttentionProblem
  private let yardstick: Yardstick

  /// - Parameter sums: how the result's sums are made, for the yardstick.
  package init(
    _ whole: AttentionProblem, _ inputs: ProblemInputs, sums: PlainAttention.Sums = .cut
  ) throws(AttentionError) {
    let count = min(Self.queryCount, whole.queries)
    func last(_ shape: TensorShape, length: Int) -> TensorShape {
      TensorShape(batch: 1, heads: 1, length: length, dimension: shape.dimension)
    }
    let problem = try AttentionProblem(
      queries: last(whole.queryShape, length: count), keys: last(whole.keyShape, length: whole.keys),
      values: last(whole.valueShape, length: whole.keys), scalarType: whole.scalarType, mask: whole.mask,
      scale: whole.scale, softcap: whole.softcap)
    func view(_ view: TensorView, _ shape: TensorShape) -> TensorView {
      TensorView(
        base: view.row(
          batch: view.shape.batch - 1, head: view.shape.heads - 1, token: view.shape.length - shape.length),
        scalarType: view.scalarType, shape: shape, strides: view.strides)
    }
    (self.problem, self.whole) = (problem, whole)
    yardstick = inputs.queries.withView { q in
      inputs.keys.withView { k in
        inputs.values.withView { v in
          Yardstick(
            problem, queries: view(q, problem.queryShape), keys: view(k, problem.keyShape),
            values: view(v, problem.valueShape), sums: sums)
        }
      }
    }
  }

  /// The worst error as a part of what is allowed.
  ///
  /// - Parameters:
  ///   - output: the elements of `[B, H_q, N_q, D_v]`.
  ///   - logSumExp: `[B, H_q, N_q]`.
  package func ratio(output: [UInt8], logSumExp: [Float]) -> Double {
    let count = problem.queries * problem.valueDimension
    let values = output.suffix(count * problem.scalarType.byteCount).withUnsafeBytes { bytes in
      (0..<count).map { Double(problem.scalarType.load(from: bytes.baseAddress!, at: $0)) }
    }
    let outputs = yardstick.judge(output: values)
    let statistics = yardstick.judge(logSumExp: logSumExp.suffix(problem.queries).map(Double.init))
    return max(outputs.ratio, statistics.ratio)
  }
}
