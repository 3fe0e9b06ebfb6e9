internal import PTX

/// A tile of 16-bit rows in shared memory: panels side by side, each with rows of 128 bytes (the last ones of 64 or 32
/// where the row is no multiple of 128), whose 16-byte chunks are swizzled.
///
/// Eight rows of one chunk, which `ldmatrix` reads together, lie in different banks: chunk c of row r of a panel of w
/// chunks is at `c ^ (r / (8 / w) % w)`.
public struct SharedTile: Hashable, Sendable {
  /// A slice of the columns.
  struct Panel: Hashable, Sendable {
    /// Chunks of a row: 8, 4 or 2.
    let width: Int
    /// The first of them, counted over all panels.
    let firstChunk: Int
    /// Bytes from the tile to the panel.
    let offset: Int
    /// Bytes from one row to the next.
    var rowBytes: Int { width * 16 }
  }

  /// Rows of the tile.
  public let rows: Int
  /// Elements of a row that exist.
  public let columns: Int
  /// 16-byte chunks of a row, those of zeros included.
  let chunks: Int
  let panels: [Panel]

  /// - Parameters:
  ///   - rows: a multiple of 8.
  ///   - columns: a multiple of 8; an odd chunk gets a neighbour that holds zeros.
  ///   - paddedColumns: a multiple of 16, where more columns of zeros are wanted.
  public init(rows: Int, columns: Int, paddedColumns: Int = 0) {
    self.rows = rows
    self.columns = columns
    var panels: [Panel] = []
    let chunks = max((columns + 15) / 16 * 2, paddedColumns / 8)
    self.chunks = chunks
    var first = 0
    while first < chunks {
      let width = [8, 4, 2].first { $0 <= chunks - first }!
      panels.append(Panel(width: width, firstChunk: first, offset: first * rows * 16))
      first += width
    }
    self.panels = panels
  }

  /// Pairs of chunks: steps of 16 columns.
  var steps: Int { chunks / 2 }
  /// The size.
  public var byteCount: Int { rows * chunks * 16 }
  /// The widths that occur, widest first.
  var widths: [Int] { [8, 4, 2].filter { width in panels.contains { $0.width == width } } }

  /// What the chunks of a row are swizzled by, in a panel of `width` chunks: chunk c is at `c ^ pattern`.
  static func pattern(ofRow row: Int, width: Int) -> Int { row / (8 / width) % width }

  /// The same of a row that a thread computes.
  static func pattern(ofRow row: Register<U32>, width: Int) -> Register<U32> { (row / (8 / width)) % width }

  /// The panel of a chunk.
  func panel(ofChunk chunk: Int) -> Panel { panels.last { $0.firstChunk <= chunk }! }
}
