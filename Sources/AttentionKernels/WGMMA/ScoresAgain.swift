internal import PTX

/// S = Q K^T of a tile by one warp alone, for its own 16 rows: with `mma.sync`, from the same tiles of shared memory and in
/// the same order of sums as `wgmma`, which four warps must start together.
struct ScoresAgain {
  private let k: KernelBuilder
  private let s: HopperTiles
  private let queries, keys, turn: Register<U32>

  /// - Parameters:
  ///   - queries: where the block's tile of Q is.
  ///   - keys: where the group's keys are in the first stage of K.
  ///   - row: the warp's first row of Q in the tile, a multiple of 16.
  init(
    _ k: KernelBuilder, _ s: HopperTiles, queries: Register<U32>, keys: Register<U32>,
    row: Register<U32>
  ) {
    (self.k, self.s) = (k, s)
    let lane = k.special(.lane)
    // Matrices of 8 x 8: of Q first those of the rows, of K first those of the columns; chunks of 16 bytes are turned
    // by the row, of which eight have the pattern.
    self.queries = queries + (row + lane % 16) * 128
    self.keys = keys + (lane / 16 * 8 + lane % 8) * 128
    turn = lane % 8
  }

  /// Makes them, from a stage of K.
  func make(_ scores: Accumulators, stage: Register<U32>) {
    let (q, lane) = (s.queryTile, k.special(.lane))
    let keyTile = s.operands.keys
    let keys = keys + stage * keyTile.byteCount
    let inputs = s.inputs
    scores.clear(columnTiles: 0..<scores.columnTiles)
    k.loop(from: k.constant(0, U32.self), to: k.constant((s.dimension + 15) / 16, U32.self)) { step in
      let (slab, first) = (step / 4, (step % 4) * 2)
      let a = k.loadMatrix(
        count: 4, shared: queries + slab * q.slabByteCount + ((first + lane / 16) ^ turn) * 16)
      let column = keys + slab * keyTile.slabByteCount + ((first + (lane / 8) % 2) ^ turn) * 16
      for key in stride(from: 0, to: scores.columnTiles * 8, by: 16) {
        let b = k.loadMatrix(count: 4, shared: column, offset: key * 128)
        for block in 0..<2 {
          k.multiplyAdd(inputs, a: a, b: Array(b[2 * block..<2 * block + 2]), into: scores[0, key / 8 + block])
        }
      }
    }
    if s.isScaleNegative { for score in scores.registers { k.set(score, to: -score) } }
    // All lanes have read before one gives the stage back to the copy engine.
    k.proxyFence()
    k.warpBarrier()
  }
}
