internal import PTX

/// What a block's keys add to dQ of the rows that pass: dS K, divided over all warps of the block, because each row sums over all
/// of its keys. It goes from registers to the sums in memory.
struct PassingQueries {
  private let k: KernelBuilder
  private let s: BackwardSpecialization
  private let part: Accumulators
  private let sums: QuerySums
  private let place: Register<U64>
  private let isWanted: Predicate
  /// dS^T, whose rows are keys: transposed, rows of queries. K, whose rows are keys, too.
  private let gradients, keys: TileReader
  private let products: WarpProducts

  /// - Parameters:
  ///   - sums: the address of the sums of the sequence's first row.
  ///   - isWanted: whether anybody asked for dQ.
  init(
    _ k: KernelBuilder, _ s: BackwardSpecialization, _ memory: BackwardMemory, _ warp: WarpPlace,
    sums first: Register<U64>, if isWanted: Predicate
  ) {
    (self.k, self.s, self.isWanted) = (k, s, isWanted)
    let shares = s.queryShares!
    let (rows, columns) = (s.cut.passingRows / shares.ofRows, s.dimension / shares.ofColumns)
    let number = warp.thread / 32
    let (ofRows, ofColumns) = (number % shares.ofRows, number / shares.ofRows)
    part = Accumulators(k, rowTiles: rows / 16, columns: columns, named: "dq")
    sums = QuerySums(k: k, dimension: s.dimension, areVectors: s.addsVectors, lane: warp.lane)
    let ownRows = first + k.wide(ofRows * (rows * QuerySums.rowByteCount(s.dimension)))
    place = shares.ofColumns == 1 ? ownRows : ownRows + k.wide(ofColumns * (columns / 16 * QuerySums.byteCountOfTile))
    gradients = TileReader(
      k, memory.operands, .chunksFirst, lane: warp.lane, firstChunk: ofRows * (rows / 8)
    ).at(warp.shared + memory.gradientsOffset)
    let all = memory.kept.scores
    keys =
      (shares.ofColumns == 1
      ? TileReader(k, all, .rowsFirst, lane: warp.lane)
      : TileReader(k, all, .rowsFirst, lane: warp.lane, columns: (ofColumns, columns / 16))).at(warp.shared)
    products = WarpProducts(k: k, inputs: s.inputs)
  }

  /// Adds the part of a tile of rows.
  func add(_ tile: Register<S32>) {
    k.if(isWanted) {
      part.clear(columnTiles: 0..<part.columnTiles)
      for key in stride(from: 0, to: s.cut.rows, by: 16) {
        let operands = (0..<part.rowTiles).map { gradients.load(row: key, step: $0, isTransposed: true) }
        for pair in 0..<(part.columnTiles + 1) / 2 {
          products.addOutput(operands, keys, row: key, pair: pair, to: part)
        }
      }
      let start = (tile * s.cut.passingRows).reinterpreted(as: U32.self)
      sums.add(part, to: place + k.multiplyWide(start, QuerySums.rowByteCount(s.dimension)))
    }
  }
}
