internal import PTX

/// Sums of tensor-core products in f16: tiles of 16 rows x 8 columns, two registers of each in a lane, with the
/// elements of `Accumulators`. They hold a little at a time, and are then added to f32 or become it.
struct HalfAccumulators {
  /// The largest number of f16. Sums beyond it are infinite; they count as this.
  private static let limit: Float = 65504

  private let k: KernelBuilder
  private let tiles: [[[Register<F16x2>]]]

  init(_ k: KernelBuilder, rowTiles: Int, columns: Int, named name: String) {
    self.k = k
    tiles = (0..<rowTiles).map { rowTile in
      (0..<columns / 8).map { column in
        (0..<2).map { k.variable(k.constant(bits: 0, F16x2.self)).named("\(name)\(rowTile)_\(column)_\($0)") }
      }
    }
  }

  subscript(rowTile: Int, columnTile: Int) -> [Register<F16x2>] { tiles[rowTile][columnTile] }

  /// Sets tiles of 8 columns to zero.
  func clear(columnTiles: Range<Int>) {
    for tile in tiles {
      for element in tile[columnTiles].joined() { k.set(element, to: k.constant(bits: 0, F16x2.self)) }
    }
  }

  /// Adds tiles of 8 columns to others, or puts them there.
  ///
  /// - Parameter first: the tile of `sums` that takes the first.
  func move(columnTiles: Range<Int>, to sums: Accumulators, first: Int, adding: Bool) {
    for (rowTile, tile) in tiles.enumerated() {
      for column in columnTiles {
        let targets = sums[rowTile, first + column - columnTiles.lowerBound]
        for (half, pair) in tile[column].enumerated() {
          let (low, high) = k.unpack(pair)
          for (target, value) in [(targets[2 * half], low), (targets[2 * half + 1], high)] {
            // A choice and no minimum, which would turn NaN into a number.
            let limit = k.constant(Self.limit)
            k.set(target, to: adding ? target + value : k.select(value .> limit, limit, value))
          }
        }
      }
    }
  }
}
