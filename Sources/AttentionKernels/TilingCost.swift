internal import PTX

/// What a tile of keys costs a block of a kernel, in cycles of a multiprocessor, term by term.
///
/// Each term is a count of what the kernel does (as the emulator counts it) times what one of them takes; `cycles` puts them
/// together. Fitted on one NVIDIA H200, 2026-11-21 (Documentation/GPULog.md), by `flash-attention tune --json`.
public struct TilingCost: Hashable, Sendable {
  /// Products on the tensor cores.
  public let products: Double
  /// Passes of shared memory: fragments of Q, K, V and P, and what the copies write.
  public let sharedMemory: Double
  /// Powers of two.
  public let exponentials: Double
  /// Other arithmetic on scores, and instructions that copy.
  public let arithmetic: Double
  /// Barriers and waits of a tile.
  public let barriers: Double
  /// Warps on each of a multiprocessor's four schedulers.
  public let warpsPerScheduler: Double
  /// Blocks that fit a multiprocessor.
  public let blocks: Int

  init(_ s: ForwardSpecialization, on gpu: GPULimits) {
    let tiling = s.tiling
    let memory = SharedMemoryPlan(s)
    let (rows, keys, warps) = (Double(tiling.rows), Double(tiling.tileKeys), Double(tiling.warps))
    let (depth, width) = (Double(memory.keys.chunks * 8), Double(s.columnsPerWarp * tiling.columnWarps))
    // 16 x 8 x 16 at a time, 6.4 cycles on one of four tensor cores.
    products = rows / 16 * keys / 8 * (depth + width) / 16 * 6.4 / 4
    // 512 bytes of four matrices in 4 passes; each warp reads the K and V that it multiplies, and its Q.
    let columns = Double(tiling.columnWarps)
    let keyReads = warps * (keys / columns / 16) * depth / 16
    let valueReads = warps * keys / 16 * (width / columns) / 16
    let queryReads = tiling.keepsQueries ? 0 : rows / 16 * columns * depth / 16
    let weightReads = columns > 1 ? rows / 16 * columns * keys / 16 * 1.5 : 0
    sharedMemory = 4 * (keyReads + valueReads + queryReads + weightReads) + keys * (depth + width) * 2 / 128
    exponentials = rows * keys / 16
    arithmetic = rows * keys / 128 * 7 + keys * (depth + width) / 8 / 32 * 8 / 4
    let items = tiling.sharing == .none ? 1 : memory.keySlices.count + tiling.slices
    let perItem = tiling.stages == 1 ? (tiling.sharing == .none ? 3 : 2) : 1
    let exchanges = columns == 1 ? 0 : tiling.sharing == .none && tiling.stages > 1 ? 2 : 1
    barriers = Double(items * perItem + exchanges)
    blocks = s.blocksThatFit(gpu)
    warpsPerScheduler = Double(blocks) * warps / 4
  }
}

extension ForwardSpecialization {
  /// Blocks of this kernel that fit a multiprocessor, by shared memory and registers.
  func blocksThatFit(_ gpu: GPULimits) -> Int {
    let byMemory = gpu.sharedBytesPerMultiprocessor / (SharedMemoryPlan(self).byteCount + 1024)
    let byRegisters = 65536 / (tiling.threads * ((registerEstimate + 7) / 8 * 8))
    return max(1, min(byMemory, byRegisters, 48 / tiling.warps))
  }
}

extension TilingCost {
  /// Cycles of a multiprocessor for a tile of one block, while as many others as fit are at work beside it.
  public var cycles: Double {
    let work = [products, sharedMemory, exponentials, arithmetic]
    let longest = work.max()!
    let overlap = 1 / warpsPerScheduler
    return longest + (work.reduce(0, +) - longest) * min(1, overlap) + barriers * 60 / Double(blocks)
  }
}
