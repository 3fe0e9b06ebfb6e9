/// Which keys a query may see.
///
/// Every mask is aligned to the bottom right: the last query sits on the last key, so query i stands at key
/// `i + keys - queries`, its diagonal. With a cache, the new queries are then the last tokens, as they should be.
public enum AttentionMask: Hashable, Sendable {
  /// Every query sees every key.
  case none
  /// A query sees the keys up to and including its diagonal.
  case causal
  /// A query sees `left` keys before its diagonal, the diagonal, and `right` keys after it: `left + 1 + right` keys in
  /// all. nil is unlimited. `.window(left: nil, right: 0)` is `.causal`.
  case window(left: Int?, right: Int?)
  /// The keys are cut into chunks of `size`, from the first on, and a query sees of the chunk of its diagonal what
  /// `.window(left: left, right: right)` lets it see ("chunked local attention").
  case chunks(of: Int, left: Int? = nil, right: Int? = 0)

  /// The size of the chunks; nil where there are none.
  public var chunk: Int? { if case .chunks(let size, _, _) = self { size } else { nil } }

  /// How many keys before and after its diagonal a query sees; nil is unlimited.
  public var reach: (left: Int?, right: Int?) {
    switch self {
    case .none: (nil, nil)
    case .causal: (nil, 0)
    case .window(let left, let right), .chunks(_, let left, let right): (left, right)
    }
  }

  /// Whether there are keys that some query may not see.
  public var isLimited: Bool { reach.left != nil || reach.right != nil || chunk != nil }

  /// Query i of `queries` sees the keys from `i + left` to `i + right`, of those that there are. Where a side is
  /// unlimited, or reaches beyond all keys, what makes the same of it and cannot overflow.
  package func offsets(queries: Int, keys: Int) -> (left: Int, right: Int) {
    let (diagonal, most) = (keys - queries, queries + keys)
    return (
      max(diagonal - min(reach.left ?? most, most), -queries), min(diagonal + min(reach.right ?? most, most), keys - 1)
    )
  }

  /// The keys that query `query` of `queries` sees, of `keys`; empty where it sees none.
  public func visibleKeys(ofQuery query: Int, queries: Int, keys: Int) -> Range<Int> {
    let seen = rule(queries: queries, keys: keys)
    let (first, end) = (seen.first(ofQuery: query), seen.end(ofQuery: query))
    return first < end ? first..<end : 0..<0
  }

  /// The key behind the last that query `query` may see; below 1 where it may see none.
  package func endOfVisibleKeys(ofQuery query: Int, queries: Int, keys: Int) -> Int {
    rule(queries: queries, keys: keys).end(ofQuery: query)
  }

  /// The queries, of `queries`, that see key `key` of `keys`; empty where none does.
  package func seeingQueries(ofKey key: Int, queries: Int, keys: Int) -> Range<Int> {
    let seen = rule(queries: queries, keys: keys)
    let (first, end) = (seen.firstQuery(ofKey: key), seen.endQuery(ofKey: key, of: queries))
    return first < end ? first..<end : 0..<0
  }

  private func rule(queries: Int, keys: Int) -> VisibleKeys<Int> {
    let (left, right) = offsets(queries: queries, keys: keys)
    return VisibleKeys(keys: keys, left: left, right: right, diagonal: keys - queries, chunk: chunk)
  }

  /// This mask, seeing at most what `.causal` sees.
  public var andCausal: AttentionMask {
    switch self {
    case .none, .causal: .causal
    case .window(let left, let right): .window(left: left, right: min(right ?? 0, 0))
    case .chunks(let size, let left, let right): .chunks(of: size, left: left, right: min(right ?? 0, 0))
    }
  }
}

extension AttentionMask: CustomStringConvertible {
  /// The mask in words.
  public var description: String {
    switch self {
    case .none: "no mask"
    case .causal: "causal"
    case .window(let left, let right):
      "window of \(left.map(String.init) ?? "all") left, \(right.map(String.init) ?? "all") right"
    case .chunks(let size, let left, let right):
      "chunks of \(size), \(left.map(String.init) ?? "all") left, \(right.map(String.init) ?? "all") right"
    }
  }
}
