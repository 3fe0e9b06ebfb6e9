internal import PTX

/// The results of tensor-core products of a warp: tiles of 16 rows x 8 columns, four f32 of each in a lane. Lane l
/// holds columns 2t and 2t + 1 (t = l % 4) of row g = l / 4 (elements 0, 1) and of row g + 8 (elements 2, 3).
struct Accumulators {
  private let k: KernelBuilder
  private let tiles: [[[Register<F32>]]]

  init(_ k: KernelBuilder, rowTiles: Int, columns: Int, named name: String) {
    self.k = k
    tiles = (0..<rowTiles).map { rowTile in
      (0..<columns / 8).map { column in
        (0..<4).map { k.variable(k.constant(0)).named("\(name)\(rowTile)_\(column)_\($0)") }
      }
    }
  }

  var rowTiles: Int { tiles.count }
  /// Tiles of 8 columns.
  var columnTiles: Int { tiles[0].count }

  /// All, as `wgmma` takes those of the 16 rows of a warp.
  var registers: [Register<F32>] { tiles.joined().flatMap { $0 } }

  subscript(rowTile: Int, columnTile: Int) -> [Register<F32>] { tiles[rowTile][columnTile] }

  /// The lane's elements of its row i: row `i % 2 * 8 + g` of 16-row tile `i / 2`.
  func ofRow(_ i: Int) -> [Register<F32>] { ofRow(i, columnTiles: 0..<columnTiles) }

  /// The same, of some tiles of 8 columns.
  func ofRow(_ i: Int, columnTiles: Range<Int>) -> [Register<F32>] {
    tiles[i / 2][columnTiles].flatMap { $0[i % 2 * 2..<i % 2 * 2 + 2] }
  }

  /// The lane's four elements of 16 columns, of row `half * 8 + g` of a 16-row tile.
  func ofHalf(_ rowTile: Int, _ chunk: Int, _ half: Int) -> [Register<F32>] {
    tiles[rowTile][2 * chunk..<2 * chunk + 2].flatMap { $0[2 * half..<2 * half + 2] }
  }

  /// Sets tiles of 8 columns to zero.
  func clear(columnTiles: Range<Int>) {
    for tile in tiles { for element in tile[columnTiles].joined() { k.set(element, to: k.constant(0)) } }
  }

  /// Each place of an element: tile and number in it, its lane row i, and its column in the tile, to which a lane adds 2t.
  func forEachPlace(
    _ body: (_ rowTile: Int, _ columnTile: Int, _ element: Int, _ row: Int, _ column: Int) -> Void
  ) {
    for rowTile in tiles.indices {
      for column in tiles[rowTile].indices {
        for i in 0..<4 { body(rowTile, column, i, 2 * rowTile + i / 2, column * 8 + i % 2) }
      }
    }
  }

  /// Multiplies all elements.
  func scale(by factor: Register<F32>) {
    for element in registers { k.set(element, to: element * factor) }
  }

  /// 16 columns as the A operand of a product, rounded to its type, for each 16-row tile.
  func operands(chunk: Int, as inputs: Matrix.Inputs) -> [[Register<U32>]] {
    tiles.map { tile in
      [(0, 0), (0, 2), (1, 0), (1, 2)].map { column, element in
        inputs.pack(k, tile[2 * chunk + column][element], tile[2 * chunk + column][element + 1])
      }
    }
  }
}
