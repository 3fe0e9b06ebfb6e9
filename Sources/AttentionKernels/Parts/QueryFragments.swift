internal import PTX

/// A warp's rows of Q as A operands: kept in registers, or read again each time.
struct QueryFragments {
  private let k: KernelBuilder
  private let reader: TileReader
  private let rowTiles: Int
  private let isNegated: Bool
  private let kept: [[[Register<U32>]]]?

  /// Q must have arrived at `place`.
  ///
  /// - Parameter isNegated: whether the scores change their sign.
  init(
    _ k: KernelBuilder, _ tile: SharedTile, at place: Register<U32>, firstRow: Register<U32>, lane: Register<U32>,
    rowTiles: Int, areKept: Bool, isNegated: Bool
  ) {
    (self.k, self.rowTiles, self.isNegated) = (k, rowTiles, isNegated)
    let reader = TileReader(k, tile, .rowsFirst, lane: lane, firstRow: firstRow).at(place)
    self.reader = reader
    kept =
      areKept
      ? (0..<tile.steps).map { Self.read(k, reader, step: $0, rowTiles: rowTiles, isNegated: isNegated) } : nil
  }

  /// The fragments of 16 columns, one for each 16-row tile.
  func atStep(_ step: Int) -> [[Register<U32>]] {
    kept?[step] ?? Self.read(k, reader, step: step, rowTiles: rowTiles, isNegated: isNegated)
  }

  private static func read(
    _ k: KernelBuilder, _ reader: TileReader, step: Int, rowTiles: Int, isNegated: Bool
  ) -> [[Register<U32>]] {
    (0..<rowTiles).map { rowTile in
      let fragment = reader.load(row: rowTile * 16, step: step)
      return isNegated ? fragment.map { $0 ^ 0x8000_8000 } : fragment
    }
  }
}
