internal import Attention
internal import PTX

/// `ScoreMask` the other way round: keys are the rows of a tile, and the packed rows of queries pass by. Which rows see a key is
/// an interval, too.
struct SeeingRows {
  private let k: KernelBuilder
  private let edges: MaskEdges
  private let keys: SeenKeys
  private let groupSize: Int
  private let queries: Register<S32>
  /// The lane's keys.
  private let ownKeys: [Register<U32>]
  private let lane: Register<U32>
  /// The rows that see some key of the block, and those that see all.
  private let seeing, common: (first: Register<S32>, end: Register<S32>)

  /// - Parameters:
  ///   - keys: what queries see.
  ///   - block: the block's first key, and the key behind its last.
  init(
    _ k: KernelBuilder, _ edges: MaskEdges, _ keys: SeenKeys, groupSize: Int,
    queries: Register<U32>, block: (first: Register<U32>, end: Register<U32>), ownKeys: [Register<U32>],
    lane: Register<U32>
  ) {
    (self.k, self.edges, self.keys, self.groupSize) = (k, edges, keys, groupSize)
    (self.queries, self.ownKeys, self.lane) = (queries.reinterpreted(as: S32.self), ownKeys, lane)
    let (firstKey, lastKey) = (
      block.first.reinterpreted(as: S32.self), (block.end - 1).reinterpreted(as: S32.self)
    )
    func rows(_ queries: Register<S32>) -> Register<S32> { Self.rows(queries, groupSize) }
    let first = rows(keys.firstQuery(seeing: firstKey))
    let ends = keys.endQueries(seeing: (firstKey, lastKey), of: queries.reinterpreted(as: S32.self))
    seeing = (first, rows(ends.any))
    common = (rows(keys.firstQuery(seeing: lastKey)), rows(ends.all()))
  }

  /// Of queries, their rows.
  private static func rows(_ queries: Register<S32>, _ groupSize: Int) -> Register<S32> {
    groupSize == 1 ? queries : queries * groupSize
  }

  /// The tiles of rows that see some key of the block.
  func tiles(of size: Int) -> KeyTiles {
    KeyTiles(k, first: seeing.first / size, end: (seeing.end + (size - 1)) / size)
  }

  /// Whether a tile of `size` rows from `start` on has rows that some key of the block is hidden from. Those behind the last
  /// row weigh nothing.
  func isNeeded(tileStart start: Register<S32>, size: Int) -> Predicate? {
    let isBehind = edges.limitsFirst ? (start + size) .> common.end : nil
    let isBefore = edges.limitsEnd ? start .< common.first : nil
    switch (isBehind, isBefore) {
    case (let behind?, let before?): return behind | before
    case (let only?, nil), (nil, let only?): return only
    case (nil, nil): return nil
    }
  }

  /// Sets what belongs to a row that does not see its key to zero.
  func hide(in all: [Accumulators], tileStart start: Register<S32>) {
    let first = start + ((lane % 4) * 2).reinterpreted(as: S32.self)
    let ranges = ownKeys.map { key in
      let key = key.reinterpreted(as: S32.self)
      return (
        first: Self.rows(keys.firstQuery(seeing: key), groupSize) - first,
        end: Self.rows(keys.endQuery(seeing: key, of: queries), groupSize) - first
      )
    }
    all[0].forEachPlace { rowTile, columnTile, element, row, column in
      let isBefore = edges.limitsEnd ? ranges[row].first .<= column : nil
      let isBehind = edges.limitsFirst ? ranges[row].end .> column : nil
      let isSeen: Predicate =
        if let isBefore, let isBehind { isBefore & isBehind } else { (isBefore ?? isBehind)! }
      for tiles in all {
        let value = tiles[rowTile, columnTile][element]
        k.set(value, to: k.select(isSeen, value, k.constant(0)))
      }
    }
  }
}
