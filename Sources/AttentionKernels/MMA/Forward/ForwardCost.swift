internal import PTX

/// What a tile of keys costs a block of a kernel, in cycles of a multiprocessor, term by term.
///
/// Each term is a count of what the kernel does, as the emulator counts it, times what one of them takes. The longest
/// of those that run beside each other counts in full, of the others the part that nothing covers; what all warps of a
/// block wait for counts less the more blocks there are.
///
/// The six constants were fitted on an NVIDIA H200, 2026-11-21, to 939 tilings of head dimensions from 64 to 1024 that
/// `flash-attention tune --json` measured (standard deviation 8%; what it ranks first is within 4% of the fastest at
/// each of them; Documentation/GPULog.md). Other GPUs are ranked by the same constants.
struct ForwardCost: Hashable, Sendable {
  /// Of a product of 16 x 8 x 16 on one of the four tensor cores; 6.4 alone.
  static let cyclesOfProduct = 7.4
  /// Of 128 bytes from or to shared memory.
  static let cyclesOfPass = 0.88
  /// Of 16 exponentials and the arithmetic that goes with their scores.
  static let cyclesOfExponentials = 2.0
  /// The part of the shorter terms that the longest does not cover.
  static let uncovered = 0.25
  /// Of a barrier, where only one block is there.
  static let cyclesOfBarrier = 197.0
  /// Of 64 bytes that are copied while nobody computes, where only one block is there.
  private static let cyclesOfExposedCopy = 0.55

  /// Of a launch, in seconds; how many times 1/clock a cycle takes; the part of the data sheet's bandwidth that is
  /// reached; and the part of the work, or of the reading, that the longer of the two does not cover. Fitted with
  /// `DecodeCost`, to tell which of the two families is faster: 809 cases on an H100 and an H200, 2026-11-28, 1.007
  /// times the faster one's time in the geometric mean and 1.15 at the most; standard deviation 8%
  /// (Documentation/GPULog.md). `DecodeCost` has less since 2026-11-30; what that moved from here to there was measured beside
  /// one tiling of Hopper's kernels alone.
  static let launch = 6.7e-6, sustained = 1.03
  private static let reached = 0.93, besideReading = 0.1

  /// Products on the tensor cores.
  let products: Double
  /// Passes of shared memory: fragments of Q, K, V and P, and what the copies write.
  let sharedMemory: Double
  /// Powers of two, and other arithmetic on scores.
  let exponentials: Double
  /// Barriers, and copies that nothing runs beside, for all blocks that share the multiprocessor.
  let waits: Double

  /// - Parameter blocks: how many are at work on a multiprocessor at once.
  init(_ s: ForwardSpecialization, blocks: Int) {
    let tiling = s.tiling
    let memory = SharedMemoryPlan(s)
    let (rows, keys, warps) = (Double(tiling.rows), Double(tiling.tileKeys), Double(tiling.warps))
    let columns = Double(tiling.columnWarps)
    let (depth, width) = (Double(memory.keys.chunks * 8), Double(s.columnsPerWarp) * columns)
    products = rows / 16 * keys / 8 * (depth + width) / 16 * Self.cyclesOfProduct / 4
    // `ldmatrix` of four matrices takes 4 passes; each warp reads the K and V that it multiplies, and its Q.
    let keyReads = warps * (keys / columns / 16) * depth / 16
    let valueReads = warps * keys / 16 * (width / columns) / 16
    let queryReads = tiling.keepsQueries ? 0 : rows / 16 * columns * depth / 16
    let weightReads = columns > 1 ? rows / 16 * columns * keys / 16 * 1.5 : 0
    let bytes = keys * (depth + width) * 2
    sharedMemory = (4 * (keyReads + valueReads + queryReads + weightReads) + bytes / 128) * Self.cyclesOfPass
    exponentials = rows * keys / 16 * Self.cyclesOfExponentials
    let items = tiling.sharing == .none ? 1 : memory.keySlices.count + tiling.slices
    let perItem = tiling.stages > 1 ? 1 : tiling.sharing == .none ? 3 : 2
    let exchanges = columns == 1 ? 0 : tiling.sharing == .none && tiling.stages > 1 ? 2 : 1
    let blocks = Double(blocks)
    let exposed = tiling.stages > 1 ? 0 : bytes / 64 * Self.cyclesOfExposedCopy
    waits = (Double(items * perItem + exchanges) * Self.cyclesOfBarrier + exposed) / (blocks * blocks)
  }

  /// A call whose busiest multiprocessor works on so many tiles, one after the other.
  ///
  /// - Parameter bytes: of K and V, which come from memory once at least.
  func cost(tiles: Double, bytes: Double, on gpu: GPULimits) -> KernelCost {
    let seconds = tiles / gpu.clock * Self.sustained
    let terms = [products, sharedMemory, exponentials]
    let longest = max(products, sharedMemory, exponentials)
    let work = (longest + (terms.reduce(0, +) - longest) * Self.uncovered + waits) * seconds
    let reading = bytes / (Self.reached * max(gpu.bandwidth, 1))
    return KernelCost(
      [
        "launch": Self.launch, "products": products * seconds, "shared memory": sharedMemory * seconds,
        "exponentials": exponentials * seconds, "waits": waits * seconds, "reading": reading,
      ], seconds: Self.launch + max(work, reading) + Self.besideReading * min(work, reading))
  }
}

extension ForwardSpecialization {
  /// Blocks of this kernel that fit a multiprocessor, by shared memory, registers and warps.
  func blocksThatFit(_ gpu: GPULimits) -> Int {
    let byMemory = gpu.sharedBytesPerMultiprocessor / (SharedMemoryPlan(self).byteCount + 1024)
    // Some to spare, so that nothing spills where fewer than 255 are to be had.
    let byRegisters = 65536 / (tiling.threads * ((min(registerEstimate(on: gpu) + 16, 255) + 7) / 8 * 8))
    return max(1, min(byMemory, byRegisters, 48 / tiling.warps))
  }
}
