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

  /// How many keys before and after its diagonal a query sees; nil is unlimited.
  public var reach: (left: Int?, right: Int?) {
    switch self {
    case .none: (nil, nil)
    case .causal: (nil, 0)
    case .window(let left, let right): (left, right)
    }
  }

  /// The keys that query `query` of `queries` sees, of `keys`; empty where it sees none.
  public func visibleKeys(ofQuery query: Int, queries: Int, keys: Int) -> Range<Int> {
    let diagonal = query + keys - queries
    let (left, right) = reach
    // A reach of queries + keys spans everything, so larger ones cannot overflow.
    let most = queries + keys
    let first = left.map { max(0, diagonal - min($0, most)) } ?? 0
    let end = right.map { min(keys, diagonal + min($0, most) + 1) } ?? keys
    return first < end ? first..<end : 0..<0
  }

  /// This mask, seeing at most what `.causal` sees.
  public var andCausal: AttentionMask {
    switch self {
    case .none, .causal: .causal
    case .window(let left, let right): .window(left: left, right: min(right ?? 0, 0))
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
    }
  }
}
