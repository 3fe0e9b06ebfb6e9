internal import PTX

/// What the numbers of a unit are multiplied by: the call's own factors and, for caches of bytes, the scales of its
/// sequence and key/value head.
struct UnitScales {
  /// What makes a product of Q and K a power of two; with a softcap, the argument of its tanh is `cap` times a product.
  let scores, cap: Register<F32>
  /// What O is multiplied by; nil for 1.
  let values: Register<F32>?
  /// From maxima that were scaled to natural units.
  let ln2: SoftmaxParameters.NaturalLogarithm

  init(_ k: KernelBuilder, _ s: DecodeSpecialization, _ p: DecodeParameters, _ unit: WorkShare.Unit) {
    guard s.hasScales else {
      (scores, cap, values, ln2) = (p.softmax.scale, p.softmax.capScale, nil, p.softmax.ln2)
      return
    }
    let place = k.multiplyWide(unit.sequence.reinterpreted(as: U32.self) * p.keyValueHeads + unit.head, 4)
    func scale(_ list: Register<U64>) -> Register<F32> {
      let value = k.variable(k.constant(1))
      k.if(list .!= 0) { k.set(value, to: k.load(F32.self, global: list + place)) }
      return value
    }
    let (ofQueries, ofKeys) = (scale(p.queryScales), scale(p.keyScales))
    let ofScores = ofQueries * ofKeys
    values = scale(p.valueScales)
    cap = p.softmax.capScale * ofScores
    if s.hasSoftcap {
      (scores, ln2) = (p.softmax.scale, p.softmax.ln2)
    } else {
      let product = p.softmax.scale * ofScores
      scores = product
      // What the products were rounded by is made good in the log-sum-exp, as the scale's own rounding is.
      let lost =
        k.multiplyAdd(p.softmax.scale, ofScores, -product) * k.reciprocal(product)
        + k.multiplyAdd(ofQueries, ofKeys, -ofScores) * k.reciprocal(ofScores)
      ln2 = SoftmaxParameters.NaturalLogarithm(
        plain: p.softmax.ln2.plain, high: p.softmax.ln2.high,
        low: k.multiplyAdd(lost, p.softmax.ln2.high, p.softmax.ln2.low))
    }
  }
}
