internal import Attention
internal import PTX

/// The kernel while it is emitted: its roles, and what they wait for.
struct HopperBackwardBody {
  private let k: KernelBuilder
  private let s: HopperBackwardSpecialization
  private let memory: HopperBackwardMemory
  private let p: HopperBackwardParameters
  private let shared: Register<U32>

  private static let rows = HopperBackwardTiling.rows

  init(_ k: KernelBuilder, _ s: HopperBackwardSpecialization) {
    (self.k, self.s, memory) = (k, s, HopperBackwardMemory(s))
    p = HopperBackwardParameters(ParameterList(k), ParameterParts(sinkType: nil, s.mask))
    shared = k.dynamicShared(alignment: 1024)
  }

  func emit() {
    k.if(k.special(.threadX) .== 0) {
      k.initialize(
        transactionBarriers: shared + memory.barriersOffset,
        arrivals: HopperBackwardMemory.arrivals(stages: s.stages))
    }
    k.barrier()
    let registers = HopperBackwardSpecialization.registers
    k.roles([
      WarpRole("consumers", warpgroups: HopperBackwardTiling.groups, registers: registers.consumer) {
        consume(group: $0)
      },
      WarpRole("producer", registers: registers.producer) { _ in
        k.if((k.special(.threadX) / 32) .== HopperBackwardTiling.groups * 4) { k.if(k.elect(), produce) }
      },
    ])
  }

  // MARK: - What both roles know

  /// The transaction barriers, as one side sees them.
  private struct Rings {
    /// Of K and V; of tiles of Q with their statistics; of dO; of both, which are given back together.
    let kept, fullQueries, fullGradients, empty: BarrierRing

    init(_ k: KernelBuilder, stages: Int, at address: Register<U32>) {
      var number = 0
      func ring(_ stages: Int, _ side: BarrierRing.Side) -> BarrierRing {
        defer { number += stages }
        return BarrierRing(k, stages: stages, at: address + number * BarrierRing.byteCount, as: side)
      }
      kept = ring(1, .consumer)
      (fullQueries, fullGradients, empty) = (ring(stages, .consumer), ring(stages, .consumer), ring(stages, .producer))
    }
  }

  private var rings: Rings { Rings(k, stages: s.stages, at: shared + memory.barriersOffset) }

  /// Whose keys a block has.
  private struct Block {
    let batch, keyValueHead: Register<U32>
    /// The first of its keys, and how many there are in all.
    let keys: PackedQueries
  }

  private func block() -> Block {
    let head, inHead: Register<U32>
    if s.mask.limitsEnd {
      k.comment(
        "block: (batch and key/value head, keys), of some heads together; the keys that most rows see come first")
      let own = HeadSections.placeOfBlock(k, partsPerHead: p.blocksPerHead)
      (head, inHead) = (own.head, own.part)
    } else {
      k.comment("block: (batch, key/value head, keys)")
      head = k.special(.blockX) / p.blocksPerHead
      inHead = k.special(.blockX) - head * p.blocksPerHead
    }
    let batch = (head / p.keyValueHeads).named("batch")
    return Block(
      batch: batch, keyValueHead: (head - batch * p.keyValueHeads).named("key_value_head"),
      keys: PackedQueries(
        k, groupSize: 1, firstRow: inHead * s.keys, queries: p.keys.reinterpreted(as: U32.self)))
  }

  /// Which packed rows see the keys of a block.
  private func seeingRows(_ block: Block, ownKeys: [Register<U32>]) -> SeeingRows {
    let seen = p.mask.seenKeys(k, s.mask, keys: p.keys, batch: block.batch)
    return SeeingRows(
      k, s.mask, seen, groupSize: s.groupSize, queries: p.queries,
      block: (block.keys.firstRow, k.minimum(block.keys.firstRow + s.keys, block.keys.count)), ownKeys: ownKeys,
      lane: k.special(.lane))
  }

  /// A block's first row of queries, among those of `RowStatistics`.
  private func firstRow(_ block: Block) -> Register<U64> {
    p.statistics.firstRow(
      k, batch: block.batch, keyValueHead: block.keyValueHead, groupSize: s.groupSize, isPacked: false, firstQuery: nil)
  }

  // MARK: - The producer

  private func produce() {
    for map in [p.keyMap, p.queryMap, p.valueMap, p.outputGradientMap] { k.prefetch(map) }
    let (rings, block) = (rings, block())
    let tiles = seeingRows(block, ownKeys: []).tiles(of: Self.rows)
    func signed(_ number: Register<U32>) -> Register<S32> { number.reinterpreted(as: S32.self) }
    k.if(tiles.first .< tiles.end) {
      rings.kept.arrive(expecting: memory.keys.byteCount + memory.values.byteCount)
      let place = [signed(block.keyValueHead), signed(block.keys.firstRow), signed(block.batch)]
      k.copy(p.keyMap, memory.keys, to: shared, barrier: rings.kept.current) { _ in place }
      k.copy(p.valueMap, memory.values, to: shared + memory.valuesOffset, barrier: rings.kept.current) { _ in place }
      let statistics = p.statistics.address(ofRow: firstRow(block))
      let head = signed(block.keyValueHead * s.groupSize)
      k.loop(from: tiles.first, to: tiles.end) { tile in
        let row = tile * Self.rows
        let place = [head, s.groupSize == 1 ? row : tile * (Self.rows / s.groupSize), signed(block.batch)]
        rings.empty.wait()
        rings.fullQueries.arrive(expecting: memory.queries.byteCount + HopperBackwardMemory.statisticsByteCount)
        k.copy(
          p.queryMap, memory.queries,
          to: shared + (rings.fullQueries.stage * memory.queries.byteCount + memory.queriesOffset),
          barrier: rings.fullQueries.current
        ) { _ in place }
        k.copy(
          byteCount: k.constant(HopperBackwardMemory.statisticsByteCount, U32.self),
          from: statistics + k.wide(row.reinterpreted(as: U32.self)) * RowStatistics.byteCount,
          to: statisticsPlace(rings), barrier: rings.fullQueries.current)
        rings.fullQueries.advance()
        rings.fullGradients.arrive(expecting: memory.outputGradients.byteCount)
        k.copy(
          p.outputGradientMap, memory.outputGradients,
          to: shared + (rings.fullGradients.stage * memory.outputGradients.byteCount + memory.outputGradientsOffset),
          barrier: rings.fullGradients.current
        ) { _ in place }
        rings.fullGradients.advance()
        rings.empty.advance()
      }
    }
  }

  private func statisticsPlace(_ rings: Rings) -> Register<U32> {
    shared + (rings.fullQueries.stage * HopperBackwardMemory.statisticsByteCount + memory.statisticsOffset)
  }

  // MARK: - The consumers

  private var inputs: WarpgroupMatrix.Inputs { s.inputs == .f16 ? .f16 : .bf16 }

  private func accumulators(_ columns: Int, _ name: String) -> Accumulators {
    Accumulators(k, rowTiles: 1, columns: columns, named: name)
  }

  private func consume(group: Register<U32>) {
    let block = block()
    let (thread, lane) = (k.special(.threadX), k.special(.lane))
    let warpRow = ((thread / 32) % 4) * 16
    // The group's first key in the block.
    let ownKey = s.share == .keys ? group * 64 : k.constant(0, U32.self)
    let firstOfLane = block.keys.firstRow + ownKey + warpRow + lane / 4
    let mask = seeingRows(block, ownKeys: [firstOfLane, firstOfLane + 8])
    let sums = (keys: accumulators(s.ownSums.keys, "dk"), values: accumulators(s.ownSums.values, "dv"))
    let tiles = mask.tiles(of: Self.rows)
    k.if(tiles.first .< tiles.end) {
      pass(tiles, mask, block, Place(group: group, warpRow: warpRow, ownKey: ownKey), sums)
    }
    sums.keys.scale(by: p.scales.gradient)
    let rows = PackedQueries(
      k, groupSize: 1, firstRow: block.keys.firstRow + ownKey, queries: block.keys.count)
    for (gradient, base, strides) in [
      (sums.keys, p.keyGradientBase, p.keyGradientStrides), (sums.values, p.valueGradientBase, p.valueGradientStrides),
    ] {
      let columns = gradient.columnTiles * 8
      let epilogue = Epilogue(
        k: k, inputs: s.inputs, tile: SharedTile(rows: 64, columns: columns), firstRow: warpRow, lane: lane, rows: rows)
      k.if(base .!= 0) {
        let ofHead = base + k.wide(block.batch) * strides.batch + k.wide(block.keyValueHead) * strides.head
        epilogue.store(
          gradient, to: s.share == .keys ? ofHead : ofHead + k.wide(group * (columns * 2)), strides, .byShuffles)
      }
    }
  }

  /// Where a warp stands in its block.
  private struct Place {
    let group, warpRow, ownKey: Register<U32>
  }

  /// The operand of a tile's columns of a group, whose rows are those that are summed over: whole slabs, or within one.
  private func columns(
    of tile: MatrixTile, at place: Register<U32>, _ group: Register<U32>, _ columns: Int
  ) -> MatrixDescriptor {
    precondition(columns % tile.slabColumns == 0 || tile.slabColumns % columns == 0, "No operand begins within a slab.")
    let own =
      columns == tile.columns
      ? place
      : place + group
        * (columns % tile.slabColumns == 0 ? columns / tile.slabColumns * tile.slabByteCount : columns * 2)
    return k.descriptor(tile, at: own, isTransposed: true)
  }

  private func pass(
    _ tiles: KeyTiles, _ mask: SeeingRows, _ block: Block, _ place: Place,
    _ sums: (keys: Accumulators, values: Accumulators)
  ) {
    let (rings, lane) = (rings, k.special(.lane))
    let scores = accumulators(s.ownRows, "s")
    let gradients = accumulators(s.ownRows, "ds")
    let weights = ScoreGradients(k, hasSoftcap: s.hasSoftcap, p.scales)
    let writer = OperandWriter(k, memory.operands, place.ownKey + place.warpRow, lane: lane)
    let queries = s.addsQueries ? accumulators(s.ownQueryColumns, "dq") : nil
    let queryPlace = s.addsQueries ? sumsOfQueries(block, place) : nil
    // The warp's place for its part of dQ, where copies add it.
    let part =
      s.partByteCount > 0
      ? shared + ((k.special(.threadX) / 32) * s.partByteCount + memory.partsOffset) : nil
    // Of the rows that pass, the group's first.
    let firstOwn = s.share == .keys ? nil : place.group * s.ownRows
    func fromOwn(_ address: Register<U32>, _ rowByteCount: Int) -> Register<U32> {
      firstOwn.map { address + $0 * rowByteCount } ?? address
    }
    let keys = k.descriptor(memory.keys, at: shared + place.ownKey * 128)
    let values = k.descriptor(memory.values, at: shared + place.ownKey * 128 + memory.valuesOffset)
    rings.kept.wait()
    k.loop(from: tiles.first, to: tiles.end) { tile in
      let start = tile * Self.rows
      k.comment("S^T = K Q^T, dP^T = V dO^T")
      rings.fullQueries.wait()
      let queryTile = shared + (rings.fullQueries.stage * memory.queries.byteCount + memory.queriesOffset)
      k.warpgroupFence()
      multiply(keys, k.descriptor(memory.queries, at: fromOwn(queryTile, 128)), memory.queries, into: scores)
      rings.fullGradients.wait()
      let gradientTile =
        shared + (rings.fullGradients.stage * memory.outputGradients.byteCount + memory.outputGradientsOffset)
      multiply(
        values, k.descriptor(memory.outputGradients, at: fromOwn(gradientTile, 128)), memory.outputGradients,
        into: gradients)
      let statistics = ScoreGradients.Statistics.ofColumns(
        ScoreGradients.addressOfLane(fromOwn(statisticsPlace(rings), RowStatistics.byteCount), lane: lane), offset: 0)
      let isNeeded = mask.isNeeded(tileStart: start, size: Self.rows)
      func hide(in tiles: [Accumulators]) {
        guard let isNeeded else { return }
        k.if(isNeeded) {
          mask.hide(in: tiles, tileStart: firstOwn.map { start + $0.reinterpreted(as: S32.self) } ?? start)
        }
      }
      let chunk = firstOwn.map { $0 / 8 }
      let dO = columns(of: memory.outputGradients, at: gradientTile, place.group, s.ownSums.values)
      let q = columns(of: memory.queries, at: queryTile, place.group, s.ownSums.keys)
      func startValues() {
        let own = operands(scores)
        k.comment("dV += P^T dO")
        if s.exchangesWeights {
          // All have read what was there before.
          barrier()
          writer.put(own, to: shared + memory.weightsOffset, firstChunk: chunk)
          k.proxyFence()
          barrier()
          multiplyOperands(at: memory.weightsOffset, dO, into: sums.values)
        } else {
          k.warpgroupFence()
          for (step, own) in own.enumerated() {
            k.startProduct(inputs, a: own, b: dO.step(step), into: sums.values.registers)
          }
        }
        k.commitProducts()
      }
      k.comment("weights, and the gradients of the scores")
      if weights.comeApart {
        k.waitForProducts(pending: 1)
        weights.makeWeights(scores, statistics)
        hide(in: [scores])
        startValues()
        k.waitForProducts(pending: 1)
        weights.makeGradients(gradients, of: scores, statistics)
        hide(in: [gradients])
      } else {
        k.waitForProducts()
        weights.apply(to: scores, gradients, statistics)
        hide(in: [scores, gradients])
        startValues()
      }
      if s.addsQueries { clearAbsentKeys(gradients, block, place) }
      let ofGradients = operands(gradients)
      if s.exchangesGradients {
        if !s.exchangesWeights { barrier() }
        writer.put(ofGradients, to: shared + memory.gradientsOffset, firstChunk: chunk)
      }
      // Of what was written, and of the statistics, in whose place others come.
      k.proxyFence()
      k.comment("dK += dS^T Q")
      if s.share == .keys {
        k.warpgroupFence()
        for (step, own) in ofGradients.enumerated() {
          k.startProduct(inputs, a: own, b: q.step(step), into: sums.keys.registers)
        }
      }
      if s.exchangesGradients { barrier() }
      if s.share == .columns { multiplyOperands(at: memory.gradientsOffset, q, into: sums.keys) }
      if let queries {
        k.comment("dQ = dS K, of the block's keys, half of the columns")
        let a = k.descriptor(memory.operands, at: shared + memory.gradientsOffset, isTransposed: true)
        let b = columns(of: memory.keys, at: shared, place.group, s.ownQueryColumns)
        for step in 0..<s.keys / 16 {
          k.startProduct(
            inputs, a: a.step(step), b: b.step(step), into: queries.registers, sum: step == 0 ? .never : .always)
        }
      }
      k.commitProducts()
      k.waitForProducts()
      // All lanes have read the statistics.
      if !s.exchangesGradients { k.warpBarrier() }
      rings.fullGradients.advance()
      k.giveBack(rings.fullQueries, rings.empty)
      if let queries, let queryPlace {
        k.if(p.queryGradientBase .!= 0) {
          let to =
            queryPlace.first + k.multiplyWide(start.reinterpreted(as: U32.self), QuerySums.rowByteCount(s.dimension))
          if let part { add(queries, queryPlace.sums, by: part, to: to) } else { queryPlace.sums.add(queries, to: to) }
        }
      }
    }
    if part != nil { k.if(lane .== 0) { k.waitForBulkCopies() } }
  }

  /// Adds a warp's part of dQ by the copy engine.
  private func add(_ queries: Accumulators, _ sums: QuerySums, by part: Register<U32>, to place: Register<U64>) {
    let isFirst = k.special(.lane) .== 0
    // The one before has left.
    k.if(isFirst) { k.waitForBulkCopies(untilRead: true) }
    k.warpBarrier()
    sums.put(queries, shared: part)
    k.proxyFence()
    k.warpBarrier()
    k.if(isFirst) {
      k.add(byteCount: k.constant(s.partByteCount, U32.self), from: part, to: place)
      k.commitBulkCopies()
    }
  }

  /// Waits for all threads that multiply.
  private func barrier() { k.barrier(id: 1, threads: HopperBackwardTiling.groups * 128) }

  /// Starts a product of 64 keys and of rows that pass, over their columns.
  private func multiply(_ a: MatrixDescriptor, _ b: MatrixDescriptor, _ tile: MatrixTile, into result: Accumulators) {
    for step in 0..<tile.columns / 16 {
      k.startProduct(
        inputs, a: a.step(step), b: b.step(step), into: result.registers, sum: step == 0 ? .never : .always)
    }
    k.commitProducts()
  }

  /// Starts a product of weights, or of gradients of scores, in shared memory.
  private func multiplyOperands(at offset: Int, _ b: MatrixDescriptor, into sum: Accumulators) {
    let a = k.descriptor(memory.operands, at: shared + offset)
    for step in 0..<Self.rows / 16 {
      k.startProduct(inputs, a: a.step(step), b: b.step(step), into: sum.registers)
    }
  }

  private func operands(_ tiles: Accumulators) -> [[Register<U32>]] {
    (0..<tiles.columnTiles / 2).map { tiles.operands(chunk: $0, as: s.inputs)[0] }
  }

  /// To dQ, keys behind the last must not add, whatever their weights.
  private func clearAbsentKeys(_ gradients: Accumulators, _ block: Block, _ place: Place) {
    k.if((block.keys.firstRow + s.keys) .> block.keys.count) {
      let first = block.keys.firstRow + place.ownKey + place.warpRow + k.special(.lane) / 4
      let exist = [first .< block.keys.count, (first + 8) .< block.keys.count]
      gradients.forEachPlace { rowTile, columnTile, element, row, _ in
        let value = gradients[rowTile, columnTile][element]
        k.set(value, to: k.select(exist[row], value, k.constant(0)))
      }
    }
  }

  /// The sums of dQ, and where those of the warp's rows and the group's columns of tile 0 are.
  private func sumsOfQueries(_ block: Block, _ place: Place) -> (sums: QuerySums, first: Register<U64>) {
    let first =
      p.statistics.sums(ofRow: firstRow(block), dimension: s.dimension)
      + k.wide(
        place.warpRow * QuerySums.rowByteCount(s.dimension)
          + place.group * (s.ownQueryColumns / 16 * QuerySums.byteCountOfTile))
    return (QuerySums(k: k, dimension: s.dimension, areVectors: true, lane: k.special(.lane)), first)
  }
}

/// Writes 16 rows of a warp to a tile of shared memory that `wgmma` reads: A operands of 16 columns each, one after the other.
private struct OperandWriter {
  private let k: KernelBuilder
  /// From the tile to where the lane writes a row of the first 16 columns.
  private let own: Register<U32>

  /// - Parameters:
  ///   - tile: of 64 columns.
  ///   - row: the warp's first.
  init(_ k: KernelBuilder, _ tile: MatrixTile, _ row: Register<U32>, lane: Register<U32>) {
    precondition(tile.columns == tile.slabColumns && tile.swizzle == .bytes128, "One slab, in lines of 128 bytes.")
    self.k = k
    // Matrices 0 and 1 are rows 0 to 7 and 8 to 15 of the first 8 columns, 2 and 3 of the second.
    let (line, upper, right) = (lane % 8, (lane / 8) % 2, lane / 16)
    own = (row + upper * 8 + line) * 128 + (right ^ line) * 16
  }

  /// - Parameter firstChunk: of 8 columns, a multiple of what is written; nil for 0.
  func put(_ operands: [[Register<U32>]], to place: Register<U32>, firstChunk: Register<U32>?) {
    let first = place + own
    let base = firstChunk.map { first ^ ($0 * 16) } ?? first
    for (number, operand) in operands.enumerated() {
      k.storeMatrix(operand, shared: number == 0 ? base : base ^ (number * 32))
    }
  }
}
