internal import PTX

extension ForwardSpecialization {
  /// What stands against this kernel on a GPU, as the end of a sentence about its tiling; nil where nothing does.
  package func obstacle(on gpu: GPULimits) -> String? {
    if tiling.sums == .f16 && inputs == .bf16 {
      return "has sums in f16, which the tensor cores make of f16 inputs alone"
    }
    if tiling.sharing == .queriesKeysAndValues && !tiling.keepsQueries {
      return "puts K and V where Q was, so Q must be in registers (queries=registers)"
    }
    if tiling.warps % 2 != 0 { return "has \(tiling.warps) warps; copies are shared out over an even number" }
    if tiling.slices > 1 && tiling.sharing == .none {
      return "has slices, which K and V come in only where they share memory (a rung with shared-kv or shared-qkv)"
    }
    if tiling.tileKeys % (16 * tiling.slices) != 0 {
      return "cuts \(tiling.tileKeys) keys into \(tiling.slices) slices; the keys of a slice are a multiple of 16"
    }
    let columns = tiling.columnWarps
    if tiling.warps % columns != 0 {
      return "lets \(columns) warps share rows; the \(tiling.warps) warps of a block are no multiple of that"
    }
    if columns > 1 && (tiling.tileKeys % (16 * columns) != 0 || tiling.tileKeys.nonzeroBitCount != 1) {
      return "shares \(tiling.tileKeys) keys out over \(columns) warps; the keys of a tile must be a power of two, and "
        + "16 or more for each"
    }
    let memory = SharedMemoryPlan(self).byteCount
    if memory > gpu.sharedBytesPerBlock {
      return "needs \(memory) bytes of shared memory; a block of this GPU has \(gpu.sharedBytesPerBlock)"
    }
    let registers = registerEstimate(on: gpu)
    if registers > registerLimit {
      return "needs about \(registers) registers a thread for \(registerUse); there are 255"
    }
    return nil
  }

  /// Registers of a thread that hold O, S and Q.
  private var matrixRegisters: (output: Int, scores: Int, queries: Int) {
    let tiles = tiling.rowTilesPerWarp
    let halves = tiling.sums == .f16 ? 2 : 0
    return (
      tiles * columnsPerWarp / 2, tiles * tiling.keysPerWarp / 8 * (4 + halves),
      tiling.keepsQueries ? tiles * paddedDimension / 4 : 0
    )
  }

  private var registerUse: String {
    let (output, scores, queries) = matrixRegisters
    return "O (\(output)), S (\(scores))" + (queries > 0 ? ", Q (\(queries))" : "") + " and the rest"
  }

  /// Registers that a thread will take, about; what is not O, S and Q was fitted to what ptxas 13.0 makes of 300
  /// kernels.
  func registerEstimate(on gpu: GPULimits) -> Int {
    let (output, scores, queries) = matrixRegisters
    let fragments = tiling.keepsQueries ? 0 : (gpu.target < .sm90 ? 10 : 4) * tiling.rowTilesPerWarp
    let panels = 10 * (SharedTile(rows: 16, columns: dimension).widths.count - 1)
    let maskOrCap = mask.limitsFirst || hasSoftcap ? 24 : 0
    let (isGrouped, isOdd) = (groupSize > 1, dimension % 16 != 0)
    let steps = min(max(dimension, valueDimension), 320) / 16
    // Few threads copy more each.
    let copies = tiling.warps <= 4 ? steps / 2 : 0
    let columns = (isGrouped ? 2 * steps - 1 + (isOdd ? 12 : 0) : steps) + copies
    return output + scores + queries + fragments + panels + columns + maskOrCap + 54
  }

  /// Where O takes most registers, it is better to let go of a few that are needed once a tile than to make tiles
  /// smaller: at D 512 on an H200, 363 TFLOPS with 24 bytes spilled, 296 with none (Documentation/GPULog.md).
  private var registerLimit: Int { max(dimension, valueDimension) > 256 ? 280 : 255 }
}
