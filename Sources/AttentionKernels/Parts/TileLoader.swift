internal import PTX

/// Copies tiles of K or V to shared memory, tile after tile: neighbouring threads take the neighbouring 16-byte chunks of
/// a row. Rows beyond the end become zeros and are not read.
struct TileLoader {
  /// The threads' shares of the panels of one width.
  private struct Lane {
    let width: Int
    /// The thread's first row, and its chunk of that row.
    let line, chunk: Register<U32>
    /// Where the next tile's row of this thread is; advances.
    let source: Register<U64>
    let destination: Register<U32>
    /// From a row to the thread's next row of the tile.
    let step: Register<U64>
  }

  private let k: KernelBuilder
  private let tile: SharedTile
  private let threads: Int
  /// From a tile to the next.
  private let tileStride: Register<U64>
  private var lanes: [Lane] = []

  /// - Parameters:
  ///   - source: row 0 of the first tile.
  ///   - rowStride: bytes from a row to the next.
  init(
    _ k: KernelBuilder, _ tile: SharedTile, source: Register<U64>, rowStride: Register<U64>, thread: Register<U32>,
    threads: Int
  ) {
    (self.k, self.tile, self.threads) = (k, tile, threads)
    tileStride = rowStride * tile.rows
    for width in tile.widths {
      let (line, chunk) = (thread / width, thread % width)
      let swizzle = (line / (8 / width)) % width
      lanes.append(
        Lane(
          width: width, line: line, chunk: chunk,
          source: k.variable(source + k.wide(line) * rowStride + k.wide(chunk * 16)).named("source"),
          destination: (line * (width * 16) + ((chunk ^ swizzle) * 16)).named("destination"),
          step: rowStride * (threads / width)))
    }
  }

  /// Starts the copies of the next tile; `rowsLeft` counts its rows that exist, nil where all do.
  func issue(to slot: Register<U32>, rowsLeft: Register<S32>? = nil) {
    for lane in lanes {
      let rowsPerPass = threads / lane.width
      let panels = tile.panels.filter { $0.width == lane.width }
      let destination = slot + lane.destination
      var source = lane.source
      for pass in 0..<(tile.rows + rowsPerPass - 1) / rowsPerPass {
        if pass > 0 { source = source + lane.step }
        let row = lane.line + pass * rowsPerPass
        let isPartial = (pass + 1) * rowsPerPass > tile.rows
        let exists = rowsLeft.map { row.reinterpreted(as: S32.self) .< $0 }
        for panel in panels {
          let bytes = sourceBytes(panel, lane.chunk, exists)
          func copy() {
            k.copyAsync(
              to: destination, offset: panel.offset + pass * rowsPerPass * panel.rowBytes, from: source,
              offset: panel.firstChunk * 16, sourceBytes: bytes)
          }
          if isPartial { k.when(row .< tile.rows, copy) } else { copy() }
        }
      }
      k.set(lane.source, to: lane.source + tileStride)
    }
  }

  /// 16 or 0; nil where it is always 16. The chunk beside an odd last one holds zeros.
  private func sourceBytes(
    _ panel: SharedTile.Panel, _ chunk: Register<U32>, _ exists: Predicate?
  ) -> Register<U32>? {
    var predicate = exists
    if (panel.firstChunk + panel.width) * 8 > tile.columns {
      let isReal = chunk .< (tile.columns / 8 - panel.firstChunk)
      predicate = predicate.map { $0 & isReal } ?? isReal
    }
    return predicate.map { k.select($0, 16, 0, U32.self) }
  }
}
