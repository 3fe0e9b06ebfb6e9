internal import Attention

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// What a call of Hopper's decode kernel takes, in seconds: its launch, the tiles of the busiest block, each as long as its
/// products and exponentials or its transfer take, whichever is longer, beside the conversion of its bytes, what begins and ends with a unit, and putting
/// parts together as `DecodeCost` has it.
///
/// Fitted to 56 times of an NVIDIA H200, 2026-11-30 (`bench decode --kernels hopper-decode --tiling ...`, D 128, 17 shapes of 64 and 128
/// rows by one group and two, in tiles of 64 and 128 keys, a launch behind: standard deviation 3.7%, before that launch lost another 0.4 us,
/// Documentation/GPULog.md); by hand what bytes cost, the day before and on 2026-12-01, and what halves do (`tune decode --all`, D 128).
enum HopperDecodeCost {
  /// Cycles of 64 rows for each that their products take on the tensor cores, for each that their exponentials take on the
  /// special-function units, and of a tile: of one group, and of each of two, who work beside each other.
  private static func cycles(groups: Int) -> (products: Double, exponentials: Double, tile: Double) {
    groups == 1 ? (0.88, 1.5, 390) : (0.85, 0.95, 250)
  }
  /// The part of the data sheet's bandwidth that is reached.
  private static let reached = 0.92
  /// Of a piece, and for each 64 rows and column of O that it leaves. Of bytes a second group costs less, since two are faster there (8
  /// sequences of 16448 keys, 128 rows, before small calls lost 2 us: 32.8 us, by one 35.5).
  private static func ends(ofBytes: Bool) -> (piece: Double, column: Double) {
    ofBytes ? (0.8e-6, 9e-9) : (0.35e-6, 12.7e-9)
  }

  /// Of a piece whose keys two groups divide, to put their halves together: 64 rows of bf16, which gain nothing otherwise, take 0.3 to 0.5 us
  /// longer so where calls are short.
  private static let merge = 0.5e-6

  static func cost(
    _ load: DecodeCost.Load, _ tiling: HopperDecodeTiling, _ s: DecodeSpecialization, _ problem: AttentionProblem,
    on gpu: GPULimits
  ) -> KernelCost {
    let (share, tiles, busy) = (Double(max(load.share, 1)), Double(max(load.tiles, 1)), Double(load.busyBlocks))
    let (keys, groups, halves) = (Double(tiling.tileKeys), Double(tiling.groups), Double(tiling.keyGroups))
    let columns = Double(problem.dimension + problem.valueDimension)
    let tileBytes = keys * columns * Double(problem.cacheType.byteCount)
    let rowBlocks = max((Double(problem.queries * problem.groupSize) / Double(tiling.rows)).rounded(.up), 1)
    let fresh = DecodeCost.freshness(
      share: share, tiles: tiles, rowBlocks: rowBlocks, inFlight: tileBytes * busy,
      cache: Double(problem.batch * problem.keyValueHeads) * tiles * tileBytes,
      keeping: DecodeCost.kept * Double(gpu.cacheBytes))
    let transfer = tileBytes * fresh * busy / (reached * max(gpu.bandwidth, 1))
    let cycles = cycles(groups: tiling.groups)
    let work =
      (Double(tiling.rowGroups) * (keys * columns / 32 * cycles.products + keys * 4 * cycles.exponentials) + groups
        * cycles.tile)
      / gpu.clock
    let wait = (work / 2 + DecodeCost.latency * (1 + fresh) / 2) / Double(tiling.stages)
    let converters = HopperDecodeSpecialization(problem, tiling, target: gpu.target).tiles.converters
    let conversion =
      converters == 0 ? 0 : TileConverter.cycles(bytes: keys * columns, groups: converters) / gpu.clock
    // Both go through shared memory: as long as the longer, and 2 to 4% more where they are nearly as long (32 and 64 rows over bytes).
    let beside = converters == 0 ? work : pow(pow(work, 10) + pow(conversion, 10), 0.1)
    let tile = max(beside, transfer, wait)
    let isWhole = DecodeCost.divides(tiles, share) || DecodeCost.divides(share, tiles)
    let pieces = (share / tiles).rounded(.up) + (isWhole || load.share <= 1 ? 0 : 1)
    let own = Self.ends(ofBytes: problem.cacheType == .e4m3)
    let ends =
      pieces
      * (own.piece + Double(tiling.rowGroups) * Double(problem.valueDimension) * own.column + (halves - 1) * merge)
      + work
    let combination = DecodeCost.combination(
      load, s, problem, on: gpu, blocks: 1, warps: groups * 4 + 4, last: DecodeCost.lastGroups)
    return KernelCost(
      [
        "launch": DecodeCost.launch, "work": share * work, "transfer": share * transfer,
        "conversion": share * conversion,
        "waits": share * wait, "ends": ends, "combination": combination,
      ], seconds: DecodeCost.launch + share * tile + ends + combination)
  }
}
