/// Whether a GPU computes the query heads that share a key/value head together, so that K and V are read once for all of them, and
/// divides the keys over blocks; or each head by itself, as without a cache.
public enum QueryPacking: String, Hashable, Sendable, CaseIterable {
  /// What is fast.
  case automatic
  /// Together, also where there are many queries.
  case always
  /// Each by itself: for caches without pages, left padding, new keys, e4m3 numbers and splits of a fixed length.
  case never
}
