internal import PTX

/// Some query rows of a head: the work that a block takes at once.
struct HopperItem {
  let batch, head, firstRow: Register<U32>
  /// N_q and N_k.
  let queries: Register<U32>
  let keys: Register<S32>
  /// The row of its sequence's first query, and the key on which that stands, where sequences have lengths of their own.
  let firstQuery: Register<U32>?
  let diagonal: Register<S32>?

  /// Words that a producer tells it in.
  static func wordCount(hasSequences: Bool) -> Int { hasSequences ? 6 : 3 }

  /// The words that it is told in, behind the one that says that it is there.
  var words: [Register<U32>] {
    [batch, head, firstRow]
      + (firstQuery.map { [$0, queries, keys.reinterpreted(as: U32.self)] } ?? [])
  }

  /// From those words.
  init(_ words: [Register<U32>], _ p: HopperForwardParameters, hasSequences: Bool) {
    (batch, head, firstRow) = (words[0], words[1], words[2])
    guard hasSequences else {
      (queries, keys, firstQuery, diagonal) = (p.queries, p.keys, nil, nil)
      return
    }
    (firstQuery, queries, keys) = (words[3], words[4], words[5].reinterpreted(as: S32.self))
    diagonal = keys - queries.reinterpreted(as: S32.self)
  }
}

/// Which items there are, and which of them is a block's next: the producer's, by all lanes of a warp, or by any one
/// (`producerIsWarp`).
final class HopperItemQueue {
  private let k: KernelBuilder
  private let s: HopperForwardSpecialization
  private let p: HopperForwardParameters
  private let lane: Register<U32>
  private let number: Register<U32>
  private let scan: SequenceScan?

  init(_ k: KernelBuilder, _ s: HopperForwardSpecialization, _ parameters: HopperForwardParameters) {
    (self.k, self.s, p) = (k, s, parameters)
    lane = k.special(.lane)
    number = k.variable(k.special(.blockX)).named("item")
    scan = s.hasSequences ? SequenceScan(k, parameters, itemRows: s.tiling.rows, lane: lane) : nil
  }

  /// The item at hand, where there is one, and its sequence, where that has a length of its own.
  func next() -> (isThere: Predicate, item: HopperItem, sequence: ForwardSequence?) {
    guard let scan else {
      let (head, row) = headAndRow(number, itemsPerHead: p.itemsPerHead, heads: p.allHeads)
      let batch = (head / p.queryHeads).named("batch")
      return (
        number .< p.items, HopperItem([batch, head - batch * p.queryHeads, row], p, hasSequences: false), nil
      )
    }
    let place = scan.find(number)
    let sequence = ForwardSequence(k, p.lists, queries: p.queries, keys: p.keys, batch: place.sequence)
    let perHead = k.maximum((sequence.queries + (s.tiling.rows - 1)) / s.tiling.rows, k.constant(1, U32.self))
    let (head, row) = headAndRow(number - place.firstItem, itemsPerHead: perHead, heads: p.queryHeads)
    return (
      number .< scan.end,
      HopperItem(
        [
          place.sequence, head, row, sequence.firstQuery, sequence.queries, sequence.keys.reinterpreted(as: U32.self),
        ], p, hasSequences: true), sequence
    )
  }

  /// Goes on to the item that is next: drawn by whoever comes first where the call has a counter; every so many as there are
  /// blocks where it has none.
  func advance(if isThere: Predicate) {
    let next = k.variable(number + k.special(.blocksX)).named("next_item")
    let hasCounter = p.counter .!= 0
    k.if(s.producerIsWarp ? hasCounter & (lane .== 0) : hasCounter) {
      k.if(isThere) {
        k.set(next, to: k.atomic(.add, global: p.counter, k.constant(1, U32.self)) + k.special(.blocksX))
      } else: {
        k.comment("whoever drew last leaves the counter as it was: each item is drawn but the first of each block")
        k.if(number .== (scan?.end ?? p.items) + k.special(.blocksX) - 1) {
          k.store(k.constant(0, U32.self), global: p.counter, ordering: .relaxed)
        }
      }
    }
    k.set(number, to: s.producerIsWarp ? k.shuffle(next, lane: k.constant(0, U32.self)) : next)
  }

  /// The head and the first row of an item, of those of some heads.
  private func headAndRow(
    _ number: Register<U32>, itemsPerHead: Register<U32>, heads: Register<U32>
  ) -> (Register<U32>, Register<U32>) {
    let (head, row): (Register<U32>, Register<U32>)
    if s.mask.limitsEnd {
      k.comment("item: some heads together, whose keys L2 holds; of these the rows that see the most keys come first")
      let place = HeadSections(k: k, size: p.headsOfSection).place(
        ofNumber: number, partsPerHead: itemsPerHead, heads: heads)
      (head, row) = (place.head, itemsPerHead - 1 - place.part)
    } else {
      k.comment("item: all rows of a head, head by head")
      (head, row) = (number / itemsPerHead, number % itemsPerHead)
    }
    return (head.named("head"), (row * s.tiling.rows).named("first_row"))
  }
}

/// Finds the sequence of an item where sequences have lengths of their own: items are numbered sequence by sequence, and the
/// numbers that are asked for ascend. A lane looks at a sequence, 32 at a time.
private struct SequenceScan {
  private let k: KernelBuilder
  private let p: HopperForwardParameters
  private let itemRows: Int
  private let lane: Register<U32>
  /// The first of the sequences at hand.
  private let first: Register<U32>
  /// Items of the lane's sequence, and of all up to it.
  private let own, ends: Register<U32>
  /// Behind the last item of the sequences at hand; of all, where an item was not found.
  let end: Register<U32>

  init(_ k: KernelBuilder, _ parameters: HopperForwardParameters, itemRows: Int, lane: Register<U32>) {
    (self.k, p, self.itemRows, self.lane) = (k, parameters, itemRows, lane)
    let zero = k.constant(0, U32.self)
    (first, own, ends, end) = (k.variable(zero), k.variable(zero), k.variable(zero), k.variable(zero))
    look(behind: zero)
  }

  private var last: Register<U32> { k.shuffle(ends, lane: k.constant(31, U32.self)) }

  /// Counts the items of the sequences at hand, behind so many of others.
  private func look(behind before: Register<U32>) {
    let sequence = first + lane
    let place = k.multiplyWide(k.minimum(sequence, p.batch - 1), 4)
    let queries = p.lists.queries(k, at: place, limit: p.queries).count
    let items = ((queries + (itemRows - 1)) / itemRows) * p.queryHeads
    k.set(own, to: k.select(sequence .< p.batch, items, k.constant(0, U32.self)))
    let sum = k.variable(own)
    for distance in [1, 2, 4, 8, 16] {
      let lower = k.shuffle(sum, .up, by: distance)
      k.set(sum, to: k.select(lane .>= distance, sum + lower, sum))
    }
    k.set(ends, to: before + sum)
  }

  /// Looks for an item: its sequence, and the first item of that; any sequence where there is no such item.
  func find(_ number: Register<U32>) -> (sequence: Register<U32>, firstItem: Register<U32>) {
    k.loop {
      let before = last
      let isBeyond = (number .>= before) & ((first + 32) .< p.batch)
      k.if(isBeyond) {
        k.set(first, to: first + 32)
        look(behind: before)
      }
      return isBeyond
    }
    k.set(end, to: last)
    let place = k.population(k.ballot(ends .<= number))
    return (k.minimum(first + place, p.batch - 1).named("sequence"), k.shuffle(ends - own, lane: place))
  }
}
