internal import PTX

/// Reads fragments of a tile with `ldmatrix`, four 8 x 8 matrices at a time: 16 rows x 16 columns.
struct TileReader {
  /// Which matrix a group of eight lanes names the rows of.
  enum Order {
    /// Rows 0-7, rows 8-15, then the same of the next chunk: A of Q; B of V, transposed.
    case rowsFirst
    /// Rows 0-7 with both chunks, then rows 8-15: B of two blocks of keys.
    case chunksFirst
  }

  private let k: KernelBuilder
  private let tile: SharedTile
  /// For each width of panels, the addresses of its steps of 16 columns, and what is added to them.
  private let addresses: [Int: [(address: Register<U32>, offset: Int)]]
  /// Bytes of the tile before what lies at the slot.
  private let skipped: Int
  /// The lane's own distance, for each width.
  private let offsets: [Int: Register<U32>]
  /// The same for each step, where the warp has some of a tile's columns.
  private var ofSteps: [Register<U32>]? = nil

  /// - Parameters:
  ///   - firstRow: the row of the tile that row 0 means, a multiple of 16.
  ///   - firstChunk: the chunk of a panel that chunk 0 means: a multiple of the chunks that are read from there on,
  ///     which are a power of two.
  init(
    _ k: KernelBuilder, _ tile: SharedTile, _ order: Order, lane: Register<U32>, firstRow: Register<U32>? = nil,
    firstChunk: Register<U32>? = nil
  ) {
    self.k = k
    self.tile = tile
    skipped = 0
    var offsets: [Int: Register<U32>] = [:]
    let (row, chunk) =
      switch order {
      case .rowsFirst: (lane % 16, lane / 16)
      case .chunksFirst: ((lane / 16) * 8 + lane % 8, (lane / 8) % 2)
      }
    for width in tile.widths {
      // Row 8 and beyond repeat the pattern of rows 0 to 7, so that only the lane's row counts.
      offsets[width] = tile.place(
        row: firstRow.map { $0 + row } ?? row, chunk: firstChunk.map { $0 + chunk } ?? chunk, width: width,
        patternRow: lane % 8)
    }
    self.offsets = offsets
    addresses = [:]
  }

  /// Reads some of the columns of a tile whose panels all have eight chunks: as many as others read, which part is known to the
  /// warp alone.
  ///
  /// - Parameter columns: the number of the part, and the steps of 16 columns that each has.
  init(
    _ k: KernelBuilder, _ tile: SharedTile, _ order: Order, lane: Register<U32>,
    columns: (part: Register<U32>, steps: Int)
  ) {
    self.init(k, tile, order, lane: lane)
    precondition(tile.widths == [8])
    let panelBytes = tile.rows * tile.panels[0].rowBytes
    ofSteps = (0..<columns.steps).map { step in
      let all = columns.part * columns.steps + step
      // Steps are pairs of chunks, and the pattern is an exclusive or: a pair flips the bits above the lowest.
      return (offsets[8]! ^ ((all % 4) * 32)) + (all / 4) * panelBytes
    }
  }

  private init(_ reader: TileReader, at slot: Register<U32>, skipping skipped: Int) {
    (k, tile, offsets, self.skipped) = (reader.k, reader.tile, reader.offsets, skipped)
    var addresses: [Int: [(address: Register<U32>, offset: Int)]] = [:]
    if let ofSteps = reader.ofSteps {
      self.addresses = [8: ofSteps.map { (slot + $0, 0) }]
      self.ofSteps = ofSteps
      return
    }
    for width in tile.widths {
      let first = slot + offsets[width]!
      addresses[width] = (0..<width / 2).map { reader.tile.beside(first, chunks: 2 * $0) }
    }
    self.addresses = addresses
  }

  /// The reader of one copy of the tile, at an address that is a multiple of 128, or of a slice of it that begins after
  /// `skipped` bytes.
  func at(_ slot: Register<U32>, skipping skipped: Int = 0) -> TileReader {
    TileReader(self, at: slot, skipping: skipped)
  }

  /// The fragments of 16 rows from `row` on and 16 columns; `count` 2 stops after the first chunk of `.rowsFirst`.
  func load(row: Int, step: Int, count: Int = 4, isTransposed: Bool = false) -> [Register<U32>] {
    if ofSteps != nil {
      let place = addresses[8]![step]
      return k.loadMatrix(
        count: count, shared: place.address, offset: row * tile.panels[0].rowBytes, isTransposed: isTransposed)
    }
    let panel = tile.panel(ofChunk: 2 * step)
    let place = addresses[panel.width]![step - panel.firstChunk / 2]
    return k.loadMatrix(
      count: count, shared: place.address, offset: place.offset + panel.offset - skipped + row * panel.rowBytes,
      isTransposed: isTransposed)
  }
}
