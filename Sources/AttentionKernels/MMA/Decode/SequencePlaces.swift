internal import PTX

/// Which places of the row of all tiles, as `WorkRule` lays them, belong to which sequence: found by a warp, a sequence a lane, from the
/// lengths in the GPU's memory.
///
/// Where there are no more sequences than lanes, each lane keeps where its own ends, and tells the others; of one sequence all lanes know
/// everything. Where there are more, they are looked at again for whatever is asked.
final class SequencePlaces {
  /// A sequence, its keys and queries, and the places of all before it.
  struct Sequence {
    let number, keys, queries, before: Register<S32>
  }

  /// What the lists say of a sequence, and what the rule makes of it.
  private struct Lookup {
    let k: KernelBuilder
    let table: SequenceTable
    let rule: WorkRule<EmittedNumber>

    func counts(of sequence: Register<S32>) -> (keys: Register<S32>, queries: Register<S32>) {
      (table.keys(of: sequence), table.queries(of: sequence))
    }

    /// The places of a sequence of so many keys and queries; none from `end` on.
    func places(
      _ counts: (keys: Register<S32>, queries: Register<S32>), of sequence: Register<S32>, before end: Register<S32>
    ) -> Register<S32> {
      let keys = EmittedNumber(k: k, register: counts.keys)
      let queries = EmittedNumber(k: k, register: counts.queries)
      let places = rule.places(tiles: rule.tiles(length: keys, queries: queries))
        .multiplied(by: rule.units(queries: queries))
      return k.select(sequence .< end, places.register, k.constant(0, S32.self))
    }

    func places(of sequence: Register<S32>, before end: Register<S32>) -> Register<S32> {
      places(counts(of: sequence), of: sequence, before: end)
    }
  }

  private let k: KernelBuilder
  private let batch: Register<S32>
  private let lookup: Lookup
  private let lane: Register<U32>
  /// Where there is one.
  private let only: Sequence?
  /// The places of all sequences up to and with each lane's, where there are no more than lanes. (One register a lane: kernels keep it
  /// while they multiply.)
  private let ends: Register<S32>?
  /// The places of all sequences.
  let total: Register<S32>

  /// Sequences that are looked at at once where there are many: four for each lane.
  private static let atOnce = 4

  init(
    _ k: KernelBuilder, _ s: DecodeSpecialization, _ parameters: DecodeParameters, _ rule: WorkRule<EmittedNumber>,
    lane: Register<U32>
  ) {
    let (batch, lookup) = (parameters.batch, Lookup(k: k, table: SequenceTable(k, s, parameters), rule: rule))
    (self.k, self.batch, self.lookup, self.lane) = (k, batch, lookup, lane)
    let (own, zero) = (lane.reinterpreted(as: S32.self), k.constant(0, S32.self))
    switch s.sequences {
    case .one:
      let counts = lookup.counts(of: zero)
      only = Sequence(number: zero, keys: counts.keys, queries: counts.queries, before: zero)
      (ends, total) = (nil, lookup.places(counts, of: zero, before: batch))
    case .few:
      let ends = Self.sums(k, lookup.places(of: own, before: batch), lane: lane)
      (only, self.ends, total) = (nil, ends, k.shuffle(ends, lane: k.constant(31, U32.self)))
    case .many:
      let sum = k.variable(zero)
      k.loop(from: zero, to: batch, by: 32 * Self.atOnce) { start in
        // Loads first, so that they are under way together.
        let sequences = (0..<Self.atOnce).map { start + own + $0 * 32 }
        for (sequence, counts) in sequences.map({ ($0, lookup.counts(of: $0)) }) {
          k.set(sum, to: sum + lookup.places(counts, of: sequence, before: batch))
        }
      }
      (only, ends, total) = (nil, nil, Self.sum(k, sum))
    }
  }

  /// The sum of all lanes' numbers.
  private static func sum(_ k: KernelBuilder, _ number: Register<S32>) -> Register<S32> {
    [1, 2, 4, 8, 16].reduce(number) { $0 + k.shuffle($0, xor: $1) }
  }

  /// The sum of the numbers of each lane and those before it.
  private static func sums(_ k: KernelBuilder, _ number: Register<S32>, lane: Register<U32>) -> Register<S32> {
    [1, 2, 4, 8, 16].reduce(number) { k.select(lane .>= $1, $0 + k.shuffle($0, .up, by: $1), $0) }
  }

  /// A sequence; all lanes ask for the same.
  func sequence(_ number: Register<S32>) -> Sequence {
    if let only { return only }
    if ends != nil { return sequence(ofLane: number.reinterpreted(as: U32.self)) }
    let sum = k.variable(k.constant(0, S32.self))
    k.loop(from: k.constant(0, S32.self), to: number, by: 32) { start in
      k.set(sum, to: sum + lookup.places(of: start + lane.reinterpreted(as: S32.self), before: number))
    }
    return sequence(number, before: Self.sum(k, sum))
  }

  /// The sequence that a place belongs to, one of those that there are.
  func sequence(ofPlace place: Register<S32>) -> Sequence {
    if let only { return only }
    // Behind the last sequence, lanes end where it does.
    if let ends { return sequence(ofLane: k.population(k.ballot(ends .<= place))) }
    let zero = k.constant(0, S32.self)
    let (sequence, base) = (k.variable(zero), k.variable(zero))
    let isSearching = k.variable(k.constant(1, U32.self))
    k.loop(from: zero, to: batch, by: 32) { start in
      let own = lookup.places(of: start + lane.reinterpreted(as: S32.self), before: batch)
      let ends = Self.sums(k, own, lane: lane)
      let isBefore = (base + ends) .<= place
      let count = k.population(k.ballot(isBefore))
      let isFound = (isSearching .!= 0) & (count .< 32)
      // The places before the sequence: where it ends, less its own.
      let which = k.minimum(count, k.constant(31, U32.self))
      let beforeIt = k.shuffle(ends - own, lane: which)
      let ofAll = k.shuffle(ends, lane: k.constant(31, U32.self))
      k.set(sequence, to: k.select(isFound, start + count.reinterpreted(as: S32.self), sequence))
      let next = base + k.select(isFound, beforeIt, ofAll)
      k.set(base, to: k.select(isSearching .!= 0, next, base))
      k.set(isSearching, to: k.select(isFound, k.constant(0, U32.self), isSearching))
    }
    return self.sequence(sequence, before: base)
  }

  private func sequence(_ number: Register<S32>, before: Register<S32>) -> Sequence {
    let counts = lookup.counts(of: number)
    return Sequence(number: number, keys: counts.keys, queries: counts.queries, before: before)
  }

  /// The sequence of a lane: it begins where that of the lane before ends.
  private func sequence(ofLane which: Register<U32>) -> Sequence {
    let before = k.shuffle(ends!, lane: (which + 31) & 31)
    return sequence(
      which.reinterpreted(as: S32.self), before: k.select(which .== 0, k.constant(0, S32.self), before))
  }
}
