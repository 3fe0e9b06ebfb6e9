#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// Attention as a careful programmer would first write it in the problem's own precision: inputs and weights rounded to
/// the type, sums in f32, one row at a time. Its error is the yardstick of `Comparison`.
public enum PlainAttention {
  /// The result for one query head, as `ReferenceAttention.head`.
  public static func head(
    _ head: Int, batch: Int, of problem: AttentionProblem, queries: TensorView, keys: TensorView, values: TensorView
  ) -> HeadValues {
    let shared = head / problem.groupSize
    let type = problem.scalarType
    let (d, dv) = (problem.dimension, problem.valueDimension)
    let k = rows(of: keys, batch: batch, head: shared)
    let v = rows(of: values, batch: batch, head: shared)
    let q = rows(of: queries, batch: batch, head: head)
    let scale = Float(problem.scale)
    var result = HeadValues(
      output: .init(repeating: 0, count: problem.queries * dv),
      logSumExp: .init(repeating: -.infinity, count: problem.queries))
    var weights = [Float](repeating: 0, count: problem.keys)
    var row = [Float](repeating: 0, count: dv)

    for i in 0..<problem.queries {
      let visible = problem.visibleKeys(ofQuery: i)
      if visible.isEmpty { continue }
      var largest = -Float.infinity
      for j in visible {
        var score: Float = 0
        for c in 0..<d { score += q[i * d + c] * k[j * d + c] }
        score *= scale
        if let cap = problem.softcap.map(Float.init) { score = cap * tanhf(score / cap) }
        weights[j] = score
        largest = max(largest, score)
      }
      var sum: Float = 0
      for c in 0..<dv { row[c] = 0 }
      for j in visible {
        let weight = expf(weights[j] - largest)
        sum += weight
        let rounded = type.rounded(weight)
        for c in 0..<dv { row[c] += rounded * v[j * dv + c] }
      }
      for c in 0..<dv { result.output[i * dv + c] = Double(type.rounded(row[c] / sum)) }
      result.logSumExp[i] = Double(largest + logf(sum))
    }
    return result
  }

  private static func rows(of view: TensorView, batch: Int, head: Int) -> [Float] {
    let d = view.shape.dimension
    return [Float](unsafeUninitializedCapacity: view.shape.length * d) { buffer, count in
      for n in 0..<view.shape.length {
        view.readRow(batch: batch, head: head, token: n, into: buffer.baseAddress! + n * d)
      }
      count = view.shape.length * d
    }
  }
}
