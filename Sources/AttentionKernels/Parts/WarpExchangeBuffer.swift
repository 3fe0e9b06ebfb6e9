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
    let tile = memory.weights
    let panel = tile.panels[0]
    let (group, pair) = (warp.lane / 4, warp.lane % 4)
    let firstChunk = warp.sharer * (tiling.keysPerWarp / 8)
    let place = tile.place(
      row: warp.firstRow + group, chunk: firstChunk % panel.width, width: panel.width, patternRow: group)
    var base = warp.shared + memory.weightsOffset + (place + pair * 4)
    if tile.panels.count > 1 { base = base + (firstChunk / panel.width) * (tile.rows * panel.rowBytes) }
    for (chunk, rowTiles) in weights.enumerated() {
      for (rowTile, fragment) in rowTiles.enumerated() {
        for i in 0..<4 {
          // a0, a1: rows g and g + 8 of the first 8 keys; a2, a3: of the second.
          let (address, offset) = tile.beside(base, chunks: 2 * chunk + i / 2)
          k.store(
            fragment[i], shared: address, offset: offset + (rowTile * 16 + i % 2 * 8) * panel.rowBytes)
        }
      }
    }
  }
}
