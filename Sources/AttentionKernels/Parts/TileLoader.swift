internal import PTX

/// Copies tiles of K or V to shared memory, tile after tile, or slice after slice of these: neighbouring threads take
/// the neighbouring 16-byte chunks of a row. Rows beyond the end become zeros and are not read.
struct TileLoader {
  /// The threads' shares of the panels of one width.
  private struct Lane {
    let width: Int
    /// The thread's first row, and its chunk of that row.
    let line, chunk: Register<U32>
    /// Where the next tile's row of this thread is; advances.
    let source: Register<U64>
    let destination: Register<U32>
    /// From the thread's first row of a tile to the others, one for each pass over the tile.
    let steps: [Register<U64>]
  }

  private let k: KernelBuilder
  private let tile: SharedTile
  private let threads: Int
  /// From a tile to the next.
  private let tileStride: Register<U64>
  /// From a row to the next.
  private let rowStride: Register<U64>
  private var lanes: [Lane] = []

  /// - Parameters:
  ///   - source: row 0 of the first tile.
  ///   - rowStride: bytes from a row to the next.
  init(
    _ k: KernelBuilder, _ tile: SharedTile, source: Register<U64>, rowStride: Register<U64>, thread: Register<U32>,
    threads: Int
  ) {
    (self.k, self.tile, self.threads, self.rowStride) = (k, tile, threads, rowStride)
    tileStride = rowStride * tile.rows
    for width in tile.widths {
      let (line, chunk) = (thread / width, thread % width)
      lanes.append(
        Lane(
          width: width, line: line, chunk: chunk,
          source: k.variable(source + k.wide(line) * rowStride + k.wide(chunk * 16)).named("source"),
          destination: tile.place(row: line, chunk: chunk, width: width).named("destination"),
          steps: (0..<(tile.rows * width + threads - 1) / threads).map { rowStride * ($0 * (threads / width)) }))
    }
  }

  /// The copies of the next tile, each a few instructions without a branch, to be emitted between others. They are
  /// started only where `isWanted`, and of the tile's rows only `rowsLeft` exist.
  ///
  /// - Parameters:
  ///   - slice: the part of the columns that is copied; the tile is done with its last. nil for all of it.
  ///   - jump: whether so many rows more lie between this tile and the next; nil where there are never any.
  func copies(
    of slice: SharedTile.Slice? = nil, to slot: Register<U32>, rowsLeft: Register<S32>, isWanted: Predicate,
    jump: (if: Predicate, rows: Register<S32>)? = nil
  ) -> [() -> Void] {
    let slice = slice ?? tile.slices(1)[0]
    let isLast = slice.panels.upperBound == tile.panels.count
    return lanes.flatMap { lane -> [() -> Void] in
      let rowsPerPass = threads / lane.width
      let panels = tile.panels[slice.panels].filter { $0.width == lane.width }
      if panels.isEmpty && !isLast { return [] }
      let destination = slot + lane.destination
      let passes = lane.steps.enumerated().map { pass, step in
        {
          // Each from the first, so that no address waits for another.
          let source = pass == 0 ? lane.source : lane.source + step
          let row = lane.line + pass * rowsPerPass
          let exists = row.reinterpreted(as: S32.self) .< rowsLeft
          let isOwn = (pass + 1) * rowsPerPass > tile.rows ? isWanted & (row .< tile.rows) : isWanted
          for panel in panels {
            let bytes = k.select(exists & isReal(panel, lane.chunk), 16, 0, U32.self)
            k.when(isOwn) {
              k.copyAsync(
                to: destination, offset: panel.offset - slice.offset + pass * rowsPerPass * panel.rowBytes,
                from: source,
                offset: panel.firstChunk * 16, sourceBytes: bytes)
            }
          }
        }
      }
      func advance() {
        guard let jump else { return k.set(lane.source, to: lane.source + tileStride) }
        let rows = k.select(jump.if, jump.rows, k.constant(0, S32.self)).reinterpreted(as: U32.self)
        k.set(lane.source, to: lane.source + tileStride + k.wide(rows) * rowStride)
      }
      return (panels.isEmpty ? [] : passes) + (isLast ? [advance] : [])
    }
  }

  /// Whether a chunk has elements; the one beside an odd last one holds zeros. nil where all have.
  private func isReal(_ panel: SharedTile.Panel, _ chunk: Register<U32>) -> Predicate? {
    let count = max(0, tile.columns / 8 - panel.firstChunk)
    return count < panel.width ? chunk .< count : nil
  }
}

/// Both, where there is a second.
private func & (a: Predicate, b: Predicate?) -> Predicate { b.map { a & $0 } ?? a }
