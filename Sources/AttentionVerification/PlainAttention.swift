package import Attention

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// Attention as a careful programmer would first write it in the problem's own precision: inputs and weights rounded to
/// the type, sums in f32, one row at a time. Its error is the yardstick of `Comparison`.
package enum PlainAttention {
  /// How sums of products are made.
  package enum Sums: Sendable {
    /// Product by product, each sum rounded to nearest.
    case rounded
    /// As tensor cores make them (mma.sync on an H200, compared bit by bit): of 16 products and the sum before them,
    /// all that is below 2^-25 of the largest's power of two is cut off; they are added, and cut off again to an f32.
    case cut
    /// As tensor cores with f16 accumulators make them: 16 products and the sum before them at once, then rounded to
    /// f16.
    case half

    /// The power of two of a number other than 0; below all others of 0.
    private static func power(_ x: Float) -> Int { x == 0 ? -1000 : Int(x.exponent) }

    /// A sum and 16 products, as `.cut`.
    static func cutSum(_ start: Float, _ products: [(Float, Float)]) -> Float {
      // The power of a product is that of its factors: the product itself may be twice as large.
      let largest = products.reduce(power(start)) { max($0, power($1.0) + power($1.1)) }
      let isFinite = start.isFinite && products.allSatisfy { $0.0.isFinite && $0.1.isFinite }
      guard isFinite && largest > -400 else {
        return products.reduce(start) { $0 + $1.0 * $1.1 }
      }
      let unit = Double(sign: .plus, exponent: largest - 25, significand: 1)
      let terms = products.reduce((Double(start) / unit).rounded(.towardZero)) {
        $0 + (Double($1.0) * Double($1.1) / unit).rounded(.towardZero)
      }
      let exact = terms * unit
      let sum = Float(exact)
      if Double(sum).magnitude <= exact.magnitude { return sum }
      return exact > 0 ? sum.nextDown : sum.nextUp
    }

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
          let pairs = (first..<min(first + 16, count)).map(product)
          sum = Self.cutSum(sum, pairs)
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
  package static func head(
    _ head: Int, batch: Int, of problem: AttentionProblem, queries: TensorView, keys: TensorView, values: TensorView,
    sums: Sums = .rounded, sinks: [Float]? = nil, ranges: [Int]? = nil
  ) -> HeadValues {
    let shared = head / problem.groupSize
    let type = problem.scalarType
    let (d, dv) = (problem.dimension, problem.valueDimension)
    let k = keys.floats(batch: batch, head: shared)
    let v = values.floats(batch: batch, head: shared)
    let q = queries.floats(batch: batch, head: head)
    let scale = Float(problem.scale)
    var result = HeadValues(
      output: .init(repeating: 0, count: problem.queries * dv),
      logSumExp: .init(repeating: -.infinity, count: problem.queries))
    var weights = [Float](repeating: 0, count: problem.keys)
    for i in 0..<problem.queries {
      let visible = problem.seenKeys(byQuery: i, sequence: batch, ranges)
      let sink = sinks?[head] ?? -.infinity
      if visible.isEmpty {
        result.logSumExp[i] = Double(sink)
        continue
      }
      var largest = sink
      for j in visible {
        var score = sums.sum(0, count: d) { (q[i * d + $0], k[j * d + $0]) } * scale
        if let cap = problem.softcap.map(Float.init) { score = cap * tanhf(score / cap) }
        weights[j] = score
        largest = max(largest, score)
      }
      var sum: Float = sink == -.infinity ? 0 : expf(sink - largest)
      for j in visible {
        let weight = expf(weights[j] - largest)
        sum += weight
        weights[j] = type.rounded(weight)
      }
      for c in 0..<dv {
        let value = sums.sum(0, count: visible.count) { (weights[visible[$0]], v[visible[$0] * dv + c]) }
        result.output[i * dv + c] = Double(type.rounded(value / sum))
      }
      result.logSumExp[i] = Double(largest + logf(sum))
    }
    return result
  }
}
