internal import PTX

/// The softmax of rows whose scores come tile by tile: a running maximum and a running sum, in base 2, with the scale
/// folded into one multiply-add a score (Milakov and Gimelshein 2018; FlashAttention 2, section 3.1).
///
/// A lane holds, of each 16-row tile, parts of rows g and g + 8: "row i" below is one of these. Their maxima are agreed
/// on by the four lanes of a row for each tile that is looked at; their sums only at the end.
///
/// The output is rescaled only when some maximum has grown by more than 2^8, or, where nobody looks for maxima
/// (`exponentiateLazily`), when a lane's weights of a tile amount to 65520: until then weights above 1 are as exact as
/// those below, and f32 sums have room. Most tiles then rescale nothing.
struct OnlineSoftmax {
  /// How many powers of two weights may exceed 1, where sums are made in f32; f16 has no room for that.
  private static let growth: Float = 8

  private let k: KernelBuilder
  /// What a score is multiplied by, above zero: scale * log2(e).
  private let scale: Register<F32>
  private let maxima: [Register<F32>]
  private let sums: [Register<F32>]
  /// How far scores may exceed the maxima before these follow; -inf once some row is huge, which then always do.
  private let growth: Register<F32>
  /// From here on, the rounding of a scaled maximum may move weights by powers of two: such rows subtract first.
  private static let huge: Float = 0x1p20
  /// `-maximum * scale`, 0 where there is no maximum yet.
  private let shifts: [Register<F32>]
  /// What the output must still be multiplied by where it could not be at once, and whether it must; whether some row of
  /// the warp has no maximum yet, or a huge one. Both the same in all lanes.
  private let late: (factors: [Register<F32>], isDue: Register<U32>, isCareful: Register<U32>)?

  /// - Parameter rescalesLate: whether the output is not at hand when maxima grow; `rescaleLate` then makes up for it.
  init(
    _ k: KernelBuilder, rows: Int, scale: Register<F32>, sums: Matrix.Accumulator, rescalesLate: Bool = false
  ) {
    self.k = k
    self.scale = scale
    maxima = (0..<rows).map { k.variable(k.constant(-.infinity)).named("maximum\($0)") }
    self.sums = (0..<rows).map { k.variable(k.constant(0)).named("sum\($0)") }
    // Finite, so that any score exceeds the -inf of a row without a maximum.
    let limit: Register<F32> =
      sums == .f16
      ? k.constant(0) : k.minimum(k.reciprocal(scale) * Self.growth, k.constant(.greatestFiniteMagnitude))
    growth = k.variable(limit).named("growth")
    shifts = (0..<rows).map { k.variable(k.constant(0)).named("shift\($0)") }
    late =
      rescalesLate
      ? (
        (0..<rows).map { k.variable(k.constant(1)).named("factor\($0)") },
        k.variable(k.constant(0, U32.self)).named("is_due"), k.variable(k.constant(1, U32.self)).named("is_careful")
      ) : nil
  }

  /// The largest of the lane's scores of each row, over tiles of 8 columns.
  func largest(of scores: Accumulators, columnTiles: Range<Int>) -> [Register<F32>] {
    maxima.indices.map { row in
      let parts = scores.ofRow(row, columnTiles: columnTiles)
      // Two chains, so that one instruction need not wait for the one before.
      let chains = [parts.indices.filter { $0 % 2 == 0 }, parts.indices.filter { $0 % 2 == 1 }].map { chain in
        chain.dropFirst().reduce(parts[chain[0]]) { k.maximum($0, parts[$1]) }
      }
      return k.maximum(chains[0], chains[1])
    }
  }

  /// Takes a tile into account: rescales sums and output where a maximum has grown much, and first hides what a mask
  /// hides, if it does here. Nearly all tiles need neither; so both share a branch, and the lanes of a row, who agree
  /// on its maximum only there, compare their own scores with what it may grow to.
  ///
  /// - Parameters:
  ///   - largest: the largest scores of the lane's rows, nothing hidden.
  ///   - isMasked: whether something is hidden here; the same for all lanes.
  ///   - hide: hides it, and returns the largest scores that are left.
  func update(
    _ largest: [Register<F32>], of scores: Accumulators, rescaling output: Accumulators, isMasked: Predicate,
    hide: () -> [Register<F32>]
  ) {
    let isBeyond = zip(largest, maxima).map { ($0 - $1) .> growth }
    k.if(k.vote(.any, isBeyond.reduce(isMasked) { $0 | $1 })) {
      let left = largest.map { k.variable($0) }
      k.if(isMasked) {
        k.comment("mask: this tile has keys that some row does not see")
        for (old, new) in zip(left, hide()) { k.set(old, to: new) }
      }
      k.comment("maxima of the rows over their four lanes; rescale, where one has grown")
      follow(overLanes(left), of: scores, rescaling: output)
    }
  }

  // MARK: - Without maxima

  /// A lane's weights of a tile amount to less: they then round to numbers of f16, and what comes before them counts for
  /// something. More than weights of a row that has followed its maximum, up to 2^8 each, amount to.
  private static let largestTileSum: Float = 65520

  /// Scores become weights in their place by the maxima that there are, which nobody compares them with: that the weights
  /// became too large is seen by their sum (Documentation/GPULog.md, "Items, weights before maxima"). The rows of the warp
  /// then do it once more, from their scores, with their maxima: as do those that have none or a huge one, and those
  /// that do not see all of the tile. Only of a softmax that rescales late.
  ///
  /// - Parameters:
  ///   - isMasked: whether something is hidden here; the same for all lanes.
  ///   - hide: hides it.
  ///   - again: makes the scores once more, as they came.
  func exponentiateLazily(
    _ scores: Accumulators, rescaling output: Accumulators, isMasked: Predicate, hide: () -> Void, again: () -> Void
  ) {
    func follow() {
      let largest = largest(of: scores, columnTiles: 0..<scores.columnTiles)
      self.follow(overLanes(largest), of: scores, rescaling: output)
    }
    k.if(isMasked | (late!.isCareful .!= 0)) {
      k.comment("maxima of the rows, where there are none or the tile has keys that some row does not see")
      k.if(isMasked, hide)
      follow()
    }
    let ofTile = sums.indices.map { k.variable(k.constant(0)).named("tile_sum\($0)") }
    exponentiate(scores, addingTo: ofTile)
    // NaN is not: hence a vote on what is small, and a branch with nothing but another side.
    let areSmall = ofTile.map { $0 .< Self.largestTileSum }
    k.if(k.vote(.all, areSmall.dropFirst().reduce(areSmall[0]) { $0 & $1 })) {
    } else: {
      k.comment("some row has outgrown its maximum: once more, from the scores")
      again()
      k.if(isMasked, hide)
      follow()
      for sum in ofTile { k.set(sum, to: k.constant(0)) }
      exponentiate(scores, addingTo: ofTile)
    }
    for (sum, own) in zip(sums, ofTile) { k.set(sum, to: sum + own) }
  }

  /// The largest of a row's scores, from those of its four lanes.
  func overLanes(_ largest: [Register<F32>]) -> [Register<F32>] {
    largest.map { k.maximum($0, k.shuffle($0, xor: 1)) }.map { k.maximum($0, k.shuffle($0, xor: 2)) }
  }

  /// Takes the largest scores of the rows into account, the same in all lanes of a row: rescales sums and output where
  /// a maximum has grown much. Of rows whose scaled scores are huge, the maximum is subtracted here, before the scale.
  func follow(_ largest: [Register<F32>], of scores: Accumulators, rescaling output: Accumulators) {
    let news = zip(maxima, largest).map { k.maximum($0, $1) }
    let isBeyond = zip(news, maxima).map { ($0 - $1) .> growth }
    k.if(k.vote(.any, isBeyond.dropFirst().reduce(isBeyond[0]) { $0 | $1 })) {
      adopt(news, rescaling: output)
    }
    k.if(k.vote(.any, growth .== -.infinity)) {
      for row in maxima.indices {
        let own = k.select(isHuge(row), maxima[row], 0)
        for score in scores.ofRow(row) { k.set(score, to: score - own) }
      }
    }
  }

  /// Takes these for the maxima of the rows; sums and output then are what they had been with them, the output only once
  /// `rescaleLate` has been asked where it is not at hand.
  func adopt(_ news: [Register<F32>], rescaling output: Accumulators) {
    for row in maxima.indices {
      // A row that has seen no key has no maximum; its output is zero, and so is what scales it.
      let top = k.select(news[row] .!= -.infinity, news[row], 0)
      let factor = k.exp2((maxima[row] - top) * scale)
      let shift = top * scale
      let isHuge = k.absolute(shift) .> Self.huge
      k.set(shifts[row], to: k.select(isHuge, k.constant(0), -shift))
      k.set(growth, to: k.select(isHuge, k.constant(-.infinity), growth))
      k.set(maxima[row], to: news[row])
      k.set(sums[row], to: sums[row] * factor)
      if let late {
        k.set(late.factors[row], to: late.factors[row] * factor)
      } else {
        for value in output.ofRow(row) { k.set(value, to: value * factor) }
      }
    }
    if let late {
      k.set(late.isDue, to: k.constant(1, U32.self))
      let isRegular = maxima.reduce(growth .!= -.infinity) { $0 & ($1 .!= -.infinity) }
      k.set(late.isCareful, to: k.select(k.vote(.all, isRegular), 0, 1, U32.self))
    }
  }

  /// Takes into account what others made of the same rows, with maxima and sums of their own: the lane's sums become those of
  /// both, and its output what it is by the larger of the maxima. Returns what the others' output is multiplied by for that.
  func take(
    maxima others: [Register<F32>], sums otherSums: [Register<F32>], rescaling output: Accumulators
  ) -> [Register<F32>] {
    adopt(zip(maxima, others).map { k.maximum($0, $1) }, rescaling: output)
    rescaleLate(output)
    return maxima.indices.map { row in
      let top = k.select(maxima[row] .!= -.infinity, maxima[row], 0)
      let factor = k.exp2((others[row] - top) * scale)
      k.set(sums[row], to: k.multiplyAdd(otherSums[row], factor, sums[row]))
      return factor
    }
  }

  /// Multiplies the output by what it could not be multiplied by when a maximum grew.
  func rescaleLate(_ output: Accumulators) {
    guard let late else { return }
    k.if(late.isDue .!= 0) {
      for row in maxima.indices {
        for value in output.ofRow(row) { k.set(value, to: value * late.factors[row]) }
        k.set(late.factors[row], to: k.constant(1))
      }
      k.set(late.isDue, to: k.constant(0, U32.self))
    }
  }

  /// An infinite maximum is none: of a row without keys, or of one that is lost anyway.
  private func isHuge(_ row: Int) -> Predicate {
    let shift = k.absolute(maxima[row] * scale)
    return (shift .> Self.huge) & (k.absolute(maxima[row]) .< .infinity)
  }

  /// The weights of 16 keys as the A operand of a product with V, for each 16-row tile, and their share of the sums.
  func weights(_ scores: Accumulators, chunk: Int, as inputs: Matrix.Inputs) -> [[Register<U32>]] {
    operands(chunk: chunk, as: inputs) { rowTile, half in
      let weights = scores.ofHalf(rowTile, chunk, half).map { weight(of: $0, row: 2 * rowTile + half) }
      add(weights, to: sums[2 * rowTile + half])
      return weights
    }
  }

  /// Scores become weights in their place, with their share of the sums.
  func exponentiate(_ scores: Accumulators) { exponentiate(scores, addingTo: sums) }

  private func exponentiate(_ scores: Accumulators, addingTo sums: [Register<F32>]) {
    for chunk in 0..<scores.columnTiles / 2 {
      for row in maxima.indices {
        let own = scores.ofHalf(row / 2, chunk, row % 2)
        for score in own { k.set(score, to: weight(of: score, row: row)) }
        add(own, to: sums[row])
      }
    }
  }

  private func weight(of score: Register<F32>, row: Int) -> Register<F32> {
    k.exp2(k.multiplyAdd(score, scale, shifts[row]))
  }

  private func add(_ weights: [Register<F32>], to sum: Register<F32>) {
    k.set(sum, to: sum + ((weights[0] + weights[1]) + (weights[2] + weights[3])))
  }

  private func operands(
    chunk: Int, as inputs: Matrix.Inputs, _ weights: (_ rowTile: Int, _ half: Int) -> [Register<F32>]
  ) -> [[Register<U32>]] {
    (0..<maxima.count / 2).map { rowTile in
      var fragments: [Int: Register<U32>] = [:]
      for half in 0..<2 {
        let own = weights(rowTile, half)
        fragments[half] = inputs.pack(k, own[0], own[1])
        fragments[half + 2] = inputs.pack(k, own[2], own[3])
      }
      return (0..<4).map { fragments[$0]! }
    }
  }

  /// Divides the output by the sums; returns the log-sum-exps. A row without a key gets 0 and -inf.
  ///
  /// - Parameter ln2: what makes the natural logarithm of a sum of scaled scores' powers of two, and of the maximum:
  ///   there the scale's own rounding is made good, in two parts because one f32 is not exact enough.
  /// - Parameter scale: what the output is multiplied by besides; nil for 1.
  /// - Parameter overWarps: what the sums of the warps that share rows amount to; nil where none do.
  func normalize(
    _ output: Accumulators, ln2: SoftmaxParameters.NaturalLogarithm, scale: Register<F32>? = nil,
    overWarps: (([Register<F32>]) -> [Register<F32>])? = nil
  ) -> [Register<F32>] {
    k.comment("normalize: sums of the rows over their four lanes")
    let ofWarp = sumsOverLanes()
    let totals = overWarps?(ofWarp) ?? ofWarp
    // A row with a key has a weight; one whose scores are NaN is none of the empty ones.
    let hasKeys = totals.map { $0 .!= 0 }
    let factors = totals.map { k.reciprocal($0) }.map { inverse in scale.map { inverse * $0 } ?? inverse }
    for row in maxima.indices {
      // Chosen, not multiplied: what a row without keys holds may be anything.
      for value in output.ofRow(row) { k.set(value, to: k.select(hasKeys[row], value * factors[row], 0)) }
    }
    return logSumExps(totals, ln2: ln2)
  }

  /// The rows' sums of weights.
  func sumsOverLanes() -> [Register<F32>] {
    sums.map { $0 + k.shuffle($0, xor: 1) }.map { $0 + k.shuffle($0, xor: 2) }
  }

  /// The log-sum-exps of rows with these sums of weights; -inf where there are none.
  func logSumExps(_ totals: [Register<F32>], ln2: SoftmaxParameters.NaturalLogarithm) -> [Register<F32>] {
    maxima.indices.map { row in
      k.select(totals[row] .!= 0, naturalLogarithm(totals[row], ofRow: row, ln2), -.infinity)
    }
  }

  /// The rows' maxima so far, and the lane's part of their sums.
  var ownMaxima: [Register<F32>] { maxima }
  var ownSums: [Register<F32>] { sums }

  /// ln 2 in two parts, the first so short that its product with an exponent is exact.
  private static let ln2Parts: (high: Float, low: Float) = (0x1.63p-1, -2.121_944_4e-4)

  /// The natural logarithm of a sum, plus the maximum that its terms were divided by, rounded once but for terms below
  /// 1: what the two large terms lose when they are added is kept and added to the small ones. `lg2` is exact enough
  /// for the mantissa alone.
  private func naturalLogarithm(
    _ total: Register<F32>, ofRow row: Int, _ ln2: SoftmaxParameters.NaturalLogarithm
  ) -> Register<F32> {
    let bits = total.reinterpreted(as: U32.self)
    let mantissa = ((bits & 0x007f_ffff) | 0x3f80_0000).reinterpreted(as: F32.self)
    let exponent = k.float((bits >> 23).reinterpreted(as: S32.self) - 127)
    // 0, or NaN where the sum is: its bits would otherwise pass for a number's.
    let poison = total - total
    let shift = k.select(isHuge(row), -(maxima[row] * scale), shifts[row])
    let (ofExponent, ofShift) = (exponent * Self.ln2Parts.high, -(shift * ln2.high))
    let sum = ofExponent + ofShift
    // What the product and the sum were rounded by.
    let ofProduct = k.multiplyAdd(shift, -ln2.high, -ofShift)
    let part = sum - ofExponent
    let ofSum = (ofExponent - (sum - part)) + (ofShift - part)
    let ofMantissa = k.multiplyAdd(k.log2(mantissa), k.constant(ln2.plain), poison)
    let small = k.multiplyAdd(exponent, k.constant(Self.ln2Parts.low), k.multiplyAdd(shift, -ln2.low, ofMantissa))
    let result = sum + (small + (ofProduct + ofSum))
    // Infinite maxima have no remainders.
    return k.select(k.absolute(sum) .< .infinity, result, sum + small)
  }
}
