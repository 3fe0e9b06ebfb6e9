internal import PTX

/// How weights and gradients of scores come from the products that made them to those that take them: as they lie in the
/// accumulators, where a warp has its rows alone; otherwise through shared memory.
final class OperandExchange {
  private let k: KernelBuilder
  private let s: BackwardSpecialization
  /// nil for what does not go through shared memory.
  private let writers: (weights: OperandTile?, gradients: OperandTile?)
  private let readers: (weights: QueryFragments?, gradients: QueryFragments?)
  private let kept: PackedQueries
  private let place: WarpPlace

  /// - Parameter kept: the rows of the block.
  init(
    _ k: KernelBuilder, _ s: BackwardSpecialization, _ memory: BackwardMemory, _ place: WarpPlace, kept: PackedQueries
  ) {
    (self.k, self.s, self.place, self.kept) = (k, s, place, kept)
    func writer(_ offset: Int) -> OperandTile {
      OperandTile(
        k, memory.operands, at: place.shared + offset, firstRow: place.firstRow,
        firstChunk: place.sharer * (s.cut.passingRowsPerWarp / 8), lane: place.lane)
    }
    func reader(_ offset: Int) -> QueryFragments {
      QueryFragments(
        k, memory.operands, at: place.shared + offset, firstRow: place.firstRow, lane: place.lane,
        rowTiles: s.cut.rowTilesPerWarp, areKept: false, isNegated: false)
    }
    writers = (
      s.exchangesWeights ? writer(memory.weightsOffset) : nil,
      s.exchangesGradients ? writer(memory.gradientsOffset) : nil
    )
    // Where a warp has its rows alone, it need not read what it wrote for dQ.
    readers = (
      s.exchangesWeights ? reader(memory.weightsOffset) : nil,
      s.exchangesGradients && s.cut.sharers > 1 ? reader(memory.gradientsOffset) : nil
    )
  }

  /// Writes the warp's weights, where others take them.
  func put(weights: Accumulators) { put(weights, writers.weights) }

  /// Writes the warp's gradients of scores, where others take them; to dQ, keys behind the last must not add, whatever their
  /// weights.
  func put(gradients: Accumulators) {
    if s.kind == .all {
      k.if((kept.firstRow + s.cut.rows) .> kept.count) {
        let rows = (0..<2 * gradients.rowTiles).map { kept.firstRow + place.firstRow + place.lane / 4 + $0 * 8 }
        let exist = rows.map { $0 .< kept.count }
        gradients.forEachPlace { rowTile, columnTile, element, row, _ in
          let value = gradients[rowTile, columnTile][element]
          k.set(value, to: k.select(exist[row], value, k.constant(0)))
        }
      }
    }
    put(gradients, writers.gradients)
  }

  private func put(_ values: Accumulators, _ tile: OperandTile?) {
    guard let tile else { return }
    for chunk in 0..<s.cut.passingRowsPerWarp / 16 {
      tile.put(values.operands(chunk: chunk, as: s.inputs), chunk: chunk)
    }
  }

  /// What is written is there for those who read it: warps that share rows, or, for dQ, all.
  func wait() {
    if s.kind == .all || s.cut.sharers == s.cut.warps { return k.barrier() }
    k.barrier(id: place.thread / (32 * s.cut.sharers) + 1, threads: 32 * s.cut.sharers)
  }

  /// The A operands of 16 rows that pass.
  func weights(_ chunk: Int, _ own: Accumulators) -> [[Register<U32>]] {
    readers.weights?.atStep(chunk) ?? own.operands(chunk: chunk, as: s.inputs)
  }

  /// The same of gradients of scores.
  func gradients(_ chunk: Int, _ own: Accumulators) -> [[Register<U32>]] {
    readers.gradients?.atStep(chunk) ?? own.operands(chunk: chunk, as: s.inputs)
  }
}
