internal import Attention
internal import PTX

/// The kernel while it is emitted: its roles, and what they wait for.
struct HopperForwardBody {
  let k: KernelBuilder
  let s: HopperForwardSpecialization
  let tiling: HopperForwardTiling
  let parameters: HopperForwardParameters
  private let shared: Register<U32>

  init(_ k: KernelBuilder, _ s: HopperForwardSpecialization) {
    (self.k, self.s, tiling, parameters) = (k, s, s.tiling, HopperForwardParameters(ParameterList(k)))
    shared = k.dynamicShared(alignment: 1024)
  }

  func emit() {
    k.if(k.special(.threadX) .== 0) {
      let barriers = shared + s.barriersOffset
      for (number, arrivals) in Rings.arrivals(tiling).enumerated() {
        k.initialize(transactionBarrier: barriers, offset: number * BarrierRing.byteCount, arrivals: arrivals)
      }
      k.barrierInitializationFence()
    }
    k.barrier()
    k.roles([
      WarpRole("consumers", warpgroups: tiling.groups, registers: s.registers.consumer) { consume(group: $0) },
      WarpRole("producer", registers: s.registers.producer) { _ in
        k.if((k.special(.threadX) / 32) .== tiling.groups * 4, produce)
      },
    ])
  }

  // MARK: - What both roles know

  /// The transaction barriers, as one side sees them: of Q, of K and of V, full and empty.
  private struct Rings {
    let fullQueries, emptyQueries, fullKeys, emptyKeys, fullValues, emptyValues: BarrierRing

    init(_ k: KernelBuilder, _ tiling: HopperForwardTiling, at address: Register<U32>) {
      var number = 0
      func ring(_ stages: Int, _ side: BarrierRing.Side) -> BarrierRing {
        defer { number += stages }
        return BarrierRing(k, stages: stages, at: address + number * BarrierRing.byteCount, as: side)
      }
      func pair(_ stages: Int) -> (full: BarrierRing, empty: BarrierRing) {
        (ring(stages, .consumer), ring(stages, .producer))
      }
      (fullQueries, emptyQueries) = pair(tiling.queryStages)
      (fullKeys, emptyKeys) = pair(tiling.stages)
      (fullValues, emptyValues) = pair(tiling.stages)
    }

    /// What each barrier counts in a phase, in the order of their addresses: the producer fills, a lane of each warp that
    /// multiplies gives back.
    static func arrivals(_ tiling: HopperForwardTiling) -> [Int] {
      [tiling.queryStages, tiling.stages, tiling.stages].flatMap {
        [Int](repeating: 1, count: $0) + [Int](repeating: 4 * tiling.groups, count: $0)
      }
    }
  }

  private var rings: Rings { Rings(k, tiling, at: shared + s.barriersOffset) }

  /// Tiles of keys.
  private typealias Tiles = (first: Register<S32>, end: Register<S32>)

  /// What rows of an item see, from `first` on.
  private func mask(
    _ item: HopperItem, first: Register<U32>, rows: Int, ownRows: [Register<U32>]
  ) -> (ScoreMask, PackedQueries) {
    let queries = PackedQueries(k, groupSize: 1, firstRow: first, queries: item.queries)
    let keys = parameters.mask.visibleKeys(k, s.mask, keys: item.keys, diagonal: item.diagonal)
    return (
      ScoreMask(k, s.mask, keys, rows: queries, ownRows: ownRows, tileRows: rows, lane: k.special(.lane)), queries
    )
  }

  /// The tiles of keys that some row of an item sees.
  private func tiles(of item: HopperItem) -> Tiles {
    mask(item, first: item.firstRow, rows: tiling.rows, ownRows: []).0.tiles(of: tiling.tileKeys)
  }

  // MARK: - The producer

  /// All lanes find the items; one, of which ptxas knows that it is one, waits and copies.
  private func produce() {
    let (rings, p) = (rings, parameters)
    k.if(k.elect()) { for map in [p.queryMap, p.keyMap, p.valueMap] { k.prefetch(map) } }
    let queue = HopperItemQueue(k, s, parameters)
    k.loop {
      let (isThere, item, sequence) = queue.next()
      let tiles = tiles(of: item)
      k.if(k.elect()) {
        rings.emptyQueries.wait()
        let words = [k.select(isThere, 1, 0, U32.self)] + item.words
        let place = shared + (rings.fullQueries.stage * s.itemByteCount + s.itemsOffset)
        for first in stride(from: 0, to: s.itemByteCount / 4, by: 4) {
          k.store((first..<first + 4).map { words[min($0, words.count - 1)] }, shared: place, offset: first * 4)
        }
        k.if(isThere) { bring(item, sequence, tiles, rings) } else: { rings.fullQueries.arrive() }
        rings.fullQueries.advance()
        rings.emptyQueries.advance()
      }
      queue.advance(if: isThere)
      return isThere
    }
  }

  /// Asks for Q of an item, and for K and V of all its tiles.
  private func bring(_ item: HopperItem, _ sequence: ForwardSequence?, _ tiles: Tiles, _ rings: Rings) {
    let p = parameters
    func copy(
      _ map: TensorMapParameter, _ tile: MatrixTile, to place: Register<U32>, _ barrier: Register<U32>,
      boxes: Int = 1, _ outer: (Int) -> [Register<S32>]
    ) {
      for number in 0..<boxes {
        let outer = outer(number)
        for slab in 0..<tile.slabs {
          k.copy(
            map, [k.constant(slab * tile.slabColumns, S32.self)] + outer,
            to: place + (slab * tile.slabByteCount + number * tile.slabByteCount / boxes), barrier: barrier)
        }
      }
    }
    func signed(_ number: Register<U32>) -> Register<S32> { number.reinterpreted(as: S32.self) }
    rings.fullQueries.arrive(expecting: s.queryTile.byteCount)
    // Rows behind a sequence's last are another's, and nobody's in the end.
    copy(
      p.queryMap, s.queryTile, to: shared + rings.fullQueries.stage * s.queryTile.byteCount,
      rings.fullQueries.current
    ) { _ in
      [
        signed(item.head), signed(sequence.map { $0.firstQuery + item.firstRow } ?? item.firstRow),
        signed(sequence == nil ? item.batch : item.batch * p.queryBatchStep),
      ]
    }
    let boxes = KeyBoxes(
      k, s.keys, p.keyBoxes, head: s.isGrouped ? (item.head / p.groupSize).named("key_value_head") : item.head,
      batch: item.batch,
      sequence: sequence.map {
        KeyBoxes.Sequence(number: item.batch, place: $0.keyBatch, firstKey: $0.firstKey, keys: $0.presentKeys)
      })
    k.loop(from: tiles.first, to: tiles.end) { tile in
      let place = boxes.tile(at: tile * tiling.tileKeys)
      func bring(
        _ map: TensorMapParameter, _ tile: MatrixTile, at offset: Int, _ full: BarrierRing, _ empty: BarrierRing,
        _ coordinates: (Int, KeyBoxes.Tile) -> [Register<S32>]
      ) {
        empty.wait()
        full.arrive(expecting: tile.byteCount)
        copy(
          map, tile, to: shared + (full.stage * tile.byteCount + offset), full.current, boxes: place.count
        ) { coordinates($0, place) }
        full.advance()
        empty.advance()
      }
      bring(p.keyMap, s.keyTile, at: s.keysOffset, rings.fullKeys, rings.emptyKeys, boxes.keys)
      bring(p.valueMap, s.valueTile, at: s.valuesOffset, rings.fullValues, rings.emptyValues, boxes.values)
    }
  }

  // MARK: - The consumers

  private func consume(group: Register<U32>) {
    let rings = rings
    k.loop {
      rings.fullQueries.wait()
      // The same in all lanes, and known to be.
      let place = shared + (rings.fullQueries.stage * s.itemByteCount + s.itemsOffset)
      let words = stride(from: 0, to: s.itemByteCount, by: 16).flatMap {
        k.load(U32.self, count: 4, shared: place, offset: $0)
      }.map { k.shuffle($0, lane: k.constant(0, U32.self)) }
      // All have read it before a lane gives it back.
      k.warpBarrier()
      let isThere = words[0] .!= 0
      k.if(isThere) {
        consume(HopperItem(Array(words[1...]), parameters, hasSequences: s.hasSequences), group, rings)
      }
      return isThere
    }
  }

  private func consume(_ item: HopperItem, _ group: Register<U32>, _ rings: Rings) {
    let (thread, lane) = (k.special(.threadX), k.special(.lane))
    let ownFirst = item.firstRow + group * 64
    let warpRow = ((thread / 32) % 4) * 16
    let ownRows = [0, 8].map { ownFirst + warpRow + lane / 4 + $0 }
    let (mask, rows) = mask(item, first: ownFirst, rows: 64, ownRows: ownRows)
    let softmax = OnlineSoftmax(
      k, rows: 2, scale: s.hasSoftcap ? k.constant(1) : parameters.softmax.scale, sums: .f32, rescalesLate: true)
    let output = Accumulators(k, rowTiles: 1, columns: s.valueDimension, named: "o")
    let all = tiles(of: item)
    let own = tiles(ofGroup: mask, rows, among: all)
    if s.mask.limitsFirst { pass(all.first, own.first, rings) }
    k.if(own.first .< own.end) {
      attend(group, warpRow: warpRow, own, rings, mask, softmax, output)
    } else: {
      giveBack(rings.fullQueries, rings.emptyQueries)
    }
    let logSumExps = softmax.normalize(output, ln2: parameters.softmax.ln2)
    let epilogue = Epilogue(
      k: k, inputs: s.inputs, tile: SharedTile(rows: 64, columns: s.valueDimension), place: shared, firstRow: warpRow,
      lane: lane, rows: rows)
    /// Of the item's sequence and head.
    func place(
      _ base: Register<U64>, batch: Register<U64>, head: Register<U64>, row: @autoclosure () -> Register<U64>
    ) -> Register<U64> {
      let ofHead = base + k.wide(item.batch) * batch + k.wide(item.head) * head
      return item.firstQuery.map { ofHead + k.wide($0) * row() } ?? ofHead
    }
    let p = parameters
    epilogue.store(
      logSumExps: logSumExps, ownRows: ownRows,
      to: place(
        p.logSumExpBase, batch: p.logSumExpBatchStride, head: p.logSumExpHeadStride, row: k.constant(4, U64.self)),
      headStride: p.logSumExpHeadStride, if: p.logSumExpBase .!= 0, groupSize: 1)
    epilogue.store(
      output,
      to: place(
        p.outputBase, batch: p.outputStrides.batch, head: p.outputStrides.head, row: p.outputStrides.row),
      p.outputStrides, .byShuffles)
    pass(own.end, all.end, rings)
  }

  /// The tiles that a group's own rows see, of those of the item; none where no row of the group exists.
  private func tiles(ofGroup mask: ScoreMask, _ rows: PackedQueries, among all: Tiles) -> Tiles {
    let own = mask.tiles(of: tiling.tileKeys)
    let first = s.mask.limitsFirst ? k.minimum(k.maximum(own.first, all.first), all.end) : all.first
    let end = s.mask.limitsEnd ? k.maximum(k.minimum(own.end, all.end), first) : k.maximum(all.end, first)
    return (first, k.select(rows.firstRow .< rows.count, end, first))
  }

  /// Lets tiles pass that only rows of other groups see. (A stage is given back once it is full: earlier, it would count for
  /// the tile before.)
  private func pass(_ first: Register<S32>, _ end: Register<S32>, _ rings: Rings) {
    k.loop(from: first, to: end) { _ in
      for (full, empty) in [(rings.fullKeys, rings.emptyKeys), (rings.fullValues, rings.emptyValues)] {
        full.wait()
        // All lanes have waited before one lets the next phase begin.
        k.warpBarrier()
        giveBack(full, empty)
      }
    }
  }

  /// Gives a stage back, by a lane of each warp.
  private func giveBack(_ full: BarrierRing, _ empty: BarrierRing) {
    k.if(k.special(.lane) .== 0) { empty.arrive() }
    full.advance()
    empty.advance()
  }

  private func attend(
    _ group: Register<U32>, warpRow: Register<U32>, _ tiles: Tiles, _ rings: Rings, _ mask: ScoreMask,
    _ softmax: OnlineSoftmax,
    _ output: Accumulators
  ) {
    let scores = Accumulators(k, rowTiles: 1, columns: tiling.tileKeys, named: "s")
    let queryPlace = shared + rings.fullQueries.stage * s.queryTile.byteCount
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
        ScoreCap(inner: parameters.softmax.capScale, outer: parameters.softmax.scale).apply(
          to: scores, columnTiles: 0..<scores.columnTiles, k)
      }
    }
    func isMasked(_ tile: Register<S32>) -> Predicate {
      mask.isNeeded(tileStart: tile * tiling.tileKeys, size: tiling.tileKeys)
    }
    func hide(_ tile: Register<S32>) { mask.apply(to: scores, tileStart: tile * tiling.tileKeys) }
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
      (0..<tiling.tileKeys / 16).map { softmax.operands(scores, chunk: $0, as: s.inputs)[0] }
    }

    k.comment("the first tile's scores")
    rings.fullKeys.wait()
    k.warpgroupFence()
    startScores()
    k.commitProducts()
    k.waitForProducts()
    giveBack(rings.fullKeys, rings.emptyKeys)
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
      if tiling.softmax == .lazy {
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
        giveBack(rings.fullKeys, rings.emptyKeys)
      } else {
        giveBack(rings.fullKeys, rings.emptyKeys)
        update(tile: tile)
        softmax.exponentiate(scores)
      }
      k.waitForProducts()
      giveBack(rings.fullValues, rings.emptyValues)
      softmax.rescaleLate(output)
    }
    k.comment("the last tile's share of O; Q of the next item may come")
    giveBack(rings.fullQueries, rings.emptyQueries)
    let last = weights()
    rings.fullValues.wait()
    k.warpgroupFence()
    startOutput(last)
    k.commitProducts()
    k.waitForProducts()
    giveBack(rings.fullValues, rings.emptyValues)
  }
}
