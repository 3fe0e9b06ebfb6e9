internal import PTX

/// Puts together the parts that several blocks made of one unit ("split-KV"): O = sum of w_i O_i, w_i = exp(LSE_i -
/// LSE).
///
/// Block i leaves a unit that it begins in place 2 i + 1, any other in place 2 i, so that the places of a unit are
/// known from the blocks that have its first and last tile. Splits of a fixed length have a place each.
final class SplitCombine {
  private let k: KernelBuilder
  private let s: DecodeSpecialization
  private let p: DecodeParameters
  /// Those of the unit.
  private let parts: WorkShare.Parts
  private var columns: Int { s.valueDimension }
  private var rowsOfPart: Int { s.tiling.rows }

  /// Parts whose loads are under way together, over all rows that a thread has at once.
  private static let atOnce = 8

  init(_ k: KernelBuilder, _ s: DecodeSpecialization, _ parameters: DecodeParameters, parts: WorkShare.Parts) {
    (self.k, self.s, p, self.parts) = (k, s, parameters, parts)
  }

  /// The number of the place of a part of the unit: a block's, or that of a split.
  private func placeNumber(of part: Register<S32>) -> Register<U32> {
    if s.hasFixedSplits { return part.reinterpreted(as: U32.self) }
    return (part * 2 + k.select(part .== parts.first, k.constant(1, S32.self), k.constant(0, S32.self)))
      .reinterpreted(as: U32.self)
  }

  private func partOutput(_ place: Register<U32>) -> Register<U64> {
    p.parts + k.multiplyWide(place, rowsOfPart * columns * 4)
  }

  private func partLogSumExps(_ place: Register<U32>) -> Register<U64> {
    p.partLogSumExps + k.multiplyWide(place, rowsOfPart * 4)
  }

  /// Where a part of the unit is left.
  func place(of part: Register<S32>) -> (output: Register<U64>, logSumExps: Register<U64>) {
    let place = placeNumber(of: part)
    return (partOutput(place), partLogSumExps(place))
  }

  /// Emits `combine` for the last block that has left its part of the unit; all threads see the parts of all.
  ///
  /// - Parameters:
  ///   - word: shared memory for a word.
  ///   - barrier: where all threads wait that left the part.
  func ifLast(
    _ unit: WorkShare.Unit, thread: Register<U32>, word: Register<U32>, barrier: () -> Void, _ combine: () -> Void
  ) {
    k.comment("the last block to arrive has all parts")
    barrier()
    let arrivals = p.arrivals + k.multiplyWide(unit.number.reinterpreted(as: U32.self), 4)
    let others = (parts.last - parts.first).reinterpreted(as: U32.self)
    k.if(thread .== 0) {
      // What all threads of the block wrote goes before it, what they will read comes behind.
      let before = k.atomic(.add, global: arrivals, k.constant(1, U32.self), ordering: .acquireRelease)
      k.store(before, shared: word)
    }
    barrier()
    k.if(k.load(U32.self, shared: word) .== others) {
      // For the next call.
      k.if(thread .== 0) { k.store(k.constant(0, U32.self), global: arrivals, ordering: .relaxed) }
      combine()
    }
  }

  /// Puts together all rows of the unit, shared out over the threads of a block.
  func storeSums(_ rows: UnitRows, thread: Register<U32>) {
    RowChunks(k: k, tiling: s.tiling, rows: rows.packed, chunks: s.outputChunks).forEach(thread: thread) {
      sums(places: $0, first: k.constant(0, S32.self), step: 1)
    } then: { place, sum in
      store(sum, rows, row: rows.packed.firstRow + place.row, chunk: place.chunk)
    }
  }

  /// The sum over parts of 4 columns of a row of the unit, for each of some places.
  ///
  /// - Parameters:
  ///   - places: the row of the unit's block of rows, and which 4 columns.
  ///   - first: counted from the unit's first part on, the first part that counts; of the others every `step`-th does.
  func sums(
    places: [RowChunks.Place], first: Register<S32>, step: Int
  ) -> [PartialSum] {
    let sums = places.map { _ in PartialSum(k) }
    let atOnce = Self.atOnce / places.count
    k.loop(from: parts.first + first, to: parts.last + 1, by: atOnce * step) { first in
      // Beyond the last part, the last one is read again and weighs nothing.
      let some = (0..<atOnce).map {
        (
          place: placeNumber(of: k.minimum(first + $0 * step, parts.last)),
          exists: (first + $0 * step) .<= parts.last
        )
      }
      let loaded = places.map { row, chunk in
        some.map { part, exists in
          (
            logSumExp: k.load(F32.self, global: partLogSumExps(part) + k.wide(row * 4)), exists: exists,
            values: k.load(F32.self, count: 4, global: partOutput(part) + k.wide(row * (columns * 4) + chunk * 16))
          )
        }
      }
      for (sum, some) in zip(sums, loaded) {
        sum.add(
          some.map { part in
            (maximum: k.select(part.exists, part.logSumExp, -.infinity), sum: k.constant(1), values: part.values)
          })
      }
    }
    return sums
  }

  /// Writes 4 columns of a row of O, and with the first of them its log-sum-exp.
  func store(_ result: PartialSum, _ rows: UnitRows, row own: Register<U32>, chunk: Register<U32>) {
    var results = result.normalized
    var logSumExp: Register<F32> { result.logSumExp(ln2: p.softmax.ln2.plain) }
    let withSink = AttentionSinks(k, p.sinkBase, type: s.sinkType).map {
      $0.with($0.sink(ofHead: rows.head(ofRow: own)), logSumExp: logSumExp)
    }
    if let withSink { results = results.map { $0 * withSink.factor } }
    let packed = [0, 2].map { s.inputs.pack(k, results[$0], results[$0 + 1]) }
    let base = rows.address(in: p.outputBase, p.outputStrides)
    k.store(packed, global: base + rows.packed.distance(ofRow: own, p.outputStrides) + k.wide(chunk * 8))
    k.if((p.logSumExpBase .!= 0) & (chunk .== 0)) {
      rows.store(logSumExp: withSink?.logSumExp ?? logSumExp, ofRow: own)
    }
  }
}
