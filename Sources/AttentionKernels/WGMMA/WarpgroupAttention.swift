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

  /// The query rows of a group, and what it makes of them.
  struct Rows {
    /// Where the block's tile of Q is; which 64 rows of it; the warp's first of these.
    let queries, group, warpRow: Register<U32>
    /// Which of a tile's keys, where several groups have the same rows.
    var keyGroup: Register<U32>? = nil
    let mask: ScoreMask
    let softmax: OnlineSoftmax
    let output: Accumulators
  }

  private func scores(_ columns: Int) -> Accumulators { Accumulators(k, rowTiles: 1, columns: columns, named: "s") }
  private var inputs: WarpgroupMatrix.Inputs { s.inputs == .f16 ? .f16 : .bf16 }

  private func queries(_ rows: Rows) -> MatrixDescriptor {
    k.descriptor(s.queryTile, at: rows.queries + rows.group * (64 * 128))
  }

  /// Where the keys of a group begin in a tile of K or V, whose rows have 128 bytes in each slab.
  private func ownKeys(_ tile: Register<U32>, _ rows: Rows) -> Register<U32> {
    rows.keyGroup.map { tile + $0 * (s.groupKeys * 128) } ?? tile
  }

  /// The first key of a group in a tile.
  private func firstKey(_ tile: Register<S32>, _ tiles: KeyTiles, _ rows: Rows) -> Register<S32> {
    let first = tiles.place(tile) * s.tileKeys
    return rows.keyGroup.map { first + ($0 * s.groupKeys).reinterpreted(as: S32.self) } ?? first
  }

  /// Starts S of the group's first keys of the tile at hand, as many as `scores` has columns.
  private func start(_ scores: Accumulators, _ queries: MatrixDescriptor, _ rows: Rows) {
    let keys = k.descriptor(rings.tiles.keys, at: ownKeys(rings.keys(shared), rows))
    for step in 0..<(s.dimension + 15) / 16 {
      k.startProduct(
        inputs, a: queries.step(step), b: keys.step(step), into: scores.registers, sum: step == 0 ? .never : .always,
        negatesA: s.isScaleNegative)
    }
  }

  /// Starts the share of O of the group's first keys of the tile at hand, for which there are weights.
  private func start(_ weights: [[Register<U32>]], _ rows: Rows) {
    let values = k.descriptor(rings.tiles.values, at: ownKeys(rings.values(shared), rows), isTransposed: true)
    for (step, own) in weights.enumerated() {
      k.startProduct(inputs, a: own, b: values.step(step), into: rows.output.registers)
    }
  }

  /// S of a tile, with nothing else under way; K is given back.
  private func makeAlone(_ scores: Accumulators, _ queries: MatrixDescriptor, _ rows: Rows) {
    rings.fullKeys.wait()
    k.warpgroupFence()
    start(scores, queries, rows)
    k.commitProducts()
    k.waitForProducts()
    k.giveBack(rings.fullKeys, rings.emptyKeys)
  }

  /// A tile's share of O, with nothing else under way; V is given back.
  private func addAlone(_ weights: [[Register<U32>]], _ rows: Rows) {
    rings.fullValues.wait()
    k.warpgroupFence()
    start(weights, rows)
    k.commitProducts()
    k.waitForProducts()
    k.giveBack(rings.fullValues, rings.emptyValues)
  }

  private func cap(_ scores: Accumulators) {
    if s.hasSoftcap {
      ScoreCap(inner: parameters.capScale, outer: parameters.scale).apply(
        to: scores, columnTiles: 0..<scores.columnTiles, k)
    }
  }

  private func weights(_ scores: Accumulators) -> [[Register<U32>]] {
    (0..<scores.columnTiles / 2).map { scores.operands(chunk: $0, as: s.inputs)[0] }
  }

  /// Keys of a tile that are worth a product of their own, where rows see no others of it.
  static let fewKeys = 16

  /// The first `fewKeys` of a tile, of which rows see no others: a small product in the place of a tile's.
  func attendToFew(of tile: Register<S32>, _ tiles: KeyTiles, _ rows: Rows) {
    k.comment("the first \(Self.fewKeys) keys of a tile, of which no row sees more")
    let (scores, queries, softmax) = (scores(Self.fewKeys), queries(rows), rows.softmax)
    makeAlone(scores, queries, rows)
    cap(scores)
    rows.mask.apply(to: scores, tileStart: firstKey(tile, tiles, rows))
    let largest = softmax.largest(of: scores, columnTiles: 0..<scores.columnTiles)
    softmax.follow(softmax.overLanes(largest), of: scores, rescaling: rows.output)
    softmax.exponentiate(scores)
    softmax.rescaleLate(rows.output)
    let own = weights(scores)
    addAlone(own, rows)
  }

  /// Some tiles, one at least.
  ///
  /// - Parameter finish: emits what may happen once nobody needs Q any more.
  func attend(_ tiles: KeyTiles, _ rows: Rows, finish: () -> Void = {}) {
    let (mask, softmax, output) = (rows.mask, rows.softmax, rows.output)
    let (scores, queries) = (scores(s.groupKeys), queries(rows))
    func firstKey(_ tile: Register<S32>) -> Register<S32> { self.firstKey(tile, tiles, rows) }
    func isMasked(_ tile: Register<S32>) -> Predicate { mask.isNeeded(tileStart: firstKey(tile), size: s.groupKeys) }
    func hide(_ tile: Register<S32>) { mask.apply(to: scores, tileStart: firstKey(tile)) }
    /// The maxima, and what follows from them.
    func update(tile: Register<S32>) {
      cap(scores)
      func largest() -> [Register<F32>] { softmax.largest(of: scores, columnTiles: 0..<scores.columnTiles) }
      softmax.update(largest(), of: scores, rescaling: output, isMasked: isMasked(tile)) {
        hide(tile)
        return largest()
      }
    }

    k.comment("the first tile's scores")
    makeAlone(scores, queries, rows)
    update(tile: tiles.first)
    softmax.exponentiate(scores)
    softmax.rescaleLate(output)
    k.loop(from: tiles.first + 1, to: tiles.end) { tile in
      k.comment("a tile: the weights and the share of O of the one before, this one's scores")
      let own = weights(scores)
      // Where the same warps convert both, V comes before the next K.
      if s.converters != 1 { rings.fullValues.wait() }
      rings.fullKeys.wait()
      k.warpgroupFence()
      start(scores, queries, rows)
      k.commitProducts()
      start(own, rows)
      k.commitProducts()
      k.waitForProducts(pending: 1)
      if s.softmax == .lazy {
        cap(scores)
        softmax.exponentiateLazily(scores, rescaling: output, isMasked: isMasked(tile)) {
          hide(tile)
        } again: {
          ScoresAgain(
            k, s, queries: rows.queries, keys: ownKeys(shared + rings.tiles.keysOffset, rows),
            row: rows.group * 64 + rows.warpRow
          ).make(scores, stage: rings.fullKeys.stage)
          cap(scores)
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
    let last = weights(scores)
    addAlone(last, rows)
  }
}
