internal import PTX

/// The rows of a block: all queries of all heads that share a key/value head, query by query. Row r of the pack is
/// query `r / group` of head `r % group` of the group, so that K and V are read once for the whole group.
struct PackedQueries {
  private let k: KernelBuilder
  private let groupSize: Int
  /// The block's first row in the pack, and the rows of the pack.
  let firstRow, count: Register<U32>

  init(_ k: KernelBuilder, groupSize: Int, firstRow: Register<U32>, queries: Register<U32>) {
    self.k = k
    self.groupSize = groupSize
    self.firstRow = firstRow
    count = groupSize == 1 ? queries : queries * groupSize
  }

  /// The query of a row of the pack.
  func query(ofRow row: Register<U32>) -> Register<U32> { groupSize == 1 ? row : row / groupSize }

  /// The most queries that so many neighbouring rows are of.
  func queries(ofRows rows: Int) -> Int { groupSize == 1 ? rows : (rows - 1) / groupSize + 2 }

  /// The query head of a row of the pack, whose query may be known.
  func head(ofRow row: Register<U32>, query: Register<U32>? = nil, first: Register<U32>) -> Register<U32> {
    groupSize == 1 ? first : first + (row - (query ?? self.query(ofRow: row)) * groupSize)
  }

  /// The bytes from the group's first head to a row of the pack.
  func distance(ofRow row: Register<U32>, _ strides: StrideParameters) -> Register<U64> {
    let query = query(ofRow: row)
    let distance = k.wide(query) * strides.row
    return groupSize == 1 ? distance : distance + k.wide(row - query * groupSize) * strides.head
  }

  /// Starts the copies of the block's rows of Q; rows beyond the end become zeros.
  func load(
    _ tile: SharedTile, from source: Register<U64>, _ strides: StrideParameters, to slot: Register<U32>,
    thread: Register<U32>, threads: Int
  ) {
    for width in tile.widths {
      let (line, chunk) = (thread / width, thread % width)
      let destination = slot + tile.place(row: line, chunk: chunk, width: width)
      let rowsPerPass = threads / width
      for pass in 0..<(tile.rows + rowsPerPass - 1) / rowsPerPass {
        let own = line + pass * rowsPerPass
        let row = firstRow + own
        let address = source + distance(ofRow: row, strides) + k.wide(chunk * 16)
        // Few threads take less rows at a time than the pattern has.
        let to = tile.turned(destination, asRow: pass * rowsPerPass, width: width)
        for panel in tile.panels where panel.width == width {
          var exists = row .< count
          if (panel.firstChunk + width) * 8 > tile.columns {
            exists = exists & (chunk .< (tile.columns / 8 - panel.firstChunk))
          }
          func copy() {
            k.copyAsync(
              to: to, offset: panel.offset + pass * rowsPerPass * panel.rowBytes, from: address,
              offset: panel.firstChunk * 16, sourceBytes: k.select(exists, 16, 0, U32.self))
          }
          if (pass + 1) * rowsPerPass > tile.rows { k.when(own .< tile.rows, copy) } else { copy() }
        }
      }
    }
  }
}
