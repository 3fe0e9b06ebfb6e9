internal import Attention
internal import PTX

/// Hides the scores of keys that a query does not see: those beyond the length, and those outside the mask's edges.
struct ScoreMask {
  private let k: KernelBuilder
  private let edges: MaskEdges
  private let keys: SeenKeys
  private let rows: PackedQueries
  /// The lane's rows in the pack.
  private let ownRows: [Register<U32>]
  private let lane: Register<U32>
  private let tileRows: Int
  /// The keys that some row sees, and those that all of its rows see: tiles within need no mask.
  private let extents: [(hull: SeenKeys.KeyRange, common: SeenKeys.KeyRange)]

  /// - Parameter isThere: whether the rows are there; nil where that is known.
  init(
    _ k: KernelBuilder, _ edges: MaskEdges, _ keys: SeenKeys, rows: PackedQueries,
    ownRows: [Register<U32>], tileRows: Int, lane: Register<U32>, if isThere: Predicate? = nil
  ) {
    self.k = k
    self.edges = edges
    self.keys = keys
    self.rows = rows
    self.ownRows = ownRows
    self.lane = lane
    let first = rows.query(ofRow: rows.firstRow).reinterpreted(as: S32.self)
    self.tileRows = tileRows
    let last = Self.last(k, rows, tileRows)
    extents = keys.extents(
      from: first, through: last, atMost: rows.queries(ofRows: tileRows), if: isThere, lane: lane)
  }

  /// The block's last query.
  private static func last(_ k: KernelBuilder, _ rows: PackedQueries, _ tileRows: Int) -> Register<S32> {
    rows.query(ofRow: k.minimum(rows.firstRow + tileRows, rows.count) - 1).reinterpreted(as: S32.self)
  }

  /// The tiles that rows' first ranges span, and their second.
  private func stretches(_ size: Int) -> [(first: Register<S32>, end: Register<S32>)] {
    extents.map { ($0.hull.first / size, ($0.hull.end + (size - 1)) / size) }
  }

  /// The tiles of keys that some row sees.
  func tiles(of size: Int) -> KeyTiles {
    let stretches = stretches(size)
    return edges.rangesAreAny
      ? KeyTiles(k, stretches) : KeyTiles(k, first: stretches[0].first, end: stretches[0].end)
  }

  /// Of first keys beside the rule's: whether they are few, and in a tile of which no row sees another key; and the tile that the rule's
  /// begin in. Nil where a mask has none.
  func fewFirstKeys(atMost most: Int, tileKeys: Int) -> (areApart: Predicate, behind: Register<S32>)? {
    guard let firstKeys = keys.firstKeysBesideRule else { return nil }
    let behind = stretches(tileKeys)[1]
    return (
      (firstKeys .> 0) & (firstKeys .<= most) & (behind.first .> 0) & (behind.first .< behind.end), behind.first
    )
  }

  /// Those of some tiles, counted from tile `start` on, that some row sees.
  func limit(
    _ tiles: (first: Register<S32>, end: Register<S32>), from start: Register<S32>, of size: Int
  ) -> KeyTiles {
    if edges.rangesAreAny {
      return KeyTiles(
        k,
        stretches(size).map { (k.maximum($0.first - start, tiles.first), k.minimum($0.end - start, tiles.end)) })
    }
    let visible = self.tiles(of: size)
    return KeyTiles(
      k, first: edges.limitsFirst ? k.maximum(tiles.first, visible.first - start) : tiles.first,
      end: edges.limitsEnd ? k.minimum(tiles.end, visible.end - start) : tiles.end)
  }

  /// Whether a tile of `size` keys from `start` on has keys that some row does not see.
  func isNeeded(tileStart start: Register<S32>, size: Int) -> Predicate {
    let outside = extents.enumerated().map { number, extent in
      let isBeyond = (start + size) .> extent.common.end
      return keys.mayBeginLater(number) ? isBeyond | (start .< extent.common.first) : isBeyond
    }
    return outside.dropFirst().reduce(outside[0]) { $0 & $1 }
  }

  /// Hides the scores of the tile that begins at key `start`, where its row does not see the key.
  func apply(to scores: Accumulators, tileStart start: Register<S32>) {
    hide(in: [scores], as: -.infinity, tileStart: start)
  }

  /// Sets what belongs to a key that its row does not see to a number.
  func hide(in all: [Accumulators], as number: Float, tileStart start: Register<S32>) {
    let first = start + ((lane % 4) * 2).reinterpreted(as: S32.self)
    func ranges(_ row: Register<U32>) -> [SeenKeys.KeyRange] {
      let query = rows.query(ofRow: row).reinterpreted(as: S32.self)
      // Rows behind the last have no ranges.
      let own = keys.areGiven ? k.minimum(query, Self.last(k, rows, tileRows)) : query
      return keys.ranges(ofQuery: own).map { ($0.first - first, $0.end - first) }
    }
    func hide(_ ranges: [SeenKeys.KeyRange], _ column: Int, _ values: [Register<F32>]) {
      let isIn = ranges.enumerated().map { number, range in
        let isBefore = range.end .> column
        // The rule's own is alone where there are first keys.
        let mayBeginLater = keys.mayBeginLater(ranges.count == 1 ? keys.count - 1 : number)
        return mayBeginLater ? isBefore & (range.first .<= column) : isBefore
      }
      let isVisible = isIn.dropFirst().reduce(isIn[0]) { $0 | $1 }
      for value in values { k.set(value, to: k.select(isVisible, value, number)) }
    }
    /// Row after row, so that few ranges are in registers at once.
    func hideRows() {
      for (own, row) in ownRows.enumerated() {
        let ranges = ranges(row)
        all[0].forEachPlace { rowTile, columnTile, element, row, column in
          if row == own { hide(ranges, column, all.map { $0[rowTile, columnTile][element] }) }
        }
      }
    }
    func hideRule() {
      let ofRows = ownRows.map { row in
        let own = keys.ruleRange(ofQuery: rows.query(ofRow: row).reinterpreted(as: S32.self))
        return [(first: own.first - first, end: own.end - first)]
      }
      all[0].forEachPlace { rowTile, columnTile, element, row, column in
        hide(ofRows[row], column, all.map { $0[rowTile, columnTile][element] })
      }
    }
    if let hasFirstKeys = keys.hasFirstKeys(from: start) {
      // Most tiles have none of them.
      k.if(hasFirstKeys, hideRows, else: hideRule)
    } else if keys.isRule {
      hideRule()
    } else {
      hideRows()
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
