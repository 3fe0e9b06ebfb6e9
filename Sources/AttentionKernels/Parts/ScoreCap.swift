internal import PTX

/// `cap * tanh(x)` of scores, in base 2: the softmax then has nothing to scale, and rounds once less.
///
/// `tanh.approx` has errors of 2^-11, more than the tolerance. So `1 - 2 / (1 + exp(2 |x|))`, by `ex2` and `rcp`, whose
/// errors of 2^-22 are small beside 1 for a large |x| only (for a large -x without the sign set aside, `rcp` gives
/// almost 1, and its error is that of the whole). Near 0, where most scores are, a polynomial takes over.
struct ScoreCap {
  /// `(tanh(x) / x - 1) / x^2` in powers of x^2, fitted for |x| < 0.9 with a relative error of tanh of 2^-25.9.
  private static let coefficients: [Float] = [
    -0.33333212, 0.1333036, -0.05372149, 0.020904126, -0.006860054, 0.0013039589,
  ]
  private static let polynomialEnd: Float = 0.9
  private static let twoLog2e = Float(2 * 1.4426950408889634)

  /// From a product of Q and K to x: scale / cap.
  let inner: Register<F32>
  /// From a tanh to the power of two: cap * log2(e).
  let outer: Register<F32>

  func apply(to scores: Accumulators, columnTiles: Range<Int>, _ k: KernelBuilder) {
    k.comment("softcap")
    let (minusTwice, signBit) = (outer * -2, k.constant(0x8000_0000, U32.self))
    let coefficients = Self.coefficients.map { k.constant($0) }
    for row in 0..<2 * scores.rowTiles {
      for score in scores.ofRow(row, columnTiles: columnTiles) {
        let x = score * inner
        let (square, linear) = (x * x, x * outer)
        let series = coefficients.dropLast().reversed()
          .reduce(coefficients.last!) { k.multiplyAdd($0, square, $1) }
        let near = k.multiplyAdd(linear * square, series, linear)
        let size = k.absolute(x)
        let far = k.multiplyAdd(k.reciprocal(k.exp2(size * Self.twoLog2e) + 1), minusTwice, outer)
        // The sign of x, by one instruction: comparisons and choices are what these kernels have most of.
        let signed = k.logic3(
          far.reinterpreted(as: U32.self), signBit, x.reinterpreted(as: U32.self), table: 0xf0 & ~0xcc | 0xaa & 0xcc)
        k.set(score, to: k.select(size .< Self.polynomialEnd, near, signed.reinterpreted(as: F32.self)))
      }
    }
  }
}
