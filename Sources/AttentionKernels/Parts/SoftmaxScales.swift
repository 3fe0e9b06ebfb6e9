internal import Attention
internal import PTX

/// `SoftmaxScales` as parameters of a kernel.
struct SoftmaxParameters {
  /// What a product of Q and K is multiplied by to be a power of two; with a softcap, what its tanh is.
  let scale: Register<F32>
  /// What a product is multiplied by to be the argument of the softcap's tanh.
  let capScale: Register<F32>
  let ln2: NaturalLogarithm

  /// ln 2, and the factor from a scaled maximum to natural units: ln 2 but for the rounding of `scale`, high + low.
  struct NaturalLogarithm {
    let plain: Float
    let high, low: Register<F32>
  }

  init(scale: Register<F32>, capScale: Register<F32>, ln2: NaturalLogarithm) {
    (self.scale, self.capScale, self.ln2) = (scale, capScale, ln2)
  }

  init<Launch>(_ list: ParameterList<Launch>, _ scales: @escaping @Sendable (Launch) -> SoftmaxScales) {
    scale = list.float("scale") { scales($0).scale }
    capScale = list.float("cap_scale") { scales($0).capScale }
    ln2 = NaturalLogarithm(
      plain: Float(0.6931471805599453), high: list.float("ln2_high") { scales($0).ln2High },
      low: list.float("ln2_low") { scales($0).ln2Low })
  }
}

/// What a softmax in base 2 multiplies by, as f32.
struct SoftmaxScales: Hashable, Sendable {
  /// What makes a product of Q and K a power of two; with a softcap, what does so with its tanh.
  let scale: Float
  /// What makes a product the argument of the softcap's tanh.
  let capScale: Float
  /// From a scaled maximum to natural units: ln 2 but for the rounding of `scale`, in two parts.
  let ln2High, ln2Low: Float

  init(_ units: ScoreUnits) {
    // Not 0, so that a hidden score, -inf, stays what it is; with this, all others become 1 as with 0.
    scale = max(Float(units.base2), .leastNonzeroMagnitude)
    capScale = Float(units.cap ?? 0)
    let naturalUnit = units.natural / Double(scale)
    ln2High = Float(naturalUnit)
    ln2Low = Float(naturalUnit - Double(ln2High))
  }
}
