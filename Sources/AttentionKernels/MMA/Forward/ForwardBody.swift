internal import Attention
internal import PTX

/// The kernel while it is emitted: its parts, and the order in which they work.
final class ForwardBody {
  let k: KernelBuilder
  let s: ForwardSpecialization
  let tiling: ForwardTiling
  let memory: SharedMemoryPlan

  let parameters: ForwardParameters
  let place: WarpPlace
  let batch, keyValueHead: Register<U32>
  /// Rows of K and V to copy: N_k, or none.
  let presentKeys: Register<S32>
  /// Where the block's sequence begins, and which one of the keys it is, where sequences have lengths of their own.
  private let sequence: ForwardSequence?
  let rows: PackedQueries
  /// The rows of the pack that the lane holds parts of.
  let ownRows: [Register<U32>]
  let mask: ScoreMask
  let softmax: OnlineSoftmax
  let output: Accumulators
  private let products: WarpProducts

  init(_ k: KernelBuilder, _ s: ForwardSpecialization, _ memory: SharedMemoryPlan) {
    let (tiling, parameters) = (
      s.tiling, ForwardParameters(ParameterList(k), ParameterParts(sinkType: s.sinkType, s.mask))
    )
    (self.k, self.s, self.tiling, self.memory, self.parameters) = (k, s, tiling, memory, parameters)
    products = WarpProducts(k: k, inputs: s.inputs)
    let (shared, thread, lane) = (k.dynamicShared(), k.special(.threadX), k.special(.lane))
    place = WarpPlace(
      shared: shared, thread: thread, lane: lane,
      firstRow: ((thread / (32 * tiling.columnWarps)) * tiling.rowsPerWarp).named("warp_row"),
      sharer: ((thread / 32) % tiling.columnWarps).named("column_warp"))

    let head, inHead: Register<U32>
    if s.mask.limitsEnd {
      k.comment(
        "block: (batch and key/value head, rows), of some heads together; the rows that see the most keys come first")
      let own = HeadSections.placeOfBlock(k, partsPerHead: parameters.blocksPerHead)
      (head, inHead) = (own.head, parameters.blocksPerHead - 1 - own.part)
    } else {
      k.comment("block: (batch, key/value head, rows)")
      head = k.special(.blockX) / parameters.blocksPerHead
      inHead = k.special(.blockX) - head * parameters.blocksPerHead
    }
    batch = (head / parameters.keyValueHeads).named("batch")
    keyValueHead = (head - batch * parameters.keyValueHeads).named("key_value_head")
    sequence =
      s.hasSequences
      ? ForwardSequence(
        k, parameters.lists, queries: parameters.queries, keys: parameters.keys, batch: batch) : nil
    presentKeys = sequence?.presentKeys ?? parameters.keys
    rows = PackedQueries(
      k, groupSize: s.groupSize, firstRow: inHead * tiling.rows, queries: sequence?.queries ?? parameters.queries)
    let firstOwn = rows.firstRow + place.firstRow + lane / 4
    ownRows = (0..<2 * tiling.rowTilesPerWarp).map { firstOwn + $0 * 8 }
    mask = ScoreMask(
      k, s.mask,
      parameters.mask.seenKeys(
        k, s.mask, keys: sequence?.keys ?? parameters.keys, diagonal: sequence?.diagonal, batch: batch,
        firstQuery: sequence?.firstQuery), rows: rows,
      ownRows: ownRows, tileRows: tiling.rows, lane: lane,
      // Blocks behind a shorter sequence's last row have none.
      if: s.hasSequences && s.mask.rangeCount > 0 ? rows.firstRow .< rows.count : nil)
    softmax = OnlineSoftmax(
      k, rows: ownRows.count, scale: s.hasSoftcap ? k.constant(1) : parameters.softmax.scale, sums: tiling.sums)
    output = Accumulators(k, rowTiles: tiling.rowTilesPerWarp, columns: s.columnsPerWarp, named: "o")
  }

  func emit() {
    guard s.hasSequences else { return emitRows() }
    k.comment("shorter sequences have less blocks of rows")
    k.if(rows.firstRow .< rows.count) { emitRows() }
  }

  private func emitRows() {
    let tiles = mask.tiles(of: tiling.tileKeys)
    let exchange = tiling.columnWarps == 1 ? nil : WarpExchangeBuffer(k, tiling, memory, place)
    k.if(tiles.first .< tiles.end) { attend(pipeline(tiles), tiles, exchange) }

    var logSumExps = softmax.normalize(output, ln2: parameters.softmax.ln2, overWarps: exchange.map { $0.sum })
    if let sinks = AttentionSinks(k, parameters.sinkBase, type: s.sinkType) {
      logSumExps = sinks.finish(output, logSumExps) { rows.head(ofRow: ownRows[$0], first: firstHead) }
    }
    var epilogue = Epilogue(
      k: k, inputs: s.inputs, tile: memory.output, place: place.shared, firstRow: place.firstRow, lane: place.lane,
      rows: rows)
    var firstColumn: Register<U64>?
    var wantsLogSumExp = parameters.logSumExpBase .!= 0
    if tiling.columnWarps > 1 {
      let chunks = place.sharer * (s.columnsPerWarp / 8)
      epilogue.place = place.shared + place.sharer * memory.output.byteCount
      epilogue.chunkCount = k.constant(s.valueDimension / 8, S32.self) - chunks.reinterpreted(as: S32.self)
      firstColumn = k.wide(chunks * 16)
      wantsLogSumExp = wantsLogSumExp & (place.sharer .== 0)
    }
    var logSumExpBase =
      parameters.logSumExpBase + k.wide(batch) * parameters.logSumExpBatchStride
      + k.wide(firstHead) * parameters.logSumExpHeadStride
    if let sequence { logSumExpBase = logSumExpBase + k.wide(sequence.firstQuery) * 4 }
    epilogue.store(
      logSumExps: logSumExps, ownRows: ownRows, to: logSumExpBase, headStride: parameters.logSumExpHeadStride,
      if: wantsLogSumExp, groupSize: s.groupSize)
    let base = tensor(parameters.outputBase, parameters.outputStrides, head: firstHead)
    epilogue.store(output, to: firstColumn.map { base + $0 } ?? base, parameters.outputStrides, tiling.store)
  }

  /// The first query head of the group.
  private var firstHead: Register<U32> { s.groupSize == 1 ? keyValueHead : keyValueHead * s.groupSize }

  /// The first row of this block's batch and a head in queries or output.
  private func tensor(_ base: Register<U64>, _ strides: StrideParameters, head: Register<U32>) -> Register<U64> {
    let own = base + k.wide(batch) * strides.batch + k.wide(head) * strides.head
    return sequence.map { own + k.wide($0.firstQuery) * strides.row } ?? own
  }

  /// The first row of the keys or values of this block's batch and head, and the distance to the next.
  private func keys(
    _ base: Register<U64>, _ strides: StrideParameters
  ) -> (base: Register<U64>, rowStride: Register<U64>) {
    let own = base + k.wide(sequence?.keyBatch ?? batch) * strides.batch + k.wide(keyValueHead) * strides.head
    return (sequence.map { own + k.wide($0.firstKey) * strides.row } ?? own, strides.row)
  }

  private func pipeline(_ tiles: KeyTiles) -> TilePipeline {
    TilePipeline(
      k, tiling, memory, place, keys: keys(parameters.keyBase, parameters.keyStrides),
      values: keys(parameters.valueBase, parameters.valueStrides), present: presentKeys, tiles: tiles)
  }

  /// Scores, weights, output; scores, weights, output.
  ///
  /// - Parameter exchange: where warps share rows; each then computes the scores of its keys of a tile, and, once all
  ///   know each other's maxima and weights, its columns of O. nil where each works for itself.
  private func attend(
    _ pipeline: TilePipeline, _ tiles: KeyTiles, _ exchange: WarpExchangeBuffer?
  ) {
    let queries = start(pipeline)
    let scores = Accumulators(k, rowTiles: tiling.rowTilesPerWarp, columns: tiling.keysPerWarp, named: "s")
    let halfScores = tiling.sums == .f16 ? halfAccumulators(columns: tiling.keysPerWarp, named: "hs") : nil
    let halfOutput = tiling.sums == .f16 ? halfAccumulators(columns: 16, named: "ho") : nil
    let sharedWeights = exchange.map { _ in
      TileReader(k, memory.weights, .rowsFirst, lane: place.lane, firstRow: place.firstRow)
        .at(place.shared + memory.weightsOffset)
    }
    k.loop(from: tiles.first, to: tiles.end) { tile in
      k.comment("a tile: scores, weights, its share of O")
      var largest: [Register<F32>] = []
      for slice in memory.keySlices.indices {
        let part = TilePipeline.Part.keys(slice: slice)
        let keys = pipeline.wait(for: part)
        largest = multiply(
          queries ?? queryFragments(), keys, steps: memory.keySlices[slice].steps, into: scores, halfScores,
          beside: pipeline.copies(beside: part, of: tile))
        pipeline.finish(part, of: tile)
      }
      if let exchange {
        update(scores, largest, of: tiles.place(tile), exchange)
        exchange.put(weights: (0..<tiling.keysPerWarp / 16).map { softmax.weights(scores, chunk: $0, as: s.inputs) })
        k.comment("the weights of all warps")
        if !pipeline.synchronizes(.values(slice: 0)) { k.barrier() }
      } else {
        update(scores, largest, of: tiles.place(tile))
      }
      let chunks = tiling.keysPerSlice / 16
      for slice in 0..<tiling.slices {
        let part = TilePipeline.Part.values(slice: slice)
        let values = pipeline.wait(for: part)
        for copy in pipeline.copies(beside: part, of: tile) { copy() }
        accumulate(chunks: slice * chunks..<(slice + 1) * chunks, values, halfOutput) { chunk in
          sharedWeights.map { weights in
            (0..<tiling.rowTilesPerWarp).map { weights.load(row: $0 * 16, step: chunk) }
          } ?? softmax.weights(scores, chunk: chunk, as: s.inputs)
        }
        pipeline.finish(part, of: tile)
      }
    }
    finish(readsQueriesLast: queries == nil)
  }

  // MARK: - The steps

  /// Starts the copies of Q and of the first tiles, and returns Q's fragments where they stay in registers.
  private func start(_ pipeline: TilePipeline) -> QueryFragments? {
    k.comment("prologue: Q and the first of K and V")
    rows.load(
      memory.queries, from: tensor(parameters.queryBase, parameters.queryStrides, head: firstHead),
      parameters.queryStrides, to: place.shared, thread: place.thread, threads: tiling.threads)
    if tiling.sharing == .queriesKeysAndValues {
      k.commitCopies()
      k.waitForCopies(pending: 0)
      k.barrier()
      let queries = queryFragments()
      k.comment("all of Q is in registers; K and V may take its place")
      k.barrier()
      pipeline.start()
      return queries
    }
    pipeline.start()
    if !tiling.keepsQueries { return nil }
    pipeline.waitForFirst()
    return queryFragments()
  }

  private func queryFragments() -> QueryFragments {
    QueryFragments(
      k, memory.queries, at: place.shared, firstRow: place.firstRow, lane: place.lane, rowTiles: tiling.rowTilesPerWarp,
      areKept: tiling.keepsQueries, isNegated: s.isScaleNegative)
  }

  private func halfAccumulators(columns: Int, named name: String) -> HalfAccumulators {
    HalfAccumulators(k, rowTiles: tiling.rowTilesPerWarp, columns: columns, named: name)
  }

  /// S = Q K^T, softcapped; some keys after the others, so that the largest scores of those that are done are found
  /// beside the products of the next. Returns these, for each of the lane's rows; they are right after the last of K's
  /// slices.
  ///
  /// - Parameters:
  ///   - steps: which columns of Q and K, in 16s.
  ///   - half: what the sums are made in, where that is f16.
  ///   - others: instructions to emit between the products, which leave room for them.
  private func multiply(
    _ queries: QueryFragments, _ tile: TileReader, steps: Range<Int>, into scores: Accumulators,
    _ half: HalfAccumulators?, beside others: [() -> Void]
  ) -> [Register<F32>] {
    k.comment("S = Q K^T")
    var largest: [[Register<F32>]] = []
    var waiting = others[...]
    let slots = tiling.scorePieces.count * steps.count
    let share = (others.count + slots - 1) / slots
    for keys in tiling.scorePieces {
      let columnTiles = keys.lowerBound / 8..<keys.upperBound / 8
      if steps.lowerBound == 0 {
        if let half { half.clear(columnTiles: columnTiles) } else { scores.clear(columnTiles: columnTiles) }
      }
      for step in steps {
        let q = queries.atStep(step)
        products.addScores(q, tile, step: step, keys: keys, to: scores, half)
        for emit in waiting.prefix(share) { emit() }
        waiting = waiting.dropFirst(share)
      }
      if steps.upperBound < memory.keys.steps { continue }
      half?.move(columnTiles: columnTiles, to: scores, first: columnTiles.lowerBound, adding: false)
      if s.hasSoftcap {
        ScoreCap(inner: parameters.softmax.capScale, outer: parameters.softmax.scale).apply(
          to: scores, columnTiles: columnTiles, k)
      }
      largest.append(softmax.largest(of: scores, columnTiles: columnTiles))
    }
    return largest.dropFirst().reduce(largest.first ?? []) { zip($0, $1).map { k.maximum($0, $1) } }
  }

  /// The mask, where there is one, and the maxima: `largest` knows no mask, and is found again under one.
  private func update(_ scores: Accumulators, _ largest: [Register<F32>], of tile: Register<S32>) {
    let start = tile * tiling.tileKeys
    let isMasked = mask.isNeeded(tileStart: start, size: tiling.tileKeys)
    softmax.update(largest, of: scores, rescaling: output, isMasked: isMasked) {
      mask.apply(to: scores, tileStart: start)
      return softmax.largest(of: scores, columnTiles: 0..<scores.columnTiles)
    }
  }

  /// The same where warps share rows: each masks its keys and tells the others its maxima.
  private func update(
    _ scores: Accumulators, _ largest: [Register<F32>], of tile: Register<S32>, _ exchange: WarpExchangeBuffer
  ) {
    let start = tile * tiling.tileKeys
    let largest = largest.map { k.variable($0) }
    k.if(mask.isNeeded(tileStart: start, size: tiling.tileKeys)) {
      mask.apply(to: scores, tileStart: start + (place.sharer * tiling.keysPerWarp).reinterpreted(as: S32.self))
      for (old, new) in zip(largest, softmax.largest(of: scores, columnTiles: 0..<scores.columnTiles)) {
        k.set(old, to: new)
      }
    }
    exchange.put(softmax.overLanes(largest))
    k.comment("the maxima of all warps")
    k.barrier()
    softmax.follow(exchange.combine(largest.count) { k.maximum($0, $1) }, of: scores, rescaling: output)
  }

  /// O += P V for some chunks of 16 keys of a tile.
  ///
  /// - Parameters:
  ///   - values: V from the first of them on.
  ///   - half: what the sums over these keys are made in, where that is f16; O takes them then.
  ///   - weights: P of a chunk.
  private func accumulate(
    chunks: Range<Int>, _ values: TileReader, _ half: HalfAccumulators?, _ weights: (Int) -> [[Register<U32>]]
  ) {
    guard let half else {
      for chunk in chunks {
        let weights = weights(chunk)
        for pair in 0..<memory.output.steps {
          products.addOutput(weights, values, row: (chunk - chunks.lowerBound) * 16, pair: pair, to: output)
        }
      }
      return
    }
    let all = chunks.map { weights($0) }
    for pair in 0..<memory.output.steps {
      let columnTiles = 0..<min(2, output.columnTiles - 2 * pair)
      half.clear(columnTiles: columnTiles)
      for (i, weights) in all.enumerated() {
        products.addOutput(weights, values, row: i * 16, pair: pair, to: output, half)
      }
      half.move(columnTiles: columnTiles, to: output, first: 2 * pair, adding: true)
    }
  }

  /// Makes sure that O may pass through shared memory, where others may still be reading.
  private func finish(readsQueriesLast: Bool) {
    // Warps that share rows wait for each other's sums anyway, and with one stage for each other after each tile.
    if tiling.columnWarps > 1 || tiling.store == .byShuffles || tiling.stages == 1 { return }
    switch tiling.sharing {
    case .queriesKeysAndValues: k.barrier()
    // All have read Q before any could wait for V.
    case .keysAndValues: break
    case .none where !readsQueriesLast: break
    // O will lie where Q was read a moment ago.
    case .none where memory.output == memory.queries: k.warpBarrier()
    case .none: k.barrier()
    }
  }
}
