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
      WarpRole("consumers", warpgroups: tiling.groups, registers: tiling.registers.consumer) { consume(group: $0) },
      WarpRole("producer", registers: tiling.registers.producer) { _ in
        // One lane, of which ptxas knows that it is one.
        k.if((k.special(.threadX) / 32) .== tiling.groups * 4) { k.if(k.elect(), produce) }
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

  /// Some query rows of a head: the work that a block takes at once.
  private struct Item {
    let batch, head, firstRow: Register<U32>
  }

  /// Tiles of keys.
  private typealias Tiles = (first: Register<S32>, end: Register<S32>)

  /// What rows from `first` on see.
  private func mask(first: Register<U32>, rows: Int, ownRows: [Register<U32>]) -> (ScoreMask, PackedQueries) {
    let p = parameters
    let queries = PackedQueries(k, groupSize: 1, firstRow: first, queries: p.queries)
    let keys = VisibleKeys(
      k, s.mask, keys: p.keys, left: p.leftOffset, right: p.rightOffset, diagonal: p.diagonal, chunk: p.chunk)
    return (
      ScoreMask(k, s.mask, keys, rows: queries, ownRows: ownRows, tileRows: rows, lane: k.special(.lane)), queries
    )
  }

  /// The tiles of keys that some row of an item sees.
  private func tiles(of item: Item) -> Tiles {
    mask(first: item.firstRow, rows: tiling.rows, ownRows: []).0.tiles(of: tiling.tileKeys)
  }

  // MARK: - The producer

  private func produce() {
    let (rings, p) = (rings, parameters)
    for map in [p.queryMap, p.keyMap, p.valueMap] { k.prefetch(map) }
    let number = k.variable(k.special(.blockX)).named("item")
    k.loop {
      let isThere = number .< p.items
      rings.emptyQueries.wait()
      let place = shared + (rings.fullQueries.stage * Self.itemByteCount + s.itemsOffset)
      k.if(isThere) {
        let item = item(number)
        k.store([k.constant(1, U32.self), item.batch, item.head, item.firstRow], shared: place)
        bring(item, rings)
        k.set(number, to: next(after: number))
      } else: {
        k.store(k.constant(0, U32.self), shared: place)
        rings.fullQueries.arrive()
      }
      rings.fullQueries.advance()
      rings.emptyQueries.advance()
      return isThere
    }
  }

  /// Bytes that an item is told in: whether there is one, and which.
  static let itemByteCount = 16
  private static let headsOfSection = 8

  private func item(_ number: Register<U32>) -> Item {
    let p = parameters
    let (place, row): (Register<U32>, Register<U32>)
    if s.mask.limitsEnd {
      k.comment("item: some heads together, whose keys L2 holds; of these the rows that see the most keys come first")
      let section = p.itemsPerHead * Self.headsOfSection
      let firstHead = (number / section) * Self.headsOfSection
      let heads = k.minimum(p.allHeads - firstHead, k.constant(Self.headsOfSection, U32.self))
      let own = number % section
      (place, row) = (firstHead + own % heads, p.itemsPerHead - 1 - own / heads)
    } else {
      k.comment("item: all rows of a head, head by head")
      (place, row) = (number / p.itemsPerHead, number % p.itemsPerHead)
    }
    let batch = (place / p.queryHeads).named("batch")
    return Item(
      batch: batch, head: (place - batch * p.queryHeads).named("head"), firstRow: (row * tiling.rows).named("first_row")
    )
  }

  /// The item behind one: drawn by whoever comes first where the call has a counter, which its last draw leaves zero; every
  /// so many as there are blocks where it has none.
  private func next(after number: Register<U32>) -> Register<U32> {
    let p = parameters
    let next = k.variable(number + k.special(.blocksX)).named("next_item")
    k.if(p.counter .!= 0) {
      let draw = k.atomic(.add, global: p.counter, k.constant(1, U32.self))
      k.set(next, to: draw + k.special(.blocksX))
      // Each item is drawn but the first of each block, and by each block one that is none.
      k.if(draw .== p.items - 1) {
        k.store(k.constant(0, U32.self), global: p.counter, ordering: .relaxed)
      }
    }
    return next
  }

  /// Asks for Q of an item, and for K and V of all its tiles.
  private func bring(_ item: Item, _ rings: Rings) {
    let p = parameters
    func copy(
      _ map: TensorMapParameter, _ tile: MatrixTile, to place: Register<U32>, head: Register<U32>, row: Register<S32>,
      _ barrier: Register<U32>
    ) {
      for slab in 0..<tile.slabs {
        k.copy(
          map,
          [
            k.constant(slab * tile.slabColumns, S32.self), head.reinterpreted(as: S32.self), row,
            item.batch.reinterpreted(as: S32.self),
          ], to: place + slab * tile.slabByteCount, barrier: barrier)
      }
    }
    rings.fullQueries.arrive(expecting: s.queryTile.byteCount)
    copy(
      p.queryMap, s.queryTile, to: shared + rings.fullQueries.stage * s.queryTile.byteCount, head: item.head,
      row: item.firstRow.reinterpreted(as: S32.self), rings.fullQueries.current)
    let keyValueHead = s.isGrouped ? (item.head / p.groupSize).named("key_value_head") : item.head
    let tiles = tiles(of: item)
    k.loop(from: tiles.first, to: tiles.end) { tile in
      let row = tile * tiling.tileKeys
      for (map, tile, offset, full, empty) in [
        (p.keyMap, s.keyTile, s.keysOffset, rings.fullKeys, rings.emptyKeys),
        (p.valueMap, s.valueTile, s.valuesOffset, rings.fullValues, rings.emptyValues),
      ] {
        empty.wait()
        full.arrive(expecting: tile.byteCount)
        copy(
          map, tile, to: shared + (full.stage * tile.byteCount + offset), head: keyValueHead, row: row, full.current)
        full.advance()
        empty.advance()
      }
    }
  }

  // MARK: - The consumers

  private func consume(group: Register<U32>) {
    let rings = rings
    k.loop {
      rings.fullQueries.wait()
      // The same in all lanes, and known to be.
      let words = k.load(
        U32.self, count: 4, shared: shared + (rings.fullQueries.stage * Self.itemByteCount + s.itemsOffset)
      ).map { k.shuffle($0, lane: k.constant(0, U32.self)) }
      // All have read it before a lane gives it back.
      k.warpBarrier()
      let isThere = words[0] .!= 0
      k.if(isThere) { consume(Item(batch: words[1], head: words[2], firstRow: words[3]), group, rings) }
      return isThere
    }
  }

  private func consume(_ item: Item, _ group: Register<U32>, _ rings: Rings) {
    let (thread, lane) = (k.special(.threadX), k.special(.lane))
    let ownFirst = item.firstRow + group * 64
    let warpRow = ((thread / 32) % 4) * 16
    let ownRows = [0, 8].map { ownFirst + warpRow + lane / 4 + $0 }
    let (mask, rows) = mask(first: ownFirst, rows: 64, ownRows: ownRows)
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
    epilogue.store(
      logSumExps: logSumExps, ownRows: ownRows,
      to: parameters.logSumExpBase + k.wide(item.batch) * parameters.logSumExpBatchStride
        + k.wide(item.head) * parameters.logSumExpHeadStride, headStride: parameters.logSumExpHeadStride,
      if: parameters.logSumExpBase .!= 0, groupSize: 1)
    epilogue.store(
      output,
      to: parameters.outputBase + k.wide(item.batch) * parameters.outputStrides.batch
        + k.wide(item.head) * parameters.outputStrides.head, parameters.outputStrides, .byShuffles)
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
