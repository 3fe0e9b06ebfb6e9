internal import Attention
internal import PTX

/// Hides the scores of keys that a query does not see: those beyond the length, and those outside the mask's edges.
struct ScoreMask {
  private let k: KernelBuilder
  private let edges: MaskEdges
  private let keys: VisibleKeys<EmittedNumber>
  private let rows: PackedQueries
  /// The lane's rows in the pack.
  private let ownRows: [Register<U32>]
  private let lane: Register<U32>
  /// The keys that some row sees.
  private let visible: (first: Register<S32>, end: Register<S32>)
  /// The keys that all of its rows see: tiles within need no mask.
  private let common: (first: Register<S32>, end: Register<S32>)

  init(
    _ k: KernelBuilder, _ edges: MaskEdges, _ keys: VisibleKeys<EmittedNumber>, rows: PackedQueries,
    ownRows: [Register<U32>], tileRows: Int, lane: Register<U32>
  ) {
    self.k = k
    self.edges = edges
    self.keys = keys
    self.rows = rows
    self.ownRows = ownRows
    self.lane = lane
    let first = rows.query(ofRow: rows.firstRow).reinterpreted(as: S32.self)
    let last = rows.query(ofRow: k.minimum(rows.firstRow + tileRows, rows.count) - 1).reinterpreted(as: S32.self)
    visible = (Self.first(k, keys, first), Self.end(k, keys, last))
    common = (Self.first(k, keys, last), Self.end(k, keys, first))
  }

  /// The first key that a query sees, and the key behind the last.
  private static func first(
    _ k: KernelBuilder, _ keys: VisibleKeys<EmittedNumber>, _ query: Register<S32>
  ) -> Register<S32> { keys.first(ofQuery: EmittedNumber(k: k, register: query)).register }

  private static func end(
    _ k: KernelBuilder, _ keys: VisibleKeys<EmittedNumber>, _ query: Register<S32>
  ) -> Register<S32> { keys.end(ofQuery: EmittedNumber(k: k, register: query)).register }

  /// The tiles of keys that some row sees.
  func tiles(of size: Int) -> (first: Register<S32>, end: Register<S32>) {
    (visible.first / size, (visible.end + (size - 1)) / size)
  }

  /// Those of some tiles, counted from tile `start` on, that some row sees.
  func limit(
    _ tiles: (first: Register<S32>, end: Register<S32>), from start: Register<S32>, of size: Int
  ) -> (first: Register<S32>, end: Register<S32>) {
    let visible = self.tiles(of: size)
    return (
      edges.limitsFirst ? k.maximum(tiles.first, visible.first - start) : tiles.first,
      edges.limitsEnd ? k.minimum(tiles.end, visible.end - start) : tiles.end
    )
  }

  /// Whether a tile of `size` keys from `start` on has keys that some row does not see.
  func isNeeded(tileStart start: Register<S32>, size: Int) -> Predicate {
    let isBeyond = (start + size) .> common.end
    return edges.limitsFirst ? isBeyond | (start .< common.first) : isBeyond
  }

  /// Hides the scores of the tile that begins at key `start`, where its row does not see the key.
  func apply(to scores: Accumulators, tileStart start: Register<S32>) {
    hide(in: [scores], as: -.infinity, tileStart: start)
  }

  /// Sets what belongs to a key that its row does not see to a number.
  func hide(in all: [Accumulators], as number: Float, tileStart start: Register<S32>) {
    let first = start + ((lane % 4) * 2).reinterpreted(as: S32.self)
    let ranges = ownRows.map { row in
      let query = rows.query(ofRow: row).reinterpreted(as: S32.self)
      let (begin, end) = (Self.first(k, keys, query), Self.end(k, keys, query))
      return (first: begin - first, end: end - first)
    }
    all[0].forEachPlace { rowTile, columnTile, element, row, column in
      var isVisible = ranges[row].end .> column
      if edges.limitsFirst { isVisible = isVisible & (ranges[row].first .<= column) }
      for tiles in all {
        let value = tiles[rowTile, columnTile][element]
        k.set(value, to: k.select(isVisible, value, number))
      }
    }
  }
}

extension VisibleKeys<EmittedNumber> {
  /// From registers, of which a kernel uses those that its mask's edges ask for.
  init(
    _ k: KernelBuilder, _ edges: MaskEdges, keys: Register<S32>, left: Register<S32>, right: Register<S32>,
    diagonal: Register<S32>, chunk: Register<S32>
  ) {
    func number(_ register: Register<S32>) -> EmittedNumber { EmittedNumber(k: k, register: register) }
    self.init(
      keys: number(keys), left: edges.contains(.left) ? number(left) : nil,
      right: edges.contains(.right) ? number(right) : nil, diagonal: number(diagonal),
      chunk: edges.contains(.chunks) ? number(chunk) : nil)
  }
}
