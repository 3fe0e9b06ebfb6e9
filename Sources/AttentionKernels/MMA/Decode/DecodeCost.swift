internal import Attention

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// What a decode call takes, in seconds.
///
///     a step (a tile of the block): its work, the transfer of its K and V, or the wait for copies that were begun too late,
///                                   whichever is longest
///     a piece (the part of a unit that a block has): the first copies, which nothing runs beside; the merge of the key groups
///     a call: its launch, the steps of the busiest block, its pieces, and putting parts together
///
/// Fitted to 783 cases on two cards, an NVIDIA H100 (3.06 TB/s of reading) and an H200 (4.48), 2026-11-28: D 64, 128
/// and 256, from 1 to 4096 rows, pages, e4m3 caches, 11 167 launches of forced tilings (standard deviation 6.4%). What
/// it ranks first takes 1.013 times as long as the fastest measured, in the geometric mean (Documentation/GPULog.md).
/// Other GPUs are ranked by the same constants. What begins a call and what puts parts together was set anew on the H200 on
/// 2026-11-30.
enum DecodeCost {
  /// What blocks have to do.
  struct Load {
    /// Tiles of the block that has most.
    let share: Int
    /// Blocks that have some, of each wave.
    let busyBlocks: Int
    /// Waves: blocks that a place on a multiprocessor has one after the other.
    var waves = 1.0
    /// Tiles of a unit, of the longest sequence.
    let tiles: Int
    /// The most parts of a unit.
    let parts: Int
  }

  /// An empty kernel, since calls find their work in fewer instructions than when the rest was fitted (NVIDIA H200, 2026-11-30, `bench
  /// decode`: 1.4 to 2.5 us less than reckoned with 4.6 us, whatever the call).
  static let launch = 2.8e-6
  /// The part of the data sheet's bandwidth that is reached; and of the L2 cache, the part that keeps K and V for the
  /// next rows.
  static let reached = 0.93, kept = 0.56
  /// The part of a wave's time between the average block's end and the last one's, which other waves fill (NVIDIA H200,
  /// 2026-11-29, `bench decode`, batch 128, 1024 to 16384 keys; not fitted).
  private static let uneven = 0.04
  /// From memory to a block, and from the L2 cache.
  static let latency = 0.85e-6
  /// Cycles of a product, as `ForwardCost` has them, for 16 rows and a key; of the conversion of bytes; of exponentials
  /// and what goes with them; of a step whatever its size; of a byte that is copied by one row of warps; of a barrier
  /// among them.
  private static let product = 7.4 / 64, conversion = 0.13, exponentials = 2.0, step = 125.0, copied = 0.0145,
    barrier = 150.0
  /// Cycles of a step that waits for the number of its page; of one whose keys are on several, that wait, work, and work on 512 bytes
  /// of its rows (NVIDIA H200, 2026-11-30, `bench decode --page-size`, with tilings forced; by hand, not fitted).
  private static let waitForPage = 120.0, severalPages = (wait: 400.0, work: 130.0, perPass: 40.0)
  /// Cycles of 128 bytes from or to shared memory; and the part of the shorter terms that the longest does not cover.
  private static let pass = 0.88, uncovered = 0.25
  /// Of a piece; and of a row and a column of O for each group of warps, and for each part.
  private static let piece = 2.1e-6, merged = 2.5e-11, written = 1.1e-10
  /// The last block of a unit reads all of its parts, so many seconds a byte.
  private static let lastBlock = (fixed: 0.2e-6, perByte: 3e-11)
  /// The same of Hopper's kernels, whose warps that multiply alone do so (NVIDIA H200, 2026-11-30, `bench decode --kernels hopper-decode
  /// --tiling ...,combine=last`, six shapes of 64 and 128 rows; by hand).
  static let lastGroups = (fixed: 1.5e-6, perByte: 6e-11)
  /// A launch behind has a block for each row of all sequences, or, since the fit, for some; where the registers of more than
  /// four warps leave it no room, it cannot begin early (18.2 us with four warps, 19.6 with eight: NVIDIA H200, 2026-11-28, batch 4, 16/1
  /// heads, 4 queries, 16384 keys). Eight parts of a row are read at a time (2026-11-30: 4 to 128 parts of 64 and 128 rows); 0.4 us less in all
  /// since these are under way together.
  private static let launchBehind = (fixed: 1.0e-6, late: 1.0e-6, perBlock: 5.2e-9, perPart: 1e-8)

  static func cost(
    _ load: Load, _ s: DecodeSpecialization, _ problem: AttentionProblem, on gpu: GPULimits
  ) -> KernelCost {
    let tiling = s.tiling
    let rows = problem.queries * problem.groupSize
    let (share, tiles) = (Double(max(load.share, 1)) * load.waves, Double(max(load.tiles, 1)))
    let (busy, multiprocessors) = (Double(load.busyBlocks), Double(max(gpu.multiprocessors, 1)))
    let (groups, rowWarps, ahead) = (Double(tiling.keyGroups), Double(tiling.rowWarps), Double(tiling.stages - 1))
    let columns = Double(problem.dimension + problem.valueDimension)
    let stepBytes = Double(tiling.keysPerStep) * columns * Double(problem.cacheType.byteCount)
    let tileBytes = groups * stepBytes
    let blockRows = Double(tiling.rows)
    // Blocks of a multiprocessor that work at once, and warps that take turns on one of its four schedulers.
    let blocks = max(1, min(Double(tiling.blocksPerMultiprocessor), (busy / multiprocessors).rounded(.up)))
    let warps = blocks * Double(tiling.warps)
    let queue = max(warps / 4, 1)

    let fresh = freshness(
      share: share, tiles: tiles, rowBlocks: max((Double(rows) / blockRows).rounded(.up), 1),
      inFlight: tileBytes * busy,
      cache: Double(problem.batch * problem.keyValueHeads) * tiles * tileBytes, keeping: kept * Double(gpu.cacheBytes))
    let transfer =
      blocks * tileBytes * fresh * min(busy, multiprocessors)
      * (1 - uneven * (1 - 1 / load.waves)) / (reached * max(gpu.bandwidth, 1))
    let perColumn = product + (problem.cacheType == .e4m3 ? conversion : 0)
    let paging = paging(s, stepBytes: stepBytes / rowWarps)
    let compute = Double(tiling.keysPerStep) * (perColumn * columns / 2 + exponentials) + paging.work
    let copy = copied * stepBytes / rowWarps * queue
    let issue = max(step + paging.wait + compute, queue * compute) + copy
    let shared = pass * (warps * stepBytes + blocks * tileBytes) / 128
    let work =
      (max(issue, shared) + uncovered * min(issue, shared) + (tiling.rowWarps > 1 ? barrier : 0)) / gpu.clock
    // Little's law: what is under way is what is ahead.
    let wait = (work / 3 + latency * (1 + fresh) / 2) / ahead
    let stepSeconds = pow(pow(work, 6) + pow(transfer, 6) + pow(wait, 6), 1.0 / 6)

    let isWhole = load.waves > 1 || divides(tiles, share) || divides(share, tiles)
    let pieces = (share / tiles).rounded(.up) + (isWhole || load.share <= 1 ? 0 : 1)
    let pieceSeconds =
      piece + transfer + work - stepSeconds + min(ahead, share) * copy / gpu.clock
      + merged * groups * blockRows * Double(problem.valueDimension)
    let combination = combination(load, s, problem, on: gpu, blocks: blocks, warps: warps)
    // Blocks that share a multiprocessor hide each other's beginnings and ends.
    let ends = pieceSeconds * (1 + (pieces - 1) / blocks)
    return KernelCost(
      [
        "launch": launch, "work": share * work, "transfer": share * transfer, "waits": share * wait, "ends": ends,
        "combination": combination,
      ], seconds: launch + share * stepSeconds + ends + combination)
  }

  /// What finding pages adds to a step of a warp, in cycles.
  private static func paging(_ s: DecodeSpecialization, stepBytes: Double) -> (work: Double, wait: Double) {
    switch s.paging {
    case .none, .packed: return (0, 0)
    case .wholeSteps: return (0, waitForPage)
    case .anyPage: return (severalPages.work + severalPages.perPass * stepBytes / 512, severalPages.wait)
    }
  }

  /// What it takes to put parts together.
  ///
  /// - Parameters:
  ///   - blocks: those of a multiprocessor that work at once.
  ///   - warps: of all of them.
  ///   - lastBlock: what the last block of a unit takes.
  static func combination(
    _ load: Load, _ s: DecodeSpecialization, _ problem: AttentionProblem, on gpu: GPULimits, blocks: Double,
    warps: Double, last lastBlock: (fixed: Double, perByte: Double) = lastBlock
  ) -> Double {
    if load.parts <= 1 { return 0 }
    let (rows, blockRows) = (Double(problem.queries * problem.groupSize), Double(s.tiling.rows))
    let columns = Double(problem.valueDimension)
    let writing = written * blockRows * columns * blocks
    switch s.combination {
    case .caller: return writing
    case .lastBlock:
      return writing + lastBlock.fixed + lastBlock.perByte * Double(load.parts) * min(rows, blockRows) * columns * 4
    case .secondLaunch, .dependentLaunch:
      let grid = CombineGrid(
        s, heads: problem.batch * problem.keyValueHeads, rowsOfHead: problem.queries * problem.groupSize,
        after: Int(warps), on: gpu)
      return writing + launchBehind.fixed + (grid.beginsLate ? launchBehind.late : 0)
        + launchBehind.perBlock * Double(grid.blocks) + launchBehind.perPart * Double(load.parts)
    }
  }

  static func divides(_ a: Double, _ b: Double) -> Bool { b.truncatingRemainder(dividingBy: a) == 0 }

  /// The part of K and V that comes from memory and not from the L2 cache, where it may still be from the block of rows
  /// before: those that one block computes one after the other, and those that blocks compute side by side.
  static func freshness(
    share: Double, tiles: Double, rowBlocks: Double, inFlight: Double, cache: Double, keeping bytes: Double
  ) -> Double {
    func lost(_ distance: Double) -> Double {
      let filled = pow(min(distance * inFlight, cache) / max(bytes, 1), 4)
      return filled.isFinite ? filled / (1 + filled) : 1
    }
    let sequential = min(rowBlocks, max(1, share / tiles))
    let remainder =
      share >= tiles ? share.truncatingRemainder(dividingBy: tiles) : tiles.truncatingRemainder(dividingBy: share)
    let lag = min(remainder, min(share, tiles) - remainder)
    return (1 + (sequential - 1) * lost(tiles)) * (1 + (rowBlocks / sequential - 1) * lost(lag)) / rowBlocks
  }
}
