internal import PTX

extension ForwardBody {
  /// Warps that share rows: each computes the scores of its keys of a tile, and, once all know each other's maxima and
  /// weights, its columns of O.
  ///
  ///     for each tile:
  ///       wait for K; start the copies of V
  ///       S = Q K^T of the warp's keys; tell the largest of each row
  ///       barrier; start the copies of the next K
  ///       m = largest of all warps; P = exp(S - m), to shared memory
  ///       wait for V and P
  ///       O += P V of the warp's columns
  ///
  /// K and V have one place each; the copies of one are under way while the other is multiplied.
  func attend(
    together exchange: WarpExchangeBuffer, _ tiles: (first: Register<S32>, end: Register<S32>), firstHead: Register<U32>
  ) {
    func loader(_ tile: SharedTile, _ tensor: (base: Register<U64>, rowStride: Register<U64>)) -> TileLoader {
      let start = k.wide(tiles.first * tiling.tileKeys)
      return TileLoader(
        k, tile, source: tensor.base + start * tensor.rowStride, rowStride: tensor.rowStride, thread: thread,
        threads: tiling.threads)
    }
    let keyLoader = loader(memory.keys, tensor(parameters.keyBase, parameters.keyStrides, head: keyValueHead))
    let valueLoader = loader(memory.values, tensor(parameters.valueBase, parameters.valueStrides, head: keyValueHead))
    let keyPlace = shared + memory.stagesOffset
    let valuePlace = keyPlace + memory.valuesOffset
    let needed = tiles.end * tiling.tileKeys
    func copy(_ loader: TileLoader, to place: Register<U32>, from start: Register<S32>) {
      for copy in loader.copies(to: place, rowsLeft: parameters.keys - start, isWanted: start .< needed) { copy() }
      k.commitCopies()
    }

    k.comment("prologue: Q and the first K")
    rows.load(
      memory.queries, from: tensor(parameters.queryBase, parameters.queryStrides, head: firstHead).base,
      parameters.queryStrides, to: shared, thread: thread, threads: tiling.threads)
    copy(keyLoader, to: keyPlace, from: tiles.first * tiling.tileKeys)

    let scores = Accumulators(k, rowTiles: tiling.rowTilesPerWarp, columns: tiling.keysPerWarp, named: "s")
    let ownKeys = columnWarp * tiling.keysPerWarp
    let keys = TileReader(k, memory.keys, .chunksFirst, lane: lane, firstRow: ownKeys).at(keyPlace)
    // The warp's columns are whole panels, those of all warps before it further on.
    let ownColumns = valuePlace + columnWarp * (s.columnsPerWarp * tiling.tileKeys * 2)
    let values = TileReader(k, memory.values, .rowsFirst, lane: lane).at(ownColumns)
    let weights = TileReader(k, memory.weights, .rowsFirst, lane: lane, firstRow: firstRow)
      .at(shared + memory.weightsOffset)
    let queries = QueryFragments(
      k, memory.queries, at: shared, firstRow: firstRow, lane: lane, rowTiles: tiling.rowTilesPerWarp, areKept: false,
      isNegated: s.isScaleNegative)

    k.loop(from: tiles.first, to: tiles.end) { tile in
      let start = tile * tiling.tileKeys
      k.comment("a tile: K is there, and V has been read")
      k.waitForCopies(pending: 0)
      k.barrier()
      copy(valueLoader, to: valuePlace, from: start)
      let largest = multiply(queries, keys, into: scores, beside: []).map { k.variable($0) }
      k.if(mask.isNeeded(tileStart: start, size: tiling.tileKeys)) {
        mask.apply(to: scores, tileStart: start + ownKeys.reinterpreted(as: S32.self))
        for (old, new) in zip(largest, softmax.largest(of: scores, columnTiles: 0..<scores.columnTiles)) {
          k.set(old, to: new)
        }
      }
      exchange.put(softmax.overLanes(largest))
      k.comment("the maxima of all warps; K has been read")
      k.barrier()
      copy(keyLoader, to: keyPlace, from: start + tiling.tileKeys)
      softmax.follow(exchange.combine(largest.count) { k.maximum($0, $1) }, of: scores, rescaling: output)
      exchange.put(
        weights: (0..<tiling.keysPerWarp / 16).map { softmax.weights(scores, chunk: $0, as: s.inputs) })
      k.comment("V and the weights of all warps are there")
      k.waitForCopies(pending: 1)
      k.barrier()
      for chunk in 0..<tiling.tileKeys / 16 {
        let fragments = (0..<tiling.rowTilesPerWarp).map { weights.load(row: $0 * 16, step: chunk) }
        accumulate(fragments, values, chunk: chunk)
      }
    }
  }
}
