internal import PTX

/// A tile of 16-bit rows in shared memory: panels side by side, each with rows of 128 bytes (the last ones of 64 or 32
/// where the row is no multiple of 128).
///
/// `ldmatrix` reads one 16-byte chunk of eight rows at a time; they must lie in different banks. Either the chunks of a
/// row are swizzled: chunk c of row r of a panel of w chunks is at `c ^ (r / (8 / w) % w)`. Or each row has a chunk
/// more that holds nothing, so that the next row begins four banks further on.
package struct SharedTile: Hashable, Sendable {
  /// How rows avoid bank conflicts.
  package enum Layout: String, Hashable, Sendable, CaseIterable {
    /// By an exclusive or of chunk and row: no byte is lost.
    case swizzled
    /// By an empty chunk behind each row.
    case padded
  }

  /// A slice of the columns.
  struct Panel: Hashable, Sendable {
    /// Chunks of a row: 8, 4 or 2.
    let width: Int
    /// The first of them, counted over all panels.
    let firstChunk: Int
    /// Bytes from the tile to the panel.
    let offset: Int
    /// Bytes from one row to the next.
    let rowBytes: Int
  }

  /// Neighbouring panels, which lie together.
  struct Slice: Hashable, Sendable {
    let panels: Range<Int>
    /// Its steps of 16 columns, counted over all panels.
    let steps: Range<Int>
    /// Bytes from the tile to the slice.
    let offset: Int
    let byteCount: Int
  }

  /// Rows of the tile.
  package let rows: Int
  /// Elements of a row that exist.
  package let columns: Int
  /// How rows avoid bank conflicts.
  package let layout: Layout
  /// 16-byte chunks of a row, those of zeros included.
  let chunks: Int
  let panels: [Panel]

  /// - Parameters:
  ///   - rows: a multiple of 8.
  ///   - columns: a multiple of 8; an odd chunk gets a neighbour that holds zeros.
  ///   - paddedColumns: a multiple of 16, where more columns of zeros are wanted.
  package init(rows: Int, columns: Int, paddedColumns: Int = 0, layout: Layout = .swizzled) {
    self.rows = rows
    self.columns = columns
    self.layout = layout
    var panels: [Panel] = []
    let chunks = max((columns + 15) / 16 * 2, paddedColumns / 8)
    self.chunks = chunks
    var (first, offset) = (0, 0)
    while first < chunks {
      let width = [8, 4, 2].first { $0 <= chunks - first }!
      let rowBytes = width * 16 + (layout == .padded ? 16 : 0)
      panels.append(Panel(width: width, firstChunk: first, offset: offset, rowBytes: rowBytes))
      first += width
      offset += rows * rowBytes
    }
    self.panels = panels
    byteCount = offset
  }

  /// The size.
  package let byteCount: Int
  /// Pairs of chunks: steps of 16 columns.
  var steps: Int { chunks / 2 }
  /// The widths that occur, widest first.
  var widths: [Int] { [8, 4, 2].filter { width in panels.contains { $0.width == width } } }

  /// The panel of a chunk.
  func panel(ofChunk chunk: Int) -> Panel { panels.last { $0.firstChunk <= chunk }! }

  /// The tile in at most `count` slices of whole panels.
  func slices(_ count: Int) -> [Slice] {
    let perSlice = (panels.count + count - 1) / count
    return stride(from: 0, to: panels.count, by: perSlice).map { first in
      let end = min(first + perSlice, panels.count)
      let endOffset = end == panels.count ? byteCount : panels[end].offset
      let endChunk = end == panels.count ? chunks : panels[end].firstChunk
      return Slice(
        panels: first..<end, steps: panels[first].firstChunk / 2..<endChunk / 2, offset: panels[first].offset,
        byteCount: endOffset - panels[first].offset)
    }
  }

  /// Whether whole rows are copied without bank conflicts, and not only read with `ldmatrix`: padded rows of less than
  /// 128 bytes are not, because eight lanes then have more than one of them.
  package var isConflictFree: Bool { layout == .swizzled || widths == [8] }

  // MARK: - Addresses

  /// Bytes from a row to the next, in panels of `width` chunks.
  func rowBytes(width: Int) -> Int { width * 16 + (layout == .padded ? 16 : 0) }

  /// Bytes from the panel's start to a chunk of a row.
  ///
  /// - Parameter patternRow: a row with the same pattern that is known earlier; nil for the row itself.
  func place(
    row: Register<U32>, chunk: Register<U32>, width: Int, patternRow: Register<U32>? = nil
  ) -> Register<U32> {
    let chunk = layout == .swizzled ? chunk ^ pattern(ofRow: patternRow ?? row, width: width) : chunk
    return row * rowBytes(width: width) + chunk * 16
  }

  /// What an address of a chunk is changed by to reach the chunk that is `chunks` away in the pattern of the same row
  /// (a bit of the chunk's number, or several, that the first one has not set).
  func beside(_ address: Register<U32>, chunks: Int) -> (address: Register<U32>, offset: Int) {
    if chunks == 0 { return (address, 0) }
    // Panels are multiples of 128, so that this flips bits of the chunk alone.
    return layout == .swizzled ? (address ^ (chunks * 16), 0) : (address, chunks * 16)
  }

  /// What an address is changed by to reach a row whose pattern differs from that of row 0 as row `row`'s does; the
  /// distance of the rows is left to the offset.
  func turned(_ address: Register<U32>, asRow row: Int, width: Int) -> Register<U32> {
    let pattern = row / (8 / width) % width
    return layout == .padded || pattern == 0 ? address : address ^ (pattern * 16)
  }

  /// What the chunks of a row are swizzled by, in a panel of `width` chunks: chunk c is at `c ^ pattern`.
  private func pattern(ofRow row: Register<U32>, width: Int) -> Register<U32> { (row / (8 / width)) % width }
}
