internal import Attention
internal import PTX

/// The keys that queries see: what the mask's rule says, joined with the first keys of the sequence, or cut to the ranges that the call
/// gives.
struct SeenKeys {
  /// Some keys, one behind the other; none where the end is not behind the first.
  typealias KeyRange = (first: Register<S32>, end: Register<S32>)

  private let k: KernelBuilder
  private let edges: MaskEdges
  private let rule: VisibleKeys<EmittedNumber>
  /// Keys that all see beside the rule's, or at most, where they must not be behind these.
  private let firstKeys: Register<S32>?
  /// Emits the address of the sequence's first query's ranges.
  private let list: (() -> Register<U64>)?

  init(
    _ k: KernelBuilder, _ edges: MaskEdges, _ rule: VisibleKeys<EmittedNumber>, _ ranges: RangeParameters.OfSequence?
  ) {
    (self.k, self.edges, self.rule) = (k, edges, rule)
    firstKeys = ranges?.firstKeys.map { k.maximum(k.minimum($0, rule.keys.register), k.constant(0, S32.self)) }
    list = ranges?.list
  }

  /// Whether each query has ranges of its own, of which the neighbours' say nothing.
  var areGiven: Bool { list != nil }

  /// Whether there is nothing but the rule.
  var isRule: Bool { list == nil && firstKeys == nil }

  /// How many ranges a query sees.
  var count: Int { edges.rangeCount > 0 ? edges.rangeCount : isJoined ? 2 : 1 }
  /// Whether one of them may begin behind key 0.
  func mayBeginLater(_ number: Int) -> Bool { edges.limitsFirst && !(isJoined && number == 0) }
  private var isJoined: Bool { firstKeys != nil && edges.limitsFirst }

  /// Whether a tile of keys that begins at some key may have first keys beside the rule's; nil where these are no stretch of their own.
  func hasFirstKeys(from start: Register<S32>) -> Predicate? { firstKeysBesideRule.map { start .< $0 } }

  /// How many first keys there are at most; nil where these are no stretch of their own.
  var firstKeysBesideRule: Register<S32>? { isJoined ? firstKeys : nil }

  /// What the rule alone lets a query see.
  func ruleRange(ofQuery query: Register<S32>) -> KeyRange { (first(ofQuery: query), end(ofQuery: query)) }

  /// What a query sees, in `count` ranges.
  func ranges(ofQuery query: Register<S32>) -> [KeyRange] {
    let own = (first: first(ofQuery: query), end: end(ofQuery: query))
    if let firstKeys {
      let end = edges.contains(.prefix) ? firstKeys : k.minimum(firstKeys, own.end)
      // Without a left edge, the rule's keys begin where these do.
      return isJoined ? [(k.constant(0, S32.self), end), own] : [(own.first, k.maximum(own.end, end))]
    }
    guard let list else { return [own] }
    let place = list() + k.wide(query.reinterpreted(as: U32.self)) * (8 * edges.rangeCount)
    return (0..<edges.rangeCount).map { number in
      let words = k.load(S32.self, count: 2, global: place, offset: 8 * number)
      // Ends are 0 or more, so that no difference overflows whatever the numbers are.
      return (k.maximum(words[0], own.first), k.maximum(k.minimum(words[1], own.end), k.constant(0, S32.self)))
    }
  }

  /// The first key that the rule lets a query see, and the key behind the last.
  private func first(ofQuery query: Register<S32>) -> Register<S32> {
    rule.first(ofQuery: EmittedNumber(k: k, register: query)).register
  }

  private func end(ofQuery query: Register<S32>) -> Register<S32> {
    rule.end(ofQuery: EmittedNumber(k: k, register: query)).register
  }

  // MARK: - The other way round

  /// The first query that sees a key, where ranges are not given.
  func firstQuery(seeing key: Register<S32>) -> Register<S32> {
    let first = rule.firstQuery(ofKey: EmittedNumber(k: k, register: key)).register
    guard let firstKeys, edges.contains(.prefix) else { return first }
    return k.select(key .< firstKeys, k.constant(0, S32.self), first)
  }

  /// The query behind the last of all that sees a key.
  func endQuery(seeing key: Register<S32>, of queries: Register<S32>) -> Register<S32> {
    let end = rule.endQuery(
      ofKey: EmittedNumber(k: k, register: key), of: EmittedNumber(k: k, register: queries)
    ).orAtLeast(0).register
    return firstKeys.map { k.select(key .< $0, queries, end) } ?? end
  }

  /// Where the queries end that see one of some keys, and those that see all of them.
  func endQueries(
    seeing keys: (first: Register<S32>, last: Register<S32>), of queries: Register<S32>
  ) -> (any: Register<S32>, all: () -> Register<S32>) {
    let last = endQuery(seeing: keys.last, of: queries)
    guard let firstKeys else { return (last, { self.endQuery(seeing: keys.first, of: queries) }) }
    // All see the first keys; of the others, the first is lost first.
    let other = k.maximum(keys.first, k.minimum(firstKeys, keys.last))
    return (k.maximum(last, endQuery(seeing: keys.first, of: queries)), { self.endQuery(seeing: other, of: queries) })
  }

  /// What some queries see: keys from the first to the last that one sees, and those that all see; of each of their ranges.
  ///
  /// - Parameters:
  ///   - most: how many they are at most.
  ///   - isThere: whether there are such queries; nil where that is known.
  ///   - lane: all lanes of the warp are here where ranges are given.
  func extents(
    from first: Register<S32>, through last: Register<S32>, atMost most: Int, if isThere: Predicate?,
    lane: Register<U32>
  ) -> [(hull: KeyRange, common: KeyRange)] {
    if areGiven { return givenExtents(from: first, through: last, atMost: most, if: isThere, lane: lane) }
    if firstKeys == nil {
      // Both ends move on from query to query.
      let hull = (first: self.first(ofQuery: first), end: self.end(ofQuery: last))
      return [(hull, (self.first(ofQuery: last), self.end(ofQuery: first)))]
    }
    return zip(ranges(ofQuery: first), ranges(ofQuery: last)).map { ofFirst, ofLast in
      ((ofFirst.first, ofLast.end), (ofLast.first, ofFirst.end))
    }
  }

  /// Of given ranges, the lanes look at a query each.
  private func givenExtents(
    from first: Register<S32>, through last: Register<S32>, atMost most: Int, if isThere: Predicate?,
    lane: Register<U32>
  ) -> [(hull: KeyRange, common: KeyRange)] {
    k.comment("what the ranges of these queries span, and what they have in common")
    let (none, all) = (k.constant(0, S32.self), k.constant(Int(Int32.max), S32.self))
    func variable(_ start: Register<S32>) -> [Register<S32>] { (0..<count).map { _ in k.variable(start) } }
    let (firsts, ends) = (variable(all), variable(none))
    let (lastFirsts, firstEnds) = (variable(none), variable(all))
    func look() {
      // Loads first, so that they are under way together. Of lanes behind the last, the last's.
      let some = stride(from: 0, to: most, by: 32).map {
        self.ranges(ofQuery: k.minimum(first + (lane.reinterpreted(as: S32.self) + $0), last))
      }
      for ranges in some {
        for (i, range) in ranges.enumerated() {
          let isEmpty = range.first .>= range.end
          k.set(firsts[i], to: k.minimum(firsts[i], k.select(isEmpty, all, range.first)))
          k.set(ends[i], to: k.maximum(ends[i], k.select(isEmpty, none, range.end)))
          k.set(lastFirsts[i], to: k.maximum(lastFirsts[i], range.first))
          k.set(firstEnds[i], to: k.minimum(firstEnds[i], range.end))
        }
      }
    }
    if let isThere { k.if(isThere, look) } else { look() }
    return (0..<count).map { i in
      (
        (k.minimumOverLanes(firsts[i]), k.maximumOverLanes(ends[i])),
        (k.maximumOverLanes(lastFirsts[i]), k.minimumOverLanes(firstEnds[i]))
      )
    }
  }
}

extension KernelBuilder {
  /// The smallest number of all lanes of the warp: the same in all, and known to be, so that loops to it are not taken to diverge.
  func minimumOverLanes(_ number: Register<S32>) -> Register<S32> {
    shuffle([1, 2, 4, 8, 16].reduce(number) { minimum($0, shuffle($0, xor: $1)) }, lane: constant(0, U32.self))
  }

  /// The largest.
  func maximumOverLanes(_ number: Register<S32>) -> Register<S32> {
    shuffle([1, 2, 4, 8, 16].reduce(number) { maximum($0, shuffle($0, xor: $1)) }, lane: constant(0, U32.self))
  }
}
