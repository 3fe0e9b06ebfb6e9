internal import Attention
internal import PTX

/// The kernel while it is emitted: its roles, and what they wait for.
struct HopperForwardBody {
  let k: KernelBuilder
  let s: HopperForwardSpecialization
  let tiling: HopperForwardTiling
  let parameters: HopperForwardParameters
  private let shared: Register<U32>
  private let batch, head, keyValueHead, firstRow: Register<U32>

  init(_ k: KernelBuilder, _ s: HopperForwardSpecialization) {
    (self.k, self.s, tiling, parameters) = (k, s, s.tiling, HopperForwardParameters(ParameterList(k)))
    shared = k.dynamicShared(alignment: 1024)
    let p = parameters
    let block = k.special(.blockX)
    let (place, row): (Register<U32>, Register<U32>)
    if s.mask.limitsEnd {
      k.comment("block: some heads together, whose keys L2 holds; of these the rows that see the most keys come first")
      let section = p.blocksPerHead * Self.headsOfSection
      let firstHead = (block / section) * Self.headsOfSection
      let heads = k.minimum(p.allHeads - firstHead, k.constant(Self.headsOfSection, U32.self))
      let own = block % section
      (place, row) = (firstHead + own % heads, p.blocksPerHead - 1 - own / heads)
    } else {
      k.comment("block: all rows of a head, head by head")
      (place, row) = (block / p.blocksPerHead, block % p.blocksPerHead)
    }
    batch = (place / p.queryHeads).named("batch")
    head = (place - batch * p.queryHeads).named("head")
    keyValueHead = s.isGrouped ? (head / p.groupSize).named("key_value_head") : head
    firstRow = (row * tiling.rows).named("first_row")
  }

  private static let headsOfSection = 8

  /// The transaction barriers, as one side sees them: Q once, K and V in rings.
  private struct Rings {
    let queries, fullKeys, emptyKeys, fullValues, emptyValues: BarrierRing

    init(_ k: KernelBuilder, stages: Int, at address: Register<U32>) {
      func ring(_ number: Int, _ side: BarrierRing.Side) -> BarrierRing {
        BarrierRing(k, stages: stages, at: address + (1 + number * stages) * BarrierRing.byteCount, as: side)
      }
      queries = BarrierRing(k, stages: 1, at: address, as: .consumer)
      (fullKeys, emptyKeys) = (ring(0, .consumer), ring(1, .producer))
      (fullValues, emptyValues) = (ring(2, .consumer), ring(3, .producer))
    }
  }

  private var rings: Rings { Rings(k, stages: tiling.stages, at: shared + s.barriersOffset) }

  func emit() {
    k.if(k.special(.threadX) .== 0) {
      let barriers = shared + s.barriersOffset
      // Of Q; of K full and empty, of V full and empty. A stage is given back by a lane of each warp.
      let arrivals =
        [1]
        + [1, 4 * tiling.groups, 1, 4 * tiling.groups].flatMap {
          [Int](repeating: $0, count: tiling.stages)
        }
      for (number, count) in arrivals.enumerated() {
        k.initialize(transactionBarrier: barriers, offset: number * BarrierRing.byteCount, arrivals: count)
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

  /// The tiles of keys that some row of the block sees.
  private var tiles: (first: Register<S32>, end: Register<S32>) {
    mask(first: firstRow, rows: tiling.rows, ownRows: []).0.tiles(of: tiling.tileKeys)
  }

  // MARK: - The producer

  private func produce() {
    let (tiles, rings, p) = (tiles, rings, parameters)
    func copy(
      _ map: TensorMapParameter, _ tile: MatrixTile, to place: Register<U32>, head: Register<U32>, row: Register<S32>,
      _ barrier: Register<U32>
    ) {
      for slab in 0..<tile.slabs {
        k.copy(
          map,
          [
            k.constant(slab * tile.slabColumns, S32.self), head.reinterpreted(as: S32.self), row,
            batch.reinterpreted(as: S32.self),
          ], to: place + slab * tile.slabByteCount, barrier: barrier)
      }
    }
    for map in [p.queryMap, p.keyMap, p.valueMap] { k.prefetch(map) }
    k.if(tiles.first .< tiles.end) {
      rings.queries.arrive(expecting: s.queryTile.byteCount)
      copy(
        p.queryMap, s.queryTile, to: shared, head: head, row: firstRow.reinterpreted(as: S32.self),
        rings.queries.current)
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
  }

  // MARK: - The consumers

  private func consume(group: Register<U32>) {
    let (thread, lane) = (k.special(.threadX), k.special(.lane))
    let ownFirst = firstRow + group * 64
    let warpRow = ((thread / 32) % 4) * 16
    let ownRows = [0, 8].map { ownFirst + warpRow + lane / 4 + $0 }
    let (mask, rows) = mask(first: ownFirst, rows: 64, ownRows: ownRows)
    let tiles = tiles
    let softmax = OnlineSoftmax(
      k, rows: 2, scale: s.hasSoftcap ? k.constant(1) : parameters.softmax.scale, sums: .f32)
    let output = Accumulators(k, rowTiles: 1, columns: s.valueDimension, named: "o")
    k.if(tiles.first .< tiles.end) {
      attend(group, tiles, mask, softmax, output)
    }
    let logSumExps = softmax.normalize(output, ln2: parameters.softmax.ln2)
    let epilogue = Epilogue(
      k: k, inputs: s.inputs, tile: SharedTile(rows: 64, columns: s.valueDimension), place: shared, firstRow: warpRow,
      lane: lane, rows: rows)
    epilogue.store(
      logSumExps: logSumExps, ownRows: ownRows,
      to: parameters.logSumExpBase + k.wide(batch) * parameters.logSumExpBatchStride
        + k.wide(head) * parameters.logSumExpHeadStride, headStride: parameters.logSumExpHeadStride,
      if: parameters.logSumExpBase .!= 0, groupSize: 1)
    epilogue.store(
      output,
      to: parameters.outputBase + k.wide(batch) * parameters.outputStrides.batch
        + k.wide(head) * parameters.outputStrides.head, parameters.outputStrides, .byShuffles)
  }

  private func attend(
    _ group: Register<U32>, _ tiles: (first: Register<S32>, end: Register<S32>), _ mask: ScoreMask,
    _ softmax: OnlineSoftmax, _ output: Accumulators
  ) {
    let rings = rings
    let scores = Accumulators(k, rowTiles: 1, columns: tiling.tileKeys, named: "s")
    let queries = k.descriptor(s.queryTile, at: shared + group * (64 * 128))
    let isLeader = k.special(.lane) .== 0
    let inputs: WarpgroupMatrix.Inputs = s.inputs == .f16 ? .f16 : .bf16

    func startScores() {
      let keys = k.descriptor(s.keyTile, at: shared + (rings.fullKeys.stage * s.keyTile.byteCount + s.keysOffset))
      for step in 0..<(s.dimension + 15) / 16 {
        k.startProduct(
          inputs, a: queries.step(step), b: keys.step(step), into: scores.registers, sum: step == 0 ? .never : .always)
      }
    }
    func startOutput(_ weights: [[Register<U32>]]) {
      let values = k.descriptor(
        s.valueTile, at: shared + (rings.fullValues.stage * s.valueTile.byteCount + s.valuesOffset), isTransposed: true)
      for (step, own) in weights.enumerated() {
        k.startProduct(inputs, a: own, b: values.step(step), into: output.registers)
      }
    }
    func giveBack(_ full: BarrierRing, _ empty: BarrierRing) {
      k.if(isLeader) { empty.arrive() }
      full.advance()
      empty.advance()
    }
    func update(tile: Register<S32>) {
      if s.hasSoftcap {
        ScoreCap(inner: parameters.softmax.capScale, outer: parameters.softmax.scale).apply(
          to: scores, columnTiles: 0..<scores.columnTiles, k)
      }
      func largest() -> [Register<F32>] { softmax.largest(of: scores, columnTiles: 0..<scores.columnTiles) }
      let start = tile * tiling.tileKeys
      softmax.update(
        largest(), of: scores, rescaling: output, isMasked: mask.isNeeded(tileStart: start, size: tiling.tileKeys)
      ) {
        mask.apply(to: scores, tileStart: start)
        return largest()
      }
    }
    func weights() -> [[Register<U32>]] {
      (0..<tiling.tileKeys / 16).map { softmax.weights(scores, chunk: $0, as: s.inputs)[0] }
    }

    k.comment("the first tile's scores")
    rings.queries.wait()
    rings.fullKeys.wait()
    k.warpgroupFence()
    startScores()
    k.commitProducts()
    k.waitForProducts()
    giveBack(rings.fullKeys, rings.emptyKeys)
    update(tile: tiles.first)
    k.loop(from: tiles.first + 1, to: tiles.end) { tile in
      k.comment("a tile: the weights and the share of O of the one before, this one's scores")
      let own = weights()
      rings.fullValues.wait()
      rings.fullKeys.wait()
      k.warpgroupFence()
      startOutput(own)
      startScores()
      k.commitProducts()
      k.waitForProducts()
      giveBack(rings.fullValues, rings.emptyValues)
      giveBack(rings.fullKeys, rings.emptyKeys)
      update(tile: tile)
    }
    k.comment("the last tile's share of O")
    let last = weights()
    rings.fullValues.wait()
    k.warpgroupFence()
    startOutput(last)
    k.commitProducts()
    k.waitForProducts()
  }
}
