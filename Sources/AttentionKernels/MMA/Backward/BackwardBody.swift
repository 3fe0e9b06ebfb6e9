internal import Attention
internal import PTX

/// A gradients' kernel while it is emitted. What a block keeps is called kept here, keys or rows of queries; what passes by, the
/// other. Products of scores are those of K and Q; products of weights those of V and dO.
final class BackwardBody {
  private let k: KernelBuilder
  private let s: BackwardSpecialization
  private let memory: BackwardMemory
  private let p: BackwardParameters
  private let place: WarpPlace
  private let batch, keyValueHead: Register<U32>
  private let sequence: ForwardSequence?
  private let queries: Register<U32>
  private let keys: Register<S32>
  /// What the block keeps.
  private let kept: PackedQueries
  private let ownRows: [Register<U32>]
  private let products: WarpProducts
  /// dK or dQ, and dV.
  private let sums: (first: Accumulators?, values: Accumulators?)

  private var keepsKeys: Bool { s.kind != .queries }
  private var cut: BackwardTiling.Cut { s.cut }

  init(_ k: KernelBuilder, _ s: BackwardSpecialization) {
    (self.k, self.s, memory, p) = (
      k, s, BackwardMemory(s), BackwardParameters(ParameterList(k), ParameterParts(sinkType: nil, s.mask))
    )
    products = WarpProducts(k: k, inputs: s.inputs)
    let (shared, thread, lane) = (k.dynamicShared(), k.special(.threadX), k.special(.lane))
    let (warp, sharers) = (thread / 32, s.cut.sharers)
    place = WarpPlace(
      shared: shared, thread: thread, lane: lane,
      firstRow: ((sharers == 1 ? warp : warp / sharers) * s.cut.rowsPerWarp).named("warp_row"),
      sharer: sharers == 1 ? k.constant(0, U32.self) : (warp % sharers).named("sharer"))

    let head, inHead: Register<U32>
    // Of sequences, and with dQ, what this keeps in registers would be spilled.
    if s.mask.limitsEnd && !s.hasSequences && s.kind != .queries {
      k.comment(
        "block: (batch and key/value head, keys), of some heads together; the keys that most rows see come first")
      let own = HeadSections.placeOfBlock(k, partsPerHead: p.blocksPerHead)
      (head, inHead) = (own.head, own.part)
    } else {
      k.comment("block: (batch, key/value head, what is kept); what most passes by under a right edge comes first")
      head = k.special(.blockX) / p.blocksPerHead
      let own = k.special(.blockX) - head * p.blocksPerHead
      inHead = s.mask.limitsEnd && s.kind == .queries ? p.blocksPerHead - 1 - own : own
    }
    batch = (head / p.keyValueHeads).named("batch")
    keyValueHead = (head - batch * p.keyValueHeads).named("key_value_head")
    sequence =
      s.hasSequences ? ForwardSequence(k, p.lists, queries: p.queries, keys: p.keys, batch: batch) : nil
    (queries, keys) = (sequence?.queries ?? p.queries, sequence?.keys ?? p.keys)
    let keysKept = s.kind != .queries
    kept = PackedQueries(
      k, groupSize: keysKept ? 1 : s.groupSize, firstRow: inHead * s.cut.rows,
      queries: keysKept ? keys.reinterpreted(as: U32.self) : queries)
    let firstOwn = kept.firstRow + place.firstRow + lane / 4
    ownRows = (0..<2 * s.cut.rowTilesPerWarp).map { firstOwn + $0 * 8 }
    func accumulators(_ columns: Int, _ name: String) -> Accumulators? {
      columns == 0 ? nil : Accumulators(k, rowTiles: s.cut.rowTilesPerWarp, columns: columns, named: name)
    }
    sums = (accumulators(s.ownSums.first, keysKept ? "dk" : "dq"), accumulators(s.ownSums.values, "dv"))
  }

  func emit() {
    guard s.hasSequences else { return emitBlock() }
    k.comment("shorter sequences have less blocks")
    k.if(kept.firstRow .< kept.count) { emitBlock() }
  }

  private func emitBlock() {
    let seen = p.mask.seenKeys(
      k, s.mask, keys: keys, diagonal: sequence?.diagonal, batch: batch, firstQuery: sequence?.firstQuery)
    let mask: Mask =
      !keepsKeys
      ? .visible(scoreMask(seen)) : seen.areGiven ? .given(seeingQueries(seen)) : .seeing(seeingRows(seen))
    let tiles = mask.tiles(of: cut.passingRows)
    k.if(tiles.first .< tiles.end) { pass(tiles, mask) }
    waitForReaders()
    if keepsKeys {
      store(
        sums.first, scaled: true, p.keyGradientBase, p.keyGradientStrides, memory.kept.scores, at: 0)
      store(
        sums.values, scaled: false, p.valueGradientBase, p.valueGradientStrides, memory.kept.weights,
        at: memory.keptOffset)
    } else {
      store(
        sums.first, scaled: true, p.queryGradientBase, p.queryGradientStrides, memory.kept.scores, at: 0)
    }
  }

  /// Gradients leave by the places of what was kept, which others may still read: of the warp; of other warps, where they make dQ,
  /// or where a gradient's rows lie elsewhere than those that it was kept in. (With one stage, all have ended their tile together.
  /// Warps that share rows have waited for one another since they read theirs.)
  private func waitForReaders() {
    if cut.stages == 1 { return }
    let own = [s.ownSums.first, s.ownSums.values]
    let liesElsewhere =
      cut.sharers > 1
      ? cut.sharers < cut.warps && !own.allSatisfy { $0 % 64 == 0 }
      : s.kind == .values && !cut.keepsOperands && memory.kept.scores != memory.kept.weights
    if s.kind == .all || liesElsewhere {
      k.barrier()
    } else if cut.sharers == 1 && !cut.keepsOperands {
      k.warpBarrier()
    }
  }

  // MARK: - The mask, from either side

  private enum Mask {
    case visible(ScoreMask)
    case seeing(SeeingRows)
    case given(SeeingQueries)

    func tiles(of size: Int) -> KeyTiles {
      switch self {
      case .given(let queries): queries.tiles(of: size)
      case .visible(let mask): mask.tiles(of: size)
      case .seeing(let rows): rows.tiles(of: size)
      }
    }

    /// Whether what is asked of a tile comes from memory.
    var asksEarly: Bool { if case .given = self { true } else { false } }

    /// Whether a tile has something to hide, to be called where that must be known; nil where none has.
    func isNeeded(tileStart start: Register<S32>, size: Int) -> () -> Predicate? {
      switch self {
      case .visible(let mask): { mask.isNeeded(tileStart: start, size: size) }
      case .seeing(let rows): { rows.isNeeded(tileStart: start, size: size) }
      case .given(let queries): queries.isNeeded(tileStart: start, size: size)
      }
    }

    func hide(in all: [Accumulators], tileStart start: Register<S32>) {
      switch self {
      case .visible(let mask): mask.hide(in: all, as: 0, tileStart: start)
      case .seeing(let rows): rows.hide(in: all, tileStart: start)
      case .given(let queries): queries.hide(in: all, tileStart: start)
      }
    }
  }

  private func scoreMask(_ visible: SeenKeys) -> ScoreMask {
    ScoreMask(k, s.mask, visible, rows: kept, ownRows: ownRows, tileRows: cut.rows, lane: place.lane)
  }

  /// The block's first key, and the key behind its last.
  private var keptKeys: (first: Register<U32>, end: Register<U32>) {
    (kept.firstRow, k.minimum(kept.firstRow + cut.rows, kept.count))
  }

  private func seeingQueries(_ seen: SeenKeys) -> SeeingQueries {
    SeeingQueries(
      k, seen, groupSize: s.groupSize, queries: queries, block: keptKeys, ownKeys: ownRows, place, warps: cut.warps)
  }

  private func seeingRows(_ visible: SeenKeys) -> SeeingRows {
    SeeingRows(
      k, s.mask, visible, groupSize: s.groupSize, queries: queries,
      block: keptKeys, ownKeys: ownRows, lane: place.lane)
  }

  // MARK: - What passes

  private func pass(_ tiles: KeyTiles, _ mask: Mask) {
    let firstRow = p.statistics.firstRow(
      k, batch: batch, keyValueHead: keyValueHead, groupSize: s.groupSize, isPacked: s.hasPackedQueries,
      firstQuery: sequence?.firstQuery)
    let statistics = p.statistics.address(ofRow: firstRow)
    let queryTensors: (PassingTiles.Source, PassingTiles.Source) = (
      (ofQueries(p.queryBase, p.queryStrides), p.queryStrides),
      (ofQueries(p.outputGradientBase, p.outputGradientStrides), p.outputGradientStrides)
    )
    let keyTensors: (PassingTiles.Source, PassingTiles.Source) = (
      (ofKeys(p.keyBase, p.keyStrides), p.keyStrides), (ofKeys(p.valueBase, p.valueStrides), p.valueStrides)
    )
    let passing = PassingTiles(
      k, s, memory, place,
      rows: keepsKeys ? (s.groupSize, queries) : (1, keys.reinterpreted(as: U32.self)),
      sources: keepsKeys ? queryTensors : keyTensors, statistics: keepsKeys ? statistics : nil, tiles: tiles)

    k.comment("prologue: what is kept, and the first of what passes")
    let (scoreSource, weightSource) = keepsKeys ? keyTensors : queryTensors
    load(memory.kept.scores, scoreSource, at: 0)
    if s.hasScoreGradients { load(memory.kept.weights, weightSource, at: memory.keptOffset) }
    passing.start()
    let own = keepsKeys ? nil : ownStatistics(statistics)
    if cut.keepsOperands {
      if cut.stages == 1 { k.commitCopies() }
      k.waitForCopies(pending: max(cut.stages - 2, 0))
      k.barrier()
    }
    let (keptScores, keptWeights) = (
      fragments(memory.kept.scores, at: 0),
      s.hasScoreGradients ? fragments(memory.kept.weights, at: memory.keptOffset) : nil
    )
    let scores = Accumulators(k, rowTiles: cut.rowTilesPerWarp, columns: cut.passingRowsPerWarp, named: "s")
    let gradients =
      s.hasScoreGradients
      ? Accumulators(k, rowTiles: cut.rowTilesPerWarp, columns: cut.passingRowsPerWarp, named: "ds") : nil
    let readers = Readers(k, s, memory, place)
    let exchange = OperandExchange(k, s, memory, place, kept: kept)
    let queries =
      s.kind == .all
      ? PassingQueries(
        k, s, memory, place, sums: p.statistics.sums(ofRow: firstRow, dimension: s.dimension),
        if: p.queryGradientBase .!= 0) : nil
    let firstOwn = place.sharer * cut.passingRowsPerWarp
    let weights = ScoreGradients(k, hasSoftcap: s.hasSoftcap, p.scales)
    k.loop(from: tiles.first, to: tiles.end) { tile in
      let slot = passing.next(tile)
      let asked =
        mask.asksEarly ? mask.isNeeded(tileStart: tiles.place(tile) * cut.passingRows, size: cut.passingRows) : nil
      k.comment(keepsKeys ? "S^T = K Q^T" : "S = Q K^T")
      multiply(keptScores, readers.scores.at(slot), memory.passing.scores, into: scores)
      if let gradients, let keptWeights {
        k.comment(keepsKeys ? "dP^T = V dO^T" : "dP = dO V^T")
        multiply(keptWeights, readers.weights.at(slot + memory.passingOffset), memory.passing.weights, into: gradients)
      }
      k.comment("weights, and the gradients of the scores")
      let passed = cut.sharers == 1 ? slot : slot + firstOwn * RowStatistics.byteCount
      weights.apply(
        to: scores, gradients,
        own.map(ScoreGradients.Statistics.ofRows)
          ?? .ofColumns(
            ScoreGradients.addressOfLane(passed, lane: place.lane), offset: memory.statisticsOffset))
      let start = tiles.place(tile) * cut.passingRows
      if let isNeeded = (asked ?? mask.isNeeded(tileStart: start, size: cut.passingRows))() {
        let ofWarp = cut.sharers == 1 ? start : start + firstOwn.reinterpreted(as: S32.self)
        k.if(isNeeded) { mask.hide(in: [scores] + (gradients.map { [$0] } ?? []), tileStart: ofWarp) }
      }
      exchange.put(weights: scores)
      if let gradients { exchange.put(gradients: gradients) }
      if cut.sharers > 1 { exchange.wait() }
      if let values = sums.values {
        k.comment("dV += P^T dO")
        accumulate(
          { exchange.weights($0, scores) }, readers.weightRows.at(slot + memory.passingOffset), into: values)
      }
      if let first = sums.first, let gradients {
        k.comment(keepsKeys ? "dK += dS^T Q" : "dQ += dS K")
        accumulate({ exchange.gradients($0, gradients) }, readers.scoreRows.at(slot), into: first)
      }
      if let queries {
        if cut.sharers == 1 { exchange.wait() }
        k.comment("dQ += dS K, of the block's keys, in memory")
        queries.add(tile)
      }
      passing.finish()
    }
  }

  /// How the tiles that pass are read: as the B operand of products over their columns, and of products over their rows.
  private struct Readers {
    let scores, weights, scoreRows, weightRows: TileReader

    init(_ k: KernelBuilder, _ s: BackwardSpecialization, _ memory: BackwardMemory, _ place: WarpPlace) {
      let isShared = s.cut.sharers > 1
      func columns(_ tile: SharedTile) -> TileReader {
        TileReader(
          k, tile, .chunksFirst, lane: place.lane,
          firstRow: isShared ? place.sharer * s.cut.passingRowsPerWarp : nil)
      }
      func rows(_ tile: SharedTile, _ own: Int) -> TileReader {
        isShared && own > 0
          ? TileReader(k, tile, .rowsFirst, lane: place.lane, columns: (place.sharer, own / 16))
          : TileReader(k, tile, .rowsFirst, lane: place.lane)
      }
      (scores, weights) = (columns(memory.passing.scores), columns(memory.passing.weights))
      scoreRows = rows(memory.passing.scores, s.ownSums.first)
      weightRows = rows(memory.passing.weights, s.ownSums.values)
    }
  }

  /// The address of the first row of a tensor of the block's batch and head (of queries, of the group's first).
  private func ofQueries(_ base: Register<U64>, _ strides: StrideParameters) -> Register<U64> {
    let head = s.groupSize == 1 ? keyValueHead : keyValueHead * s.groupSize
    let own = base + k.wide(batch) * strides.batch + k.wide(head) * strides.head
    return sequence.map { own + k.wide($0.firstQuery) * strides.row } ?? own
  }

  private func ofKeys(_ base: Register<U64>, _ strides: StrideParameters) -> Register<U64> {
    let own = base + k.wide(batch) * strides.batch + k.wide(keyValueHead) * strides.head
    return sequence.map { own + k.wide($0.firstKey) * strides.row } ?? own
  }

  private func load(_ tile: SharedTile, _ source: PassingTiles.Source, at offset: Int) {
    kept.load(
      tile, from: source.base, source.strides, to: place.shared + offset, thread: place.thread, threads: cut.threads)
  }

  private func fragments(_ tile: SharedTile, at offset: Int) -> QueryFragments {
    QueryFragments(
      k, tile, at: place.shared + offset, firstRow: place.firstRow, lane: place.lane, rowTiles: cut.rowTilesPerWarp,
      areKept: cut.keepsOperands, isNegated: false)
  }

  /// The statistics of the lane's rows, where rows of queries are kept.
  private func ownStatistics(_ base: Register<U64>) -> [[Register<F32>]] {
    ownRows.map { k.load(F32.self, count: 2, global: base + k.wide($0) * RowStatistics.byteCount) }
  }

  // MARK: - The steps

  private func multiply(
    _ kept: QueryFragments, _ passing: TileReader, _ tile: SharedTile, into result: Accumulators
  ) {
    result.clear(columnTiles: 0..<result.columnTiles)
    for step in 0..<tile.steps {
      products.addScores(kept.atStep(step), passing, step: step, keys: 0..<cut.passingRowsPerWarp, to: result)
    }
  }

  /// sums += A B, with A of 16 rows that pass after the other, and B the rows that pass.
  private func accumulate(
    _ factors: (_ chunk: Int) -> [[Register<U32>]], _ passing: TileReader, into result: Accumulators
  ) {
    for chunk in 0..<cut.passingRows / 16 {
      let operands = factors(chunk)
      for pair in 0..<(result.columnTiles + 1) / 2 {
        products.addOutput(operands, passing, row: chunk * 16, pair: pair, to: result)
      }
    }
  }

  /// Writes a gradient by the place of what was kept, of which the warp alone has read its rows.
  private func store(
    _ gradient: Accumulators?, scaled: Bool, _ base: Register<U64>, _ strides: StrideParameters, _ tile: SharedTile,
    at offset: Int
  ) {
    guard let gradient else { return }
    if scaled { gradient.scale(by: p.scales.gradient) }
    // Warps that share rows have columns of them.
    let part = cut.sharers == 1 ? tile : SharedTile(rows: tile.rows, columns: tile.columns / cut.sharers)
    let shared = place.shared + offset
    let epilogue = Epilogue(
      k: k, inputs: s.inputs, tile: part, place: cut.sharers == 1 ? shared : shared + place.sharer * part.byteCount,
      firstRow: place.firstRow, lane: place.lane, rows: kept)
    k.if(base .!= 0) {
      let first = keepsKeys ? ofKeys(base, strides) : ofQueries(base, strides)
      epilogue.store(
        gradient, to: cut.sharers == 1 ? first : first + k.wide(place.sharer * (part.columns * 2)), strides,
        .throughSharedMemory)
    }
  }
}
