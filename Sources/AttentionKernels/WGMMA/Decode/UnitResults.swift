internal import PTX

/// What a group of four warps made of its rows of a unit, in registers: O, already divided by its sums, and its
/// log-sum-exps.
struct UnitResults {
  let k: KernelBuilder
  let rows: UnitRows
  /// The lane's rows of the pack.
  let ownRows: [Register<U32>]
  let output: Accumulators
  let logSumExps: [Register<F32>]
  let lane: Register<U32>

  /// Writes O, and the log-sum-exps where somebody wants them, with the rows' sinks.
  func store(_ s: DecodeSpecialization, warpRow: Register<U32>, _ p: DecodeParameters) {
    let logSumExps =
      AttentionSinks(k, p.sinkBase, type: s.sinkType)?
      .finish(output, logSumExps) { rows.head(ofRow: ownRows[$0]) } ?? logSumExps
    let epilogue = Epilogue(
      k: k, inputs: s.inputs, tile: SharedTile(rows: 64, columns: output.columnTiles * 8),
      firstRow: warpRow, lane: lane, rows: rows.packed)
    epilogue.store(output, to: rows.address(in: p.outputBase, p.outputStrides), p.outputStrides, .byShuffles)
    k.if((p.logSumExpBase .!= 0) & ((lane % 4) .== 0)) {
      for (value, row) in zip(logSumExps, ownRows) {
        k.if(row .< rows.packed.count) { rows.store(logSumExp: value, ofRow: row) }
      }
    }
  }

  /// Writes a part of a unit, f32.
  ///
  /// - Parameter first: the warp's first row of the unit's block.
  func storePart(
    _ place: (output: Register<U64>, logSumExps: Register<U64>), from first: Register<U32>
  ) {
    k.comment("a part of the unit")
    let columns = output.columnTiles * 8
    for (half, row) in ownRows.enumerated() {
      k.if(row .< rows.packed.count) {
        let own = place.output + k.wide((first + lane / 4 + half * 8) * (columns * 4) + (lane % 4) * 8)
        for column in 0..<output.columnTiles {
          let elements = output[0, column]
          k.store([elements[2 * half], elements[2 * half + 1]], global: own, offset: column * 32)
        }
      }
    }
    let own = place.logSumExps + k.wide((first + lane / 4) * 4)
    k.if((lane % 4) .== 0) {
      for (half, value) in logSumExps.enumerated() { k.store(value, global: own, offset: half * 32) }
    }
  }
}
