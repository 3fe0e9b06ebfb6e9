internal import PTX

/// Hides the scores of keys that a query does not see: those beyond the length, and those outside the mask's edges.
struct ScoreMask {
  /// How many keys there are; query i sees those from `i + left` to `i + right`, and of chunks of `chunk` keys only the
  /// one that has key `i + diagonal`.
  struct Bounds {
    let keys, left, right, diagonal, chunk: Register<S32>
  }

  private let k: KernelBuilder
  private let edges: MaskEdges
  private let bounds: Bounds
  private let rows: PackedQueries
  /// The lane's rows in the pack.
  private let ownRows: [Register<U32>]
  private let lane: Register<U32>
  /// The keys that some row sees.
  private let visible: (first: Register<S32>, end: Register<S32>)
  /// The keys that all of its rows see: tiles within need no mask.
  private let common: (first: Register<S32>, end: Register<S32>)

  init(
    _ k: KernelBuilder, _ edges: MaskEdges, _ bounds: Bounds, rows: PackedQueries,
    ownRows: [Register<U32>], tileRows: Int, lane: Register<U32>
  ) {
    self.k = k
    self.edges = edges
    self.bounds = bounds
    self.rows = rows
    self.ownRows = ownRows
    self.lane = lane
    let first = rows.query(ofRow: rows.firstRow).reinterpreted(as: S32.self)
    let last = rows.query(ofRow: k.minimum(rows.firstRow + tileRows, rows.count) - 1).reinterpreted(as: S32.self)
    visible = (Self.firstKey(k, edges, bounds, first), Self.endKey(k, edges, bounds, last))
    common = (Self.firstKey(k, edges, bounds, last), Self.endKey(k, edges, bounds, first))
  }

  /// The first key that a query sees, and the key behind the last.
  private static func firstKey(
    _ k: KernelBuilder, _ edges: MaskEdges, _ bounds: Bounds,
    _ query: Register<S32>
  ) -> Register<S32> {
    let zero = k.constant(0, S32.self)
    var first = edges.contains(.left) ? k.maximum(query + bounds.left, zero) : zero
    if edges.contains(.chunks) {
      let place = k.maximum(query + bounds.diagonal, zero)
      first = k.maximum(first, (place / bounds.chunk) * bounds.chunk)
    }
    return first
  }

  private static func endKey(
    _ k: KernelBuilder, _ edges: MaskEdges, _ bounds: Bounds,
    _ query: Register<S32>
  ) -> Register<S32> {
    var end = edges.contains(.right) ? k.minimum(query + bounds.right + 1, bounds.keys) : bounds.keys
    if edges.contains(.chunks) {
      let place = query + bounds.diagonal
      // As far as to the chunk's end, so that a chunk of any size overflows nothing.
      let left = bounds.chunk - (place - (place / bounds.chunk) * bounds.chunk)
      end = k.minimum(end, place + k.minimum(left, k.maximum(bounds.keys - place, k.constant(0, S32.self))))
      end = k.select(place .>= 0, end, k.constant(0, S32.self))
    }
    return end
  }

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
    let first = start + ((lane % 4) * 2).reinterpreted(as: S32.self)
    let ranges = ownRows.map { row in
      let query = rows.query(ofRow: row).reinterpreted(as: S32.self)
      let (begin, end) = (
        Self.firstKey(k, edges, bounds, query), Self.endKey(k, edges, bounds, query)
      )
      return (first: begin - first, end: end - first)
    }
    scores.forEach { score, row, column in
      var isVisible = ranges[row].end .> column
      if edges.limitsFirst { isVisible = isVisible & (ranges[row].first .<= column) }
      k.set(score, to: k.select(isVisible, score, -.infinity))
    }
  }
}
