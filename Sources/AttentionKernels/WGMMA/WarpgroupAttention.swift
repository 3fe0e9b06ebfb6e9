internal import PTX

/// Attention of a group of four warps to the tiles of K and V that come through rings: S, its softmax, and O.
struct WarpgroupAttention {
  let k: KernelBuilder
  private let s: HopperTiles
  private let shared: Register<U32>
  private let rings: HopperRings
  private let parameters: SoftmaxParameters

  init(
    _ k: KernelBuilder, _ tiles: HopperTiles, _ shared: Register<U32>, _ rings: HopperRings,
    _ parameters: SoftmaxParameters
  ) { (self.k, s, self.shared, self.rings, self.parameters) = (k, tiles, shared, rings, parameters) }

  /// Some tiles, one at least.
  ///
  /// - Parameters:
  ///   - queries: where the block's tile of Q is.
  ///   - group: which 64 rows of it.
  ///   - warpRow: the warp's first of these.
  ///   - finish: emits what may happen once nobody needs Q any more.
  func attend(
    _ tiles: KeyTiles, queries queryPlace: Register<U32>, group: Register<U32>,
    warpRow: Register<U32>, _ mask: ScoreMask, _ softmax: OnlineSoftmax, _ output: Accumulators,
    finish: () -> Void = {}
  ) {
    let scores = Accumulators(k, rowTiles: 1, columns: s.tileKeys, named: "s")
    let queries = k.descriptor(s.queryTile, at: queryPlace + group * (64 * 128))
    let inputs: WarpgroupMatrix.Inputs = s.inputs == .f16 ? .f16 : .bf16

    func startScores() {
      let keys = k.descriptor(s.keyTile, at: shared + (rings.fullKeys.stage * s.keyTile.byteCount + s.keysOffset))
      for step in 0..<(s.dimension + 15) / 16 {
        k.startProduct(
          inputs, a: queries.step(step), b: keys.step(step), into: scores.registers, sum: step == 0 ? .never : .always,
          negatesA: s.isScaleNegative)
      }
    }
    func startOutput(_ weights: [[Register<U32>]]) {
      let values = k.descriptor(
        s.valueTile, at: shared + (rings.fullValues.stage * s.valueTile.byteCount + s.valuesOffset), isTransposed: true)
      for (step, own) in weights.enumerated() {
        k.startProduct(inputs, a: own, b: values.step(step), into: output.registers)
      }
    }
    func cap() {
      if s.hasSoftcap {
        ScoreCap(inner: parameters.capScale, outer: parameters.scale).apply(
          to: scores, columnTiles: 0..<scores.columnTiles, k)
      }
    }
    func isMasked(_ tile: Register<S32>) -> Predicate {
      mask.isNeeded(tileStart: tiles.place(tile) * s.tileKeys, size: s.tileKeys)
    }
    func hide(_ tile: Register<S32>) { mask.apply(to: scores, tileStart: tiles.place(tile) * s.tileKeys) }
    /// The maxima, and what follows from them.
    func update(tile: Register<S32>) {
      cap()
      func largest() -> [Register<F32>] { softmax.largest(of: scores, columnTiles: 0..<scores.columnTiles) }
      softmax.update(largest(), of: scores, rescaling: output, isMasked: isMasked(tile)) {
        hide(tile)
        return largest()
      }
    }
    func weights() -> [[Register<U32>]] {
      (0..<s.tileKeys / 16).map { scores.operands(chunk: $0, as: s.inputs)[0] }
    }

    k.comment("the first tile's scores")
    rings.fullKeys.wait()
    k.warpgroupFence()
    startScores()
    k.commitProducts()
    k.waitForProducts()
    k.giveBack(rings.fullKeys, rings.emptyKeys)
    update(tile: tiles.first)
    softmax.exponentiate(scores)
    softmax.rescaleLate(output)
    k.loop(from: tiles.first + 1, to: tiles.end) { tile in
      k.comment("a tile: the weights and the share of O of the one before, this one's scores")
      let own = weights()
      rings.fullValues.wait()
      rings.fullKeys.wait()
      k.warpgroupFence()
      startScores()
      k.commitProducts()
      startOutput(own)
      k.commitProducts()
      k.waitForProducts(pending: 1)
      if s.softmax == .lazy {
        cap()
        softmax.exponentiateLazily(scores, rescaling: output, isMasked: isMasked(tile)) {
          hide(tile)
        } again: {
          ScoresAgain(
            k, s, queries: queryPlace, keys: shared + s.keysOffset,
            row: group * 64 + warpRow
          ).make(
            scores, stage: rings.fullKeys.stage)
          cap()
        }
        k.giveBack(rings.fullKeys, rings.emptyKeys)
      } else {
        k.giveBack(rings.fullKeys, rings.emptyKeys)
        update(tile: tile)
        softmax.exponentiate(scores)
      }
      k.waitForProducts()
      k.giveBack(rings.fullValues, rings.emptyValues)
      softmax.rescaleLate(output)
    }
    k.comment("the last tile's share of O")
    finish()
    let last = weights()
    rings.fullValues.wait()
    k.warpgroupFence()
    startOutput(last)
    k.commitProducts()
    k.waitForProducts()
    k.giveBack(rings.fullValues, rings.emptyValues)
  }
}
