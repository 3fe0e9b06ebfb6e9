internal import PTX

/// What the numbers of a sequence and key/value head are multiplied by: the call's own factors and, for caches of bytes, the
/// scales of these.
struct CacheScales {
  /// The call's scales, `[B, H_kv]`, f32: what queries, keys and values are multiplied by; 0 for 1.
  struct Lists {
    let queries, keys, values: Register<U64>

    init<Launch>(_ list: ParameterList<Launch>) {
      (queries, keys) = (list.pointer("query_scales", .queryScales), list.pointer("key_scales", .keyScales))
      values = list.pointer("value_scales", .valueScales)
    }
  }

  /// What scores are multiplied by, and what is made good of its rounding.
  let softmax: SoftmaxParameters
  /// What O is multiplied by; nil for 1.
  let values: Register<F32>?

  /// Those of a call without scales.
  init(_ softmax: SoftmaxParameters) { (self.softmax, values) = (softmax, nil) }

  /// - Parameter place: of the sequence and head in the lists.
  init(
    _ k: KernelBuilder, _ softmax: SoftmaxParameters, _ lists: Lists, at place: Register<U32>, hasSoftcap: Bool
  ) {
    let offset = k.multiplyWide(place, 4)
    func scale(_ list: Register<U64>) -> Register<F32> {
      let value = k.variable(k.constant(1))
      k.if(list .!= 0) { k.set(value, to: k.load(F32.self, global: list + offset)) }
      return value
    }
    let (ofQueries, ofKeys) = (scale(lists.queries), scale(lists.keys))
    let ofScores = ofQueries * ofKeys
    values = scale(lists.values)
    if hasSoftcap {
      self.softmax = SoftmaxParameters(
        scale: softmax.scale, capScale: softmax.capScale * ofScores, ln2: softmax.ln2)
      return
    }
    let product = softmax.scale * ofScores
    // What the products were rounded by is made good in the log-sum-exp, as the scale's own rounding is.
    let lost =
      k.multiplyAdd(softmax.scale, ofScores, -product) * k.reciprocal(product)
      + k.multiplyAdd(ofQueries, ofKeys, -ofScores) * k.reciprocal(ofScores)
    self.softmax = SoftmaxParameters(
      scale: product, capScale: softmax.capScale,
      ln2: SoftmaxParameters.NaturalLogarithm(
        plain: softmax.ln2.plain, high: softmax.ln2.high,
        low: k.multiplyAdd(lost, softmax.ln2.high, softmax.ln2.low)))
  }
}
