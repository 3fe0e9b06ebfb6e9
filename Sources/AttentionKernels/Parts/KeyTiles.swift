internal import PTX

/// The tiles of keys that a block works on, one after the other, by numbers without a gap: those of one stretch of keys, or of two, and
/// those in between left out.
struct KeyTiles {
  /// The first, and the one behind the last.
  let first, end: Register<S32>
  /// From tile `at` on, so many tiles of keys are left out; nil where there is one stretch.
  private(set) var gap: (at: Register<S32>, width: Register<S32>)?
  private let k: KernelBuilder

  init(_ k: KernelBuilder, first: Register<S32>, end: Register<S32>) {
    (self.k, self.first, self.end, gap) = (k, first, end, nil)
  }

  /// A part of some.
  init(_ tiles: KeyTiles, first: Register<S32>, end: Register<S32>) {
    (k, self.first, self.end, gap) = (tiles.k, first, end, tiles.gap)
  }

  /// Those of one stretch of tiles or of two, each of which may be without any, and that may overlap.
  init(_ k: KernelBuilder, _ stretches: [(first: Register<S32>, end: Register<S32>)]) {
    self.k = k
    let zero = k.constant(0, S32.self)
    if stretches.count == 1 {
      let isThere = stretches[0].first .< stretches[0].end
      (first, end) = (k.select(isThere, stretches[0].first, zero), k.select(isThere, stretches[0].end, zero))
      gap = nil
      return
    }
    let (a, b) = (stretches[0], stretches[1])
    let (hasA, hasB) = (a.first .< a.end, b.first .< b.end)
    // One that is not there begins and ends where the other begins.
    func present(
      _ own: (first: Register<S32>, end: Register<S32>), _ isThere: Predicate, else other: Register<S32>
    ) -> (first: Register<S32>, end: Register<S32>) {
      (k.select(isThere, own.first, other), k.select(isThere, own.end, other))
    }
    let one = present(a, hasA, else: k.select(hasB, b.first, zero))
    let two = present(b, hasB, else: one.first)
    let isFirst = one.first .<= two.first
    let (lower, upper) = (
      (first: k.minimum(one.first, two.first), end: k.select(isFirst, one.end, two.end)),
      (first: k.maximum(one.first, two.first), end: k.select(isFirst, two.end, one.end))
    )
    let start = k.maximum(upper.first, lower.end)
    first = lower.first
    gap = (at: lower.end.named("gap"), width: (start - lower.end).named("gap_width"))
    end = lower.end + (k.maximum(upper.end, start) - start)
  }

  /// Words that tell tiles of so many stretches, in the order of `words`.
  static func wordCount(stretches: Int) -> Int { stretches == 1 ? 2 : 4 }

  /// Those words.
  var words: [Register<U32>] {
    ([first, end] + (gap.map { [$0.at, $0.width] } ?? [])).map { $0.reinterpreted(as: U32.self) }
  }

  /// From words.
  init(_ k: KernelBuilder, words: [Register<U32>]) {
    let numbers = words.map { $0.reinterpreted(as: S32.self) }
    (self.k, first, end) = (k, numbers[0], numbers[1])
    gap = numbers.count > 2 ? (numbers[2], numbers[3]) : nil
  }

  /// Which tile of the keys one is.
  func place(_ tile: Register<S32>) -> Register<S32> {
    guard let gap else { return tile }
    return k.select(tile .< gap.at, tile, tile + gap.width)
  }

  /// The same keys from the first to the last, by the numbers of other tiles, of which they are a part.
  func numbered(as other: KeyTiles) -> KeyTiles {
    if other.gap == nil && gap == nil { return self }
    return KeyTiles(
      other, first: other.number(of: first), end: other.number(of: gap.map { end + $0.width } ?? end))
  }

  /// The same, counted from so many tiles earlier.
  func moved(by tiles: Register<S32>) -> KeyTiles {
    var other = KeyTiles(k, first: first + tiles, end: end + tiles)
    other.gap = gap.map { ($0.at + tiles, $0.width) }
    return other
  }

  /// The number of the first that is not before a tile of the keys.
  func number(of place: Register<S32>) -> Register<S32> {
    guard let gap else { return place }
    return k.select(place .<= gap.at, place, k.maximum(place - gap.width, gap.at))
  }
}
