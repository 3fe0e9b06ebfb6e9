internal import PTX

/// A warp's products on the tensor cores, in steps of 16: of Q and K into scores, of weights and V into O.
struct WarpProducts {
  let k: KernelBuilder
  let inputs: Matrix.Inputs

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
}
