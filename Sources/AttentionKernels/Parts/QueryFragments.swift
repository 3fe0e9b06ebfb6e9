internal import PTX

/// A warp's rows of Q as A operands: kept in registers, or read again each time.
struct QueryFragments {
  private let k: KernelBuilder
  private let reader: TileReader
  private let rowTiles: Int
  private let isNegated: Bool
  /// The lane, where fragments are reordered for K of bytes; nil otherwise.
  private let reorderingLane: Register<U32>?
  private let kept: [[[Register<U32>]]]?

  /// Q must have arrived at `place`.
  ///
  /// - Parameters:
  ///   - isNegated: whether the scores change their sign.
  ///   - matchesBytes: whether K is read as pairs of bytes: a lane's two registers for a row then have four
  ///     neighbouring columns.
  init(
    _ k: KernelBuilder, _ tile: SharedTile, at place: Register<U32>, firstRow: Register<U32>, lane: Register<U32>,
    rowTiles: Int, areKept: Bool, isNegated: Bool, matchesBytes: Bool = false
  ) {
    (self.k, self.rowTiles, self.isNegated) = (k, rowTiles, isNegated)
    let reorderingLane = matchesBytes ? lane : nil
    self.reorderingLane = reorderingLane
    let reader = TileReader(k, tile, .rowsFirst, lane: lane, firstRow: firstRow).at(place)
    self.reader = reader
    kept =
      areKept
      ? (0..<tile.steps).map {
        Self.read(k, reader, step: $0, rowTiles: rowTiles, isNegated: isNegated, reorderingLane)
      } : nil
  }

  /// The fragments of 16 columns, one for each 16-row tile.
  func atStep(_ step: Int) -> [[Register<U32>]] {
    kept?[step] ?? Self.read(k, reader, step: step, rowTiles: rowTiles, isNegated: isNegated, reorderingLane)
  }

  private static func read(
    _ k: KernelBuilder, _ reader: TileReader, step: Int, rowTiles: Int, isNegated: Bool,
    _ reorderingLane: Register<U32>?
  ) -> [[Register<U32>]] {
    (0..<rowTiles).map { rowTile in
      var fragment = reader.load(row: rowTile * 16, step: step)
      if let reorderingLane { fragment = reordered(k, fragment, lane: reorderingLane) }
      return isNegated ? fragment.map { $0 ^ 0x8000_8000 } : fragment
    }
  }

  /// Of the 8 pairs of columns of a row, lane t of four has pairs t and t + 4; it gets pairs 2t and 2t + 1.
  private static func reordered(
    _ k: KernelBuilder, _ fragment: [Register<U32>], lane: Register<U32>
  ) -> [Register<U32>] {
    let place = lane % 4
    let isUpper = place .>= 2
    let even = (lane - place) + (place * 2) % 4
    var result = fragment
    for row in 0..<2 {
      for (register, source) in [(row, even), (row + 2, even + 1)] {
        let (lower, upper) = (k.shuffle(fragment[row], lane: source), k.shuffle(fragment[row + 2], lane: source))
        result[register] = k.select(isUpper, upper, lower)
      }
    }
    return result
  }
}
