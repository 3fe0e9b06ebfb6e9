internal import PTX

/// Puts together what the groups of a block made of their keys: their maxima are agreed on, and O is summed through
/// shared memory.
final class KeyGroupMerge {
  private let k: KernelBuilder
  private let s: DecodeSpecialization
  private let memory: DecodeMemoryPlan
  private let parameters: DecodeParameters
  private let warp: WarpPlace
  private let rows: UnitRows
  /// What O is multiplied by, beside 1 over the sums; nil for nothing.
  private let scale: Register<F32>?
  private let ln2: SoftmaxParameters.NaturalLogarithm
  private let ownRows: [Register<U32>]
  /// Where O of the groups and the rows' numbers are.
  private let region, statistics: Register<U32>

  private var tiling: DecodeTiling { s.tiling }

  init(
    _ k: KernelBuilder, _ s: DecodeSpecialization, _ memory: DecodeMemoryPlan, _ parameters: DecodeParameters,
    _ warp: WarpPlace, rows: UnitRows, ownRows: [Register<U32>], scales: CacheScales
  ) {
    (self.k, self.s, self.memory, self.parameters, self.warp) = (k, s, memory, parameters, warp)
    (self.rows, self.ownRows, scale, ln2) = (rows, ownRows, scales.values, scales.softmax.ln2)
    region = warp.shared + memory.ringOffset
    statistics = warp.shared + memory.statisticsOffset
  }

  /// A group's numbers for its rows, or all groups' for the lane's rows.
  private func put(_ values: [Register<F32>], offset: Int) {
    let own = statistics + (warp.sharer * tiling.rows + warp.firstRow + warp.lane / 4) * 4
    k.if((warp.lane % 4) .== 0) {
      for (i, value) in values.enumerated() { k.store(value, shared: own, offset: offset + i * 32) }
    }
  }

  private func get(
    offset: Int, _ operation: (Register<F32>, Register<F32>) -> Register<F32>
  ) -> [Register<F32>] {
    let first = statistics + (warp.firstRow + warp.lane / 4) * 4
    return ownRows.indices.map { i in
      let told = (0..<tiling.keyGroups).map {
        k.load(F32.self, shared: first, offset: offset + $0 * tiling.rows * 4 + i * 32)
      }
      return told.dropFirst().reduce(told[0], operation)
    }
  }

  /// Brings the groups' O and sums to common maxima, and into shared memory. The ring is free after it.
  func merge(_ output: Accumulators, _ columns: WarpProducts.LaneColumns, _ softmax: OnlineSoftmax) {
    k.comment("the groups agree on maxima; their O and sums go through shared memory")
    put(softmax.ownMaxima, offset: 0)
    k.barrier()
    softmax.adopt(get(offset: 0) { k.maximum($0, $1) }, rescaling: output)
    put(softmax.sumsOverLanes(), offset: memory.statisticsByteCount)
    let (group, place) = (warp.lane / 4, warp.lane % 4)
    let own =
      region + warp.sharer * memory.outputByteCount
      + ((warp.firstRow + group) * (memory.rowWords * 4) + place * (columns.width * 4))
    for rowTile in 0..<output.rowTiles {
      for half in 0..<2 {
        for (column, values) in columns.values(rowTile, half) {
          k.store(values, shared: own, offset: (rowTile * 16 + half * 8) * memory.rowWords * 4 + column * 4)
        }
      }
    }
    k.barrier()
  }

  /// The log-sum-exps of the lane's rows; right after `merge`.
  private func logSumExps(_ softmax: OnlineSoftmax) -> [Register<F32>] {
    softmax.logSumExps(get(offset: memory.statisticsByteCount) { $0 + $1 }, ln2: ln2)
  }

  /// The log-sum-exps of the lane's rows with their sinks; what the rows' outputs are multiplied by then lies where their maxima
  /// did.
  private func logSumExps(_ softmax: OnlineSoftmax, with sinks: AttentionSinks) -> [Register<F32>] {
    k.comment("sinks: in the denominator, without a value")
    let finished = zip(logSumExps(softmax), ownRows).map {
      sinks.with(sinks.sink(ofHead: rows.head(ofRow: $1)), logSumExp: $0)
    }
    put(finished.map(\.factor), offset: 0)
    k.barrier()
    return finished.map(\.logSumExp)
  }

  /// Calls `body` with each chunk of 4 columns of each row that exists, shared out over the threads, and O there.
  private func forEachChunk(
    _ body: (_ row: Register<U32>, _ chunk: Register<U32>, _ values: [Register<F32>]) -> Void
  ) {
    RowChunks(k: k, tiling: tiling, rows: rows.packed, chunks: s.outputChunks).forEach(thread: warp.thread) {
      $0.map { output(row: $0.row, chunk: $0.chunk) }
    } then: {
      body($0.row, $0.chunk, $1)
    }
  }

  /// O in a chunk of a row, summed over the groups and divided by the row's sum of weights.
  private func output(row: Register<U32>, chunk: Register<U32>) -> [Register<F32>] {
    let place = region + row * (memory.rowWords * 4) + chunk * 16
    var sums: [Register<F32>] = []
    for group in 0..<tiling.keyGroups {
      let parts = k.load(F32.self, count: 4, shared: place, offset: group * memory.outputByteCount)
      sums = sums.isEmpty ? parts : zip(sums, parts).map { $0 + $1 }
    }
    let weights = (0..<tiling.keyGroups).map {
      k.load(
        F32.self, shared: statistics + row * 4, offset: memory.statisticsByteCount + $0 * tiling.rows * 4)
    }
    let total = weights.dropFirst().reduce(weights[0]) { $0 + $1 }
    // Chosen, not multiplied: what a row without keys holds may be anything.
    let (hasKeys, inverse) = (total .!= 0, k.reciprocal(total))
    let factor = scale.map { inverse * $0 } ?? inverse
    return sums.map { k.select(hasKeys, $0 * factor, 0) }
  }

  /// Writes O, and the log-sum-exps where somebody wants them.
  func storeOutput(_ softmax: OnlineSoftmax) {
    k.comment("all tiles of the unit were here: O")
    let (p, packed) = (parameters, rows.packed)
    let base = rows.address(in: p.outputBase, p.outputStrides)
    let withSinks = AttentionSinks(k, p.sinkBase, type: s.sinkType).map { logSumExps(softmax, with: $0) }
    forEachChunk { row, chunk, values in
      var values = values
      if withSinks != nil {
        let factor = k.load(F32.self, shared: statistics + row * 4)
        values = values.map { $0 * factor }
      }
      let words = [0, 2].map { s.inputs.pack(k, values[$0], values[$0 + 1]) }
      k.store(words, global: base + packed.distance(ofRow: packed.firstRow + row, p.outputStrides) + k.wide(chunk * 8))
    }
    k.if((p.logSumExpBase .!= 0) & (warp.sharer .== 0) & ((warp.lane % 4) .== 0)) {
      for (value, row) in zip(withSinks ?? logSumExps(softmax), ownRows) {
        k.if(row .< packed.count) { rows.store(logSumExp: value, ofRow: row) }
      }
    }
  }

  /// Leaves a part of a unit to the caller; the first one also says that there are none behind the last.
  func leavePart(_ softmax: OnlineSoftmax, part: Register<S32>, of parts: WorkShare.Parts) {
    k.comment("a part of the unit, for the caller")
    let (p, packed) = (parameters, rows.packed)
    let number = (part - parts.first).reinterpreted(as: U32.self)
    let own = rows.ofPart(number)
    let base = own.address(in: p.outputBase, p.outputStrides)
    forEachChunk { row, chunk, values in
      k.store(
        values, global: base + packed.distance(ofRow: packed.firstRow + row, p.outputStrides) + k.wide(chunk * 16))
    }
    k.if((warp.sharer .== 0) & ((warp.lane % 4) .== 0)) {
      for (value, row) in zip(logSumExps(softmax), ownRows) {
        k.if(row .< packed.count) {
          own.store(logSumExp: value, ofRow: row)
          k.if(number .== 0) {
            let behind = (parts.last - parts.first + 1).reinterpreted(as: U32.self)
            k.loop(from: behind, to: p.leftParts) { other in
              rows.ofPart(other).store(logSumExp: k.constant(-.infinity), ofRow: row)
            }
          }
        }
      }
    }
  }

  /// Writes a part of a unit: O divided by its own sums, f32, and its log-sum-exps.
  func storePart(_ softmax: OnlineSoftmax, output: Register<U64>, logSumExps place: Register<U64>) {
    k.comment("a part of the unit")
    forEachChunk { row, chunk, values in
      k.store(values, global: output + k.wide(row * (s.valueDimension * 4) + chunk * 16))
    }
    k.if((warp.sharer .== 0) & ((warp.lane % 4) .== 0)) {
      let own = place + k.wide((warp.firstRow + warp.lane / 4) * 4)
      for (i, value) in logSumExps(softmax).enumerated() { k.store(value, global: own, offset: i * 32) }
    }
  }
}
