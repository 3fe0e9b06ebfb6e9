internal import PTX

/// Shared memory through which the warps that share rows tell each other what they know of these: a number for each row
/// and warp, and the weights of a tile.
struct WarpExchangeBuffer {
  private let k: KernelBuilder
  private let tiling: ForwardTiling
  private let memory: SharedMemoryPlan
  private let warp: WarpPlace
  private let statistics: Register<U32>
  private var rows: Int { tiling.rows }

  init(_ k: KernelBuilder, _ tiling: ForwardTiling, _ memory: SharedMemoryPlan, _ warp: WarpPlace) {
    (self.k, self.tiling, self.memory, self.warp) = (k, tiling, memory, warp)
    // The lane's first row; another for each 8.
    statistics = warp.shared + ((warp.firstRow + warp.lane / 4) * 4 + memory.statisticsOffset)
  }

  /// Tells the other warps a number for each of the lane's rows.
  func put(_ values: [Register<F32>]) {
    let own = statistics + warp.sharer * (rows * 4)
    k.if((warp.lane % 4) .== 0) {
      for (i, value) in values.enumerated() { k.store(value, shared: own, offset: i * 32) }
    }
  }

  /// What all warps told, after a barrier: for each of the lane's rows, combined.
  func combine(_ count: Int, _ operation: (Register<F32>, Register<F32>) -> Register<F32>) -> [Register<F32>] {
    (0..<count).map { i in
      let told = (0..<tiling.columnWarps).map { k.load(F32.self, shared: statistics, offset: $0 * rows * 4 + i * 32) }
      return told.dropFirst().reduce(told[0], operation)
    }
  }

  /// The sums of all warps; all must have read what was told before.
  func sum(_ values: [Register<F32>]) -> [Register<F32>] {
    put(values)
    k.barrier()
    return combine(values.count) { $0 + $1 }
  }

  /// Writes the weights of the warp's keys to their place in the tile of weights.
  func put(weights: [[[Register<U32>]]]) {
    let tile = OperandTile(
      k, memory.weights, at: warp.shared + memory.weightsOffset, firstRow: warp.firstRow,
      firstChunk: warp.sharer * (tiling.keysPerWarp / 8), lane: warp.lane)
    for (chunk, operands) in weights.enumerated() { tile.put(operands, chunk: chunk) }
  }
}
