internal import Attention
internal import PTX

/// `ScoreMask` the other way round: keys are the rows of a tile, and the packed rows of queries pass by. Which rows see a key is
/// an interval, too.
struct SeeingRows {
  private let k: KernelBuilder
  private let edges: MaskEdges
  private let keys: VisibleKeys<EmittedNumber>
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
    _ k: KernelBuilder, _ edges: MaskEdges, _ keys: VisibleKeys<EmittedNumber>, groupSize: Int,
    queries: Register<U32>, block: (first: Register<U32>, end: Register<U32>), ownKeys: [Register<U32>],
    lane: Register<U32>
  ) {
    (self.k, self.edges, self.keys, self.groupSize) = (k, edges, keys, groupSize)
    (self.queries, self.ownKeys, self.lane) = (queries.reinterpreted(as: S32.self), ownKeys, lane)
    let (firstKey, lastKey) = (
      block.first.reinterpreted(as: S32.self), (block.end - 1).reinterpreted(as: S32.self)
    )
    func first(_ key: Register<S32>) -> Register<S32> {
      Self.first(k, keys, key, groupSize)
    }
    func end(_ key: Register<S32>) -> Register<S32> {
      Self.end(k, keys, key, of: queries.reinterpreted(as: S32.self), groupSize)
    }
    seeing = (first(firstKey), end(lastKey))
    common = (first(lastKey), end(firstKey))
  }

  /// The first row that sees a key, and the row behind the last.
  private static func first(
    _ k: KernelBuilder, _ keys: VisibleKeys<EmittedNumber>, _ key: Register<S32>, _ groupSize: Int
  ) -> Register<S32> {
    keys.firstQuery(ofKey: EmittedNumber(k: k, register: key)).multiplied(by: groupSize).register
  }

  private static func end(
    _ k: KernelBuilder, _ keys: VisibleKeys<EmittedNumber>, _ key: Register<S32>, of queries: Register<S32>,
    _ groupSize: Int
  ) -> Register<S32> {
    keys.endQuery(ofKey: EmittedNumber(k: k, register: key), of: EmittedNumber(k: k, register: queries)).orAtLeast(0)
      .multiplied(by: groupSize).register
  }

  /// The tiles of rows that see some key of the block.
  func tiles(of size: Int) -> (first: Register<S32>, end: Register<S32>) {
    (seeing.first / size, (seeing.end + (size - 1)) / size)
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
        first: Self.first(k, keys, key, groupSize) - first, end: Self.end(k, keys, key, of: queries, groupSize) - first
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
