internal import PTX

/// `SeeingRows` where the call gives the ranges of each query: which rows see a key is then no interval. Rows from the first that sees
/// some key of the block to the last pass by; of a tile of them, the lanes find out together whether all see all.
struct SeeingQueries {
  private let k: KernelBuilder
  private let keys: SeenKeys
  private let groupSize: Int
  private let rows: PackedQueries
  private let lane: Register<U32>
  /// The lane's keys.
  private let ownKeys: [Register<U32>]
  /// The block's first key, and its last.
  private let block: (first: Register<S32>, last: Register<S32>)
  /// The sequence's last query.
  private let last: Register<S32>
  /// The queries that see some key of the block, from the first to behind the last.
  private let seeing: (first: Register<S32>, end: Register<S32>)

  /// - Parameters:
  ///   - block: the block's first key, and the key behind its last.
  ///   - place: the start of shared memory, of which eight bytes a warp are written and read.
  init(
    _ k: KernelBuilder, _ keys: SeenKeys, groupSize: Int, queries: Register<U32>,
    block: (first: Register<U32>, end: Register<U32>), ownKeys: [Register<U32>], _ place: WarpPlace, warps: Int
  ) {
    (self.k, self.keys, self.groupSize, lane, self.ownKeys) = (k, keys, groupSize, place.lane, ownKeys)
    rows = PackedQueries(k, groupSize: groupSize, firstRow: k.constant(0, U32.self), queries: queries)
    let queries = queries.reinterpreted(as: S32.self)
    let own = (block.first.reinterpreted(as: S32.self), (block.end - 1).reinterpreted(as: S32.self))
    self.block = own
    last = queries - 1
    k.comment("the queries that see some key of the block: each warp looks at some")
    let candidates = (
      first: keys.firstQuery(seeing: own.0), end: k.minimum(keys.endQueries(seeing: own, of: queries).any, queries)
    )
    let (lowest, highest) = (k.variable(queries), k.variable(k.constant(0, S32.self)))
    let atOnce = 4
    let thread = place.thread.reinterpreted(as: S32.self)
    k.loop(from: candidates.first, to: candidates.end, by: 32 * warps * atOnce) { start in
      // Loads first, so that they are under way together.
      let some = (0..<atOnce).map { k.minimum(start + (thread + $0 * 32 * warps), candidates.end - 1) }
      for (query, ranges) in some.map({ ($0, keys.ranges(ofQuery: $0)) }) {
        let isSeeing = Self.any(ranges.map { (k.maximum($0.first, own.0)) .< k.minimum($0.end, own.1 + 1) })
        k.set(lowest, to: k.select(isSeeing, k.minimum(lowest, query), lowest))
        k.set(highest, to: k.select(isSeeing, k.maximum(highest, query + 1), highest))
      }
    }
    var (first, end) = (k.minimumOverLanes(lowest), k.maximumOverLanes(highest))
    k.if(place.lane .== 0) {
      k.store(
        [first, end].map { $0.reinterpreted(as: U32.self) }, shared: place.shared + (place.thread / 32) * 8)
    }
    k.barrier()
    for warp in 0..<warps {
      let words = k.load(U32.self, count: 2, shared: place.shared, offset: warp * 8).map {
        $0.reinterpreted(as: S32.self)
      }
      (first, end) = warp == 0 ? (words[0], words[1]) : (k.minimum(first, words[0]), k.maximum(end, words[1]))
    }
    k.comment("all have read what the others found")
    k.barrier()
    seeing = (first, end)
  }

  private func query(ofRow row: Register<S32>) -> Register<S32> {
    rows.query(ofRow: row.reinterpreted(as: U32.self)).reinterpreted(as: S32.self)
  }

  private static func any(_ all: [Predicate]) -> Predicate { all.dropFirst().reduce(all[0]) { $0 | $1 } }

  /// The tiles of rows that may see some key of the block.
  func tiles(of size: Int) -> KeyTiles {
    KeyTiles(k, [(seeing.first * groupSize / size, (seeing.end * groupSize + (size - 1)) / size)])
  }

  /// Whether a tile of rows has some that do not see all keys of the block. Their ranges are asked for at once, and looked at when it is
  /// called.
  func isNeeded(tileStart start: Register<S32>, size: Int) -> () -> Predicate {
    let first = query(ofRow: start)
    let asked = stride(from: 0, to: rows.queries(ofRows: size), by: 32).map {
      keys.ranges(ofQuery: k.minimum(first + (lane.reinterpreted(as: S32.self) + $0), last))
    }
    return {
      let seesAll = asked.map { ranges in
        Self.any(ranges.map { ($0.first .<= block.first) & ($0.end .> block.last) })
      }
      return k.ballot(seesAll.dropFirst().reduce(seesAll[0]) { $0 & $1 }) .!= k.constant(-1, U32.self)
    }
  }

  /// Sets what belongs to a row that does not see its key to zero.
  func hide(in all: [Accumulators], tileStart start: Register<S32>) {
    let first = start + ((lane % 4) * 2).reinterpreted(as: S32.self)
    // Of each column, a row of queries, as the lane comes to it.
    var ofColumns: [Int: [SeenKeys.KeyRange]] = [:]
    all[0].forEachPlace { rowTile, columnTile, element, row, column in
      let ranges = ofColumns[column] ?? keys.ranges(ofQuery: k.minimum(query(ofRow: first + column), last))
      ofColumns[column] = ranges
      let key = ownKeys[row].reinterpreted(as: S32.self)
      let isSeen = Self.any(ranges.map { ($0.first .<= key) & ($0.end .> key) })
      for tiles in all {
        let value = tiles[rowTile, columnTile][element]
        k.set(value, to: k.select(isSeen, value, k.constant(0)))
      }
    }
  }
}
