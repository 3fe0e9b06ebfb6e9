internal import PTX

/// A warp's products on the tensor cores, in steps of 16: of Q and K into scores, of weights and V into O.
struct WarpProducts {
  let k: KernelBuilder
  let inputs: Matrix.Inputs
  /// How K and V become operands, where they are bytes; nil where they are operands already. A tile's columns then are
  /// pairs of bytes.
  var bytes: E4M3Operands?

  /// S += Q K^T of 16 columns, for some keys.
  ///
  /// - Parameters:
  ///   - queries: the fragments of these columns, one for each 16-row tile.
  ///   - half: what the sums are made in, where that is f16; tile for tile as the scores.
  func addScores(
    _ queries: [[Register<U32>]], _ keys: TileReader, step: Int, keys range: Range<Int>, to scores: Accumulators,
    _ half: HalfAccumulators? = nil
  ) {
    for key in stride(from: range.lowerBound, to: range.upperBound, by: 16) {
      let fragment = keys.load(row: key, step: step)
      for (rowTile, a) in queries.enumerated() {
        for block in 0..<2 {
          let b = Array(fragment[2 * block..<2 * block + 2])
          if let half {
            k.multiplyAdd(inputs, a: a, b: b, into: half[rowTile, key / 8 + block])
          } else {
            k.multiplyAdd(inputs, a: a, b: b, into: scores[rowTile, key / 8 + block])
          }
        }
      }
    }
  }

  /// O += P V of 16 keys, for two tiles of 8 columns, or for the last one.
  ///
  /// - Parameters:
  ///   - row: the row of V of the first key.
  ///   - half: what the sums of these two tiles are made in, where that is f16.
  func addOutput(
    _ weights: [[Register<U32>]], _ values: TileReader, row: Int, pair: Int, to output: Accumulators,
    _ half: HalfAccumulators? = nil
  ) {
    let count = min(2, output.columnTiles - 2 * pair)
    let fragment = values.load(row: row, step: pair, count: 2 * count, isTransposed: true)
    for (rowTile, a) in weights.enumerated() {
      for column in 0..<count {
        let b = Array(fragment[2 * column..<2 * column + 2])
        if let half {
          k.multiplyAdd(inputs, a: a, b: b, into: half[rowTile, column])
        } else {
          k.multiplyAdd(inputs, a: a, b: b, into: output[rowTile, 2 * pair + column])
        }
      }
    }
  }

  // MARK: - K and V of bytes

  /// S += Q K^T of 32 columns, or of the last 16, for some keys: a lane's word of K has four neighbouring columns, and
  /// so have its two registers of Q.
  ///
  /// - Parameters:
  ///   - queries: the fragments of each 16 of the columns.
  func addScores(
    _ queries: [[[Register<U32>]]], bytes operands: E4M3Operands, _ keys: TileReader, step: Int, keys range: Range<Int>,
    to scores: Accumulators
  ) {
    for key in stride(from: range.lowerBound, to: range.upperBound, by: 16) {
      let fragment = keys.load(row: key, step: step)
      for block in 0..<2 {
        for (half, ofStep) in queries.enumerated() {
          let (low, high) = operands.unpack(k, fragment[2 * block + half])
          for (rowTile, a) in ofStep.enumerated() {
            k.multiplyAdd(inputs, a: a, b: [low, high], into: scores[rowTile, key / 8 + block])
          }
        }
      }
    }
  }

  /// O += P V of 16 keys, for 32 columns, or for the last 16. Of each 16 columns, one tile of O gets the even ones, the
  /// next the odd ones.
  func addOutput(
    _ weights: [[Register<U32>]], bytes operands: E4M3Operands, _ values: TileReader, row: Int, pair: Int,
    to output: Accumulators
  ) {
    let count = min(2, output.columnTiles / 2 - 2 * pair)
    let fragment = values.load(row: row, step: pair, count: 2 * count, isTransposed: true)
    for sixteen in 0..<count {
      // Of two keys, first both bytes of the even column.
      let words = fragment[2 * sixteen..<2 * sixteen + 2].map {
        operands.unpack(k, k.permute($0, $0, selector: 0x3120))
      }
      for (rowTile, a) in weights.enumerated() {
        let columnTile = 2 * (2 * pair + sixteen)
        k.multiplyAdd(inputs, a: a, b: words.map(\.low), into: output[rowTile, columnTile])
        k.multiplyAdd(inputs, a: a, b: words.map(\.high), into: output[rowTile, columnTile + 1])
      }
    }
  }

  /// Where a lane's elements of O belong: runs of `width` neighbouring columns, beginning at `width` times the lane's
  /// place among the four of a row.
  struct LaneColumns {
    let width: Int
    /// For row `half * 8 + g` of a 16-row tile, the column of each run in lane 0, and the lane's elements of it.
    let values: (_ rowTile: Int, _ half: Int) -> [(column: Int, values: [Register<F32>])]
  }

  func columnsOfLane(_ output: Accumulators) -> LaneColumns {
    if bytes == nil {
      return LaneColumns(width: 2) { rowTile, half in
        (0..<output.columnTiles).map { ($0 * 8, Array(output[rowTile, $0][2 * half..<2 * half + 2])) }
      }
    }
    return LaneColumns(width: 4) { rowTile, half in
      (0..<output.columnTiles / 2).map { sixteen in
        let (even, odd) = (output[rowTile, 2 * sixteen], output[rowTile, 2 * sixteen + 1])
        return (sixteen * 16, [even[2 * half], odd[2 * half], even[2 * half + 1], odd[2 * half + 1]])
      }
    }
  }
}
