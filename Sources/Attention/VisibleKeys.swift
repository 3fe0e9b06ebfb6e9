/// The keys that each query of a sequence sees: an interval, whose ends move on from query to query.
///
/// Written once: masks on the CPU ask it, kernels emit it.
package struct VisibleKeys<Number: RuleNumber> {
  /// The keys that there are.
  package let keys: Number
  /// Query i sees the keys from `i + left` to `i + right`, of those that there are; nil where that side is unlimited.
  let left, right: Number?
  /// Query i stands on key `i + diagonal`, and sees of keys in chunks of `chunk` only the chunk that this is in; nil
  /// without chunks.
  let diagonal: Number
  let chunk: Number?

  /// All of the above.
  package init(keys: Number, left: Number?, right: Number?, diagonal: Number, chunk: Number?) {
    (self.keys, self.left, self.right, self.diagonal, self.chunk) = (keys, left, right, diagonal, chunk)
  }

  /// The first key that a query sees, if it sees any.
  package func first(ofQuery query: Number) -> Number {
    var first = left.map { query.adding($0).orAtLeast(0) } ?? keys.constant(0)
    if let chunk {
      first = first.orAtLeast(query.adding(diagonal).orAtLeast(0).divided(by: chunk).multiplied(by: chunk))
    }
    return first
  }

  /// The key behind the last that a query sees; not above `first` where it sees none.
  package func end(ofQuery query: Number) -> Number {
    var end = right.map { query.adding($0).adding(1).orAtMost(keys) } ?? keys
    if let chunk {
      let place = query.adding(diagonal)
      let standing = place.orAtLeast(0)
      // As far as to the chunk's end, so that a chunk of any size overflows nothing.
      let rest = chunk.subtracting(standing.subtracting(standing.divided(by: chunk).multiplied(by: chunk)))
      end = end.orAtMost(place.adding(rest.orAtMost(keys.subtracting(place).orAtLeast(0))))
      // A query before the first key stands in no chunk.
      end = end.orZero(whereNegative: place)
    }
    return end
  }

  // MARK: - The other way round: the queries that see a key, an interval that moves on from key to key as well

  /// The first query that sees a key, if one does.
  package func firstQuery(ofKey key: Number) -> Number {
    var first = right.map { key.subtracting($0).orAtLeast(0) } ?? keys.constant(0)
    if let chunk {
      first = first.orAtLeast(key.divided(by: chunk).multiplied(by: chunk).subtracting(diagonal))
    }
    return first
  }

  /// The query behind the last of `queries` that sees a key; not above `firstQuery` where none does.
  package func endQuery(ofKey key: Number, of queries: Number) -> Number {
    var end = left.map { key.subtracting($0).adding(1).orAtMost(queries) } ?? queries
    if let chunk {
      let standing = key.subtracting(diagonal)
      // As far as to the chunk's end, so that a chunk of any size overflows nothing.
      let rest = chunk.subtracting(key.subtracting(key.divided(by: chunk).multiplied(by: chunk)))
      end = end.orAtMost(standing.adding(rest.orAtMost(queries.subtracting(standing).orAtLeast(0))))
    }
    return end
  }
}
