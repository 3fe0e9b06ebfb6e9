internal import PTX

/// The kernel while it is emitted: its parts, and the order in which they work.
struct ForwardBody {
  let k: KernelBuilder
  let s: ForwardSpecialization
  let tiling: ForwardTiling
  let memory: SharedMemoryPlan

  let parameters: ForwardParameters
  let shared, thread, lane: Register<U32>
  /// The warp's first row of the block.
  let firstRow: Register<U32>
  /// Which of the warps that share rows this is; 0 where none do.
  let columnWarp: Register<U32>
  let batch, keyValueHead: Register<U32>
  let rows: PackedQueries
  /// The rows of the pack that the lane holds parts of.
  let ownRows: [Register<U32>]
  let mask: ScoreMask
  let softmax: OnlineSoftmax
  let output: Accumulators

  init(_ k: KernelBuilder, _ s: ForwardSpecialization, _ memory: SharedMemoryPlan) {
    let (tiling, parameters) = (s.tiling, ForwardParameters(k))
    (self.k, self.s, self.tiling, self.memory, self.parameters) = (k, s, tiling, memory, parameters)
    shared = k.dynamicShared()
    thread = k.special(.threadX)
    lane = k.special(.lane)
    firstRow = ((thread / (32 * tiling.columnWarps)) * tiling.rowsPerWarp).named("warp_row")
    columnWarp = ((thread / 32) % tiling.columnWarps).named("column_warp")

    k.comment("block: (batch, key/value head, rows); under a right edge, the rows that see the most keys come first")
    let block = k.special(.blockX)
    let head = block / parameters.blocksPerHead
    let place = block - head * parameters.blocksPerHead
    let inHead = s.mask.contains(.right) ? parameters.blocksPerHead - 1 - place : place
    batch = (head / parameters.keyValueHeads).named("batch")
    keyValueHead = (head - batch * parameters.keyValueHeads).named("key_value_head")
    rows = PackedQueries(
      k, groupSize: s.groupSize, firstRow: inHead * tiling.rows, queries: parameters.queries)
    let firstOwn = rows.firstRow + firstRow + lane / 4
    ownRows = (0..<2 * tiling.rowTilesPerWarp).map { firstOwn + $0 * 8 }
    mask = ScoreMask(k, s.mask, parameters, rows: rows, ownRows: ownRows, tileRows: tiling.rows, lane: lane)
    softmax = OnlineSoftmax(k, rows: ownRows.count, scale: s.hasSoftcap ? k.constant(1) : parameters.scale)
    output = Accumulators(k, rowTiles: tiling.rowTilesPerWarp, columns: s.columnsPerWarp, named: "o")
  }

  func emit() {
    let firstHead = s.groupSize == 1 ? keyValueHead : keyValueHead * s.groupSize
    let tiles = mask.tiles(of: tiling.tileKeys)
    let exchange = tiling.columnWarps == 1 ? nil : WarpExchangeBuffer(self)
    k.if(tiles.first .< tiles.end) {
      if let exchange { return attend(together: exchange, tiles, firstHead: firstHead) }
      let pipeline = TilePipeline(
        k, s, memory, shared: shared, thread: thread, lane: lane,
        keys: tensor(parameters.keyBase, parameters.keyStrides, head: keyValueHead),
        values: tensor(parameters.valueBase, parameters.valueStrides, head: keyValueHead),
        keyCount: parameters.keys, firstTile: tiles.first, endTile: tiles.end)
      k.comment("prologue: Q and the first stages of K and V")
      rows.load(
        memory.queries, from: tensor(parameters.queryBase, parameters.queryStrides, head: firstHead).base,
        parameters.queryStrides, to: shared, thread: thread, threads: tiling.threads)
      pipeline.issueFirstStages()
      attend(pipeline, tiles)
    }

    let logSumExps = softmax.normalize(output, ln2: parameters.ln2, overWarps: exchange.map { $0.sum })
    var epilogue = Epilogue(
      k: k, inputs: s.inputs, tile: memory.output, place: shared, firstRow: firstRow, lane: lane, rows: rows)
    var firstColumn: Register<U64>?
    if tiling.columnWarps > 1 {
      let chunks = columnWarp * (s.columnsPerWarp / 8)
      epilogue.place = shared + columnWarp * memory.output.byteCount
      epilogue.chunkCount = k.constant(s.valueDimension / 8, S32.self) - chunks.reinterpreted(as: S32.self)
      firstColumn = k.wide(chunks * 16)
    }
    let logSumExpBase =
      tiling.columnWarps == 1
      ? parameters.logSumExpBase
      : k.select(columnWarp .== 0, parameters.logSumExpBase, k.constant(0, U64.self))
    epilogue.store(
      logSumExps: logSumExps, ownRows: ownRows, to: logSumExpBase,
      firstHead: (batch * parameters.keyValueHeads + keyValueHead) * s.groupSize, queries: parameters.queries,
      groupSize: s.groupSize)
    let base = tensor(parameters.outputBase, parameters.outputStrides, head: firstHead).base
    epilogue.store(output, to: firstColumn.map { base + $0 } ?? base, parameters.outputStrides)
  }

  /// A tensor from this block's batch and a head on: its first row, and the distance to the next.
  func tensor(
    _ base: Register<U64>, _ strides: ForwardParameters.Strides, head: Register<U32>
  ) -> (base: Register<U64>, rowStride: Register<U64>) {
    (base + k.wide(batch) * strides.batch + k.wide(head) * strides.head, strides.row)
  }

  /// Scores, weights, output; scores, weights, output. Each warp for itself.
  func attend(_ pipeline: TilePipeline, _ tiles: (first: Register<S32>, end: Register<S32>)) {
    let scores = Accumulators(k, rowTiles: tiling.rowTilesPerWarp, columns: tiling.tileKeys, named: "s")
    var queries: QueryFragments?
    if tiling.keepsQueries {
      pipeline.wait()
      queries = queryFragments()
    }
    k.loop(from: tiles.first, to: tiles.end) { tile in
      k.comment("a tile: scores, weights, its share of O")
      pipeline.wait()
      let largest = multiply(
        queries ?? queryFragments(), pipeline.keys, into: scores, beside: pipeline.nextCopies())
      update(scores, largest, of: tile)
      for chunk in 0..<tiling.tileKeys / 16 {
        accumulate(softmax.weights(scores, chunk: chunk, as: s.inputs), pipeline.values, chunk: chunk)
      }
      pipeline.advance()
    }
    if !tiling.keepsQueries {
      // O will lie where Q was read a moment ago.
      if memory.output == memory.queries { k.warpBarrier() } else { k.barrier() }
    }
  }

  // MARK: - The steps

  func queryFragments() -> QueryFragments {
    QueryFragments(
      k, memory.queries, at: shared, firstRow: firstRow, lane: lane, rowTiles: tiling.rowTilesPerWarp,
      areKept: tiling.keepsQueries, isNegated: s.isScaleNegative)
  }

  /// S = Q K^T, softcapped; some keys after the others, so that the largest scores of those that are done are found beside the
  /// products of the next. Returns these, for each of the lane's rows.
  ///
  /// - Parameter others: instructions to emit between the products, which leave room for them.
  func multiply(
    _ queries: QueryFragments, _ tile: TileReader, into scores: Accumulators, beside others: [() -> Void]
  ) -> [Register<F32>] {
    k.comment("S = Q K^T")
    var largest: [[Register<F32>]] = []
    var waiting = others[...]
    let steps = tiling.scorePieces.count * memory.keys.steps
    let share = (others.count + steps - 1) / steps
    for keys in tiling.scorePieces {
      let columnTiles = keys.lowerBound / 8..<keys.upperBound / 8
      scores.clear(columnTiles: columnTiles)
      for step in 0..<memory.keys.steps {
        let q = queries.atStep(step)
        for key in stride(from: keys.lowerBound, to: keys.upperBound, by: 16) {
          let fragment = tile.load(row: key, step: step)
          for rowTile in 0..<tiling.rowTilesPerWarp {
            k.multiplyAdd(s.inputs, a: q[rowTile], b: Array(fragment[0..<2]), into: scores[rowTile, key / 8])
            k.multiplyAdd(s.inputs, a: q[rowTile], b: Array(fragment[2..<4]), into: scores[rowTile, key / 8 + 1])
          }
        }
        for emit in waiting.prefix(share) { emit() }
        waiting = waiting.dropFirst(share)
      }
      if s.hasSoftcap {
        ScoreCap(inner: parameters.capScale, outer: parameters.scale).apply(to: scores, columnTiles: columnTiles, k)
      }
      largest.append(softmax.largest(of: scores, columnTiles: columnTiles))
    }
    return largest.dropFirst().reduce(largest[0]) { zip($0, $1).map { k.maximum($0, $1) } }
  }

  /// The mask, where there is one, and the maxima: `largest` knows no mask, and is found again under one.
  func update(_ scores: Accumulators, _ largest: [Register<F32>], of tile: Register<S32>) {
    let start = tile * tiling.tileKeys
    let isMasked = mask.isNeeded(tileStart: start, size: tiling.tileKeys)
    softmax.update(largest, of: scores, rescaling: output, isMasked: isMasked) {
      mask.apply(to: scores, tileStart: start)
      return softmax.largest(of: scores, columnTiles: 0..<scores.columnTiles)
    }
  }

  /// O += P V for 16 keys of a tile.
  func accumulate(_ weights: [[Register<U32>]], _ values: TileReader, chunk: Int) {
    for pair in 0..<memory.output.steps {
      let isHalf = 2 * pair + 1 == output.columnTiles
      let fragment = values.load(row: chunk * 16, step: pair, count: isHalf ? 2 : 4, isTransposed: true)
      for rowTile in 0..<tiling.rowTilesPerWarp {
        for column in 0..<(isHalf ? 1 : 2) {
          k.multiplyAdd(
            s.inputs, a: weights[rowTile], b: Array(fragment[2 * column..<2 * column + 2]),
            into: output[rowTile, 2 * pair + column])
        }
      }
    }
  }
}
