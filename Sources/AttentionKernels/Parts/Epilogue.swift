internal import PTX

/// Writes a warp's rows of O and of the log-sum-exp, O in 16 bytes a lane ("collective store").
struct Epilogue {
  let k: KernelBuilder
  let inputs: Matrix.Inputs
  let tile: SharedTile
  /// Where the tile is in shared memory; nil where O only goes by shuffles.
  var place: Register<U32>?
  /// The warp's first row in the tile (of all its columns).
  let firstRow: Register<U32>
  let lane: Register<U32>
  let rows: PackedQueries
  /// The chunks of a row that exist, where the tile is a part of O; nil where it is all of it.
  var chunkCount: Register<S32>?

  /// Stores the output; `base` is the address of the batch's and group's first row.
  func store(
    _ output: Accumulators, to base: Register<U64>, _ strides: StrideParameters, _ store: ForwardTiling.Store
  ) {
    switch store {
    case .throughSharedMemory: storeThroughSharedMemory(output, to: base, strides)
    case .byShuffles: storeByShuffles(output, to: base, strides)
    }
  }

  /// Two columns of the lane's row `half * 8 + g` in a tile of 8 columns, in the type of O.
  private func pair(_ output: Accumulators, _ rowTile: Int, _ columnTile: Int, _ half: Int) -> Register<U32> {
    let elements = output[rowTile, columnTile]
    return inputs.pack(k, elements[2 * half], elements[2 * half + 1])
  }

  /// Emits `body` for a chunk, or where the lane's chunk exists.
  private func ifReal(_ chunk: Register<U32>, firstChunk: Int, width: Int, _ body: () -> Void) {
    let isInTile =
      (firstChunk + width) * 8 > tile.columns ? chunk .< max(0, tile.columns / 8 - firstChunk) : nil
    let isInRow = chunkCount.map { (chunk + firstChunk).reinterpreted(as: S32.self) .< $0 }
    switch (isInTile, isInRow) {
    case (let inTile?, let inRow?): k.if(inTile & inRow, body)
    case (let condition?, nil), (nil, let condition?): k.if(condition, body)
    case (nil, nil): body()
    }
  }

  // MARK: - Through shared memory

  private func storeThroughSharedMemory(
    _ output: Accumulators, to base: Register<U64>, _ strides: StrideParameters
  ) {
    k.comment("epilogue: O through shared memory, 16 bytes a lane")
    guard let place else { preconditionFailure("O goes through shared memory of which nobody said where.") }
    stage(output, at: place)
    k.warpBarrier()
    let warpRows = output.rowTiles * 16
    for width in tile.widths {
      let (line, chunk) = (lane / width, lane % width)
      let source = place + tile.place(row: firstRow + line, chunk: chunk, width: width, patternRow: line)
      let rowsPerPass = 32 / width
      for pass in 0..<warpRows / rowsPerPass {
        let row = rows.firstRow + firstRow + line + pass * rowsPerPass
        k.if(row .< rows.count) {
          let destination = base + rows.distance(ofRow: row, strides) + k.wide(chunk * 16)
          // A pass may end within the pattern's period: four rows of a wide panel are half of it.
          let from = tile.turned(source, asRow: pass * rowsPerPass, width: width)
          for panel in tile.panels where panel.width == width {
            ifReal(chunk, firstChunk: panel.firstChunk, width: width) {
              let values = k.load(
                U32.self, count: 4, shared: from, offset: panel.offset + pass * rowsPerPass * panel.rowBytes)
              k.store(values, global: destination, offset: panel.firstChunk * 16)
            }
          }
        }
      }
    }
  }

  private func stage(_ output: Accumulators, at place: Register<U32>) {
    let (group, pairOfLane) = (lane / 4, lane % 4)
    for width in tile.widths {
      let base =
        place
        + (tile.place(row: firstRow + group, chunk: k.constant(0, U32.self), width: width, patternRow: group)
          + pairOfLane * 4)
      for panel in tile.panels where panel.width == width {
        for chunk in panel.firstChunk..<min(panel.firstChunk + width, output.columnTiles) {
          let (address, offset) = tile.beside(base, chunks: chunk - panel.firstChunk)
          for rowTile in 0..<output.rowTiles {
            for half in 0..<2 {
              k.store(
                pair(output, rowTile, chunk, half), shared: address,
                offset: offset + panel.offset + (rowTile * 16 + half * 8) * panel.rowBytes)
            }
          }
        }
      }
    }
  }

  // MARK: - By shuffles

  /// The four lanes of a row hold two columns each of four chunks; they exchange them so that lane t gets all of chunk
  /// t, and the four store 64 bytes side by side.
  private func storeByShuffles(
    _ output: Accumulators, to base: Register<U64>, _ strides: StrideParameters
  ) {
    k.comment("epilogue: O by shuffles, 16 bytes a lane")
    let (group, chunk) = (lane / 4, lane % 4)
    let (isOdd, isUpper) = ((lane % 2) .== 1, (chunk / 2) .== 1)
    /// Afterwards a lane whose bit is set has in word i what its neighbour had in word j, and the neighbour in its word
    /// j what that lane had in word i.
    func exchange(_ words: inout [Register<U32>], _ i: Int, _ j: Int, _ distance: Int, _ bit: Predicate) {
      let received = k.shuffle(k.select(bit, words[i], words[j]), xor: distance)
      (words[i], words[j]) = (k.select(bit, received, words[i]), k.select(bit, words[j], received))
    }
    for rowTile in 0..<output.rowTiles {
      for half in 0..<2 {
        let row = rows.firstRow + firstRow + group + (rowTile * 16 + half * 8)
        let destination = base + rows.distance(ofRow: row, strides) + k.wide(chunk * 16)
        for first in stride(from: 0, to: output.columnTiles, by: 4) {
          var words = (first..<first + 4).map {
            $0 < output.columnTiles ? pair(output, rowTile, $0, half) : k.constant(0, U32.self)
          }
          // A transposition of 4 x 4 words over 4 lanes: first of pairs, then of pairs of pairs.
          for i in [0, 2] { exchange(&words, i, i + 1, 1, isOdd) }
          for i in [0, 1] { exchange(&words, i, i + 2, 2, isUpper) }
          k.if(row .< rows.count) {
            ifReal(chunk, firstChunk: first, width: 4) {
              k.store(words, global: destination, offset: first * 16)
            }
          }
        }
      }
    }
  }

  // MARK: - Log-sum-exp

  /// Stores the log-sum-exps of the lane's rows, one lane of four for each row, where somebody wants them.
  ///
  /// - Parameters:
  ///   - base: the address of the first query's of the group's first head.
  ///   - headStride: bytes from a head to the next.
  func store(
    logSumExps values: [Register<F32>], ownRows: [Register<U32>], to base: Register<U64>, headStride: Register<U64>,
    if isWanted: Predicate, groupSize: Int
  ) {
    k.if(isWanted & ((lane % 4) .== 0)) {
      for (value, row) in zip(values, ownRows) {
        k.if(row .< rows.count) {
          let query = rows.query(ofRow: row)
          let ofHead = groupSize == 1 ? base : base + k.wide(row - query * groupSize) * headStride
          k.store(value, global: ofHead + k.wide(query) * 4)
        }
      }
    }
  }
}
