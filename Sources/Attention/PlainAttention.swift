#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// Attention as a careful programmer would first write it in the problem's own precision: inputs and weights rounded to
/// the type, sums in f32, one row at a time. Its error is the yardstick of `Comparison`.
public enum PlainAttention {
  /// How sums of products are made.
  public enum Sums: Sendable {
    /// Product by product, each sum rounded to nearest.
    case rounded
    /// As tensor cores make them: 16 products and the sum before them at once, then cut off toward zero.
    case cut
    /// As tensor cores with f16 accumulators make them: 16 products and the sum before them at once, then rounded to f16.
    case half

    /// `start` and the products of two vectors.
    func sum(_ start: Float, count: Int, _ product: (Int) -> (Float, Float)) -> Float {
      var sum = start
      switch self {
      case .rounded:
        for i in 0..<count {
          let (a, b) = product(i)
          sum += a * b
        }
      case .cut:
        for first in stride(from: 0, to: count, by: 16) {
          var exact = Double(sum)
          for i in first..<min(first + 16, count) {
            let (a, b) = product(i)
            exact += Double(a) * Double(b)
          }
          sum = Float(exact)
          if Double(sum).magnitude > exact.magnitude { sum = exact > 0 ? sum.nextDown : sum.nextUp }
        }
      case .half:
        for first in stride(from: 0, to: count, by: 16) {
          var exact = Double(sum)
          for i in first..<min(first + 16, count) {
            let (a, b) = product(i)
            exact += Double(a) * Double(b)
          }
          sum = Float(Float16(exact))
        }
      }
      return sum
    }
  }

  /// The result for one query head, as `ReferenceAttention.head`.
  public static func head(
    _ head: Int, batch: Int, of problem: AttentionProblem, queries: TensorView, keys: TensorView, values: TensorView,
    sums: Sums = .rounded
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
    for i in 0..<problem.queries {
      let visible = problem.visibleKeys(ofQuery: i)
      if visible.isEmpty { continue }
      var largest = -Float.infinity
      for j in visible {
        var score = sums.sum(0, count: d) { (q[i * d + $0], k[j * d + $0]) } * scale
        if let cap = problem.softcap.map(Float.init) { score = cap * tanhf(score / cap) }
        weights[j] = score
        largest = max(largest, score)
      }
      var sum: Float = 0
      for j in visible {
        let weight = expf(weights[j] - largest)
        sum += weight
        weights[j] = type.rounded(weight)
      }
      let first = visible.lowerBound
      for c in 0..<dv {
        let value = sums.sum(0, count: visible.count) { (weights[first + $0], v[(first + $0) * dv + c]) }
        result.output[i * dv + c] = Double(type.rounded(value / sum))
      }
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
