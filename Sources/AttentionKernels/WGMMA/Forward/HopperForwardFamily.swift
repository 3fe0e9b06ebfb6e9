package import Attention
internal import PTX

/// The kernels of prefill on Hopper: the copy engine and `wgmma`, blocks that take item after item: some queries of one head
/// and all their keys.
package enum HopperForwardFamily: KernelFamily {
  package static let name = "hopper"
  package static let architecture = Architecture.exactly(90)

  package static func limitation(for problem: AttentionProblem) -> String? {
    if max(problem.dimension, problem.valueDimension) > 256 { return "head dimensions above 256" }
    // A tile has the next sequence's queries behind a sequence's last, whose maxima decide with the others when all follow.
    if problem.keysPerSplit != nil && problem.packedQueries != nil {
      return "packed queries that do not touch each other's bits"
    }
    return ForwardFamily.commonLimitation(for: problem)
  }

  package static func check(_ problem: AttentionProblem, on gpu: GPULimits) throws(AttentionError) {
    _ = try Matrix.Inputs(of: problem.scalarType)
    try GPULimits.check(
      dimension: problem.dimension, valueDimension: problem.valueDimension, path: "GPU path", limit: 256)
    try GPULimits.check(bytesOf: problem, limit: 256)
    try GPULimits.check(counts: [
      ("queries", [problem.queries]), ("keys", [problem.keys]), ("batch x heads", [problem.batch, problem.queryHeads]),
    ])
    if !problem.hasWholeKeys { try GPULimits.check(placesOf: problem) }
  }

  package static func tilings(for problem: AttentionProblem, on gpu: GPULimits) -> [HopperForwardTiling] {
    // Of a tile of 128 rows or more the most would be empty.
    if problem.queries < 64 { return [] }
    let sizes =
      problem.cacheType == .e4m3 ? [(2, TileConverter.rows), (3, [64])] : [(2, [64, 80, 128]), (3, [64, 96, 128])]
    return sizes.flatMap { groups, keys in
      keys.map { keys in
        // As many stages as there is room for: two of Q first, so that the next item's comes early.
        let stages = [(2, 4), (2, 3), (2, 2), (1, 3), (1, 2)].map { ofQueries, ofKeys in
          HopperForwardTiling(groups: groups, tileKeys: keys, stages: ofKeys, queryStages: ofQueries)
        }
        return stages.first {
          HopperForwardSpecialization(problem, $0).sharedByteCount <= gpu.sharedBytesPerBlock
        } ?? stages[stages.count - 1]
      }
    }
  }

  package static func obstacle(
    to tiling: HopperForwardTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) -> String? { HopperForwardSpecialization(problem, tiling).obstacle(on: gpu) }

  package static func launches(
    _ tiling: HopperForwardTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) throws(AttentionError) -> LaunchSequence {
    let specialization = HopperForwardSpecialization(problem, tiling)
    let launch = HopperForwardLaunch(problem: problem, tiling: tiling)
    guard launch.items <= Int32.max else {
      throw .lengthOnDevice(
        tensor: "batch x heads x query tiles", length: launch.items, device: "GPU", limit: Int(Int32.max))
    }
    let own = LaunchSequence(
      [
        LaunchSequence.Launch(
          HopperForwardKernel(specialization), blocks: launch.blocks(on: gpu), threads: specialization.tiles.threads,
          sharedByteCount: specialization.sharedByteCount,
          arguments: ArgumentTemplate(HopperForwardParameters.all(problem), for: launch))
      ], counterByteCount: launch.items > launch.blocks(on: gpu) ? 4 : 0)
    if problem.pages == nil && problem.cacheType == problem.scalarType { return own }
    // Calls over pages, or bytes, whose strides the copy engine does not take run by the kernels of decoding, in their workspace.
    return own.withRoom(
      for: try KernelPlan(problem, on: gpu, options: KernelOptions(family: DecodeFamily.name)).launches)
  }

  // MARK: - Cost

  /// Cycles of 64 rows of an item: of a tile, for each that its products take on the tensor cores, for each that its
  /// exponentials take on the special-function units, and for the tile; of a column of O; of the item. Fitted on an NVIDIA
  /// H200, 2026-11-28, to D 64, 128 and 256, N 512 to 8192, causal and not, within 5% (`tune --family hopper`;
  /// Documentation/GPULog.md).
  private static func cycles(
    groups: Int
  ) -> (products: Double, exponentials: Double, tile: Double, column: Double, item: Double) {
    groups == 2 ? (0.784, 0.736, 145, 15.1, 611) : (0.638, 0.870, 62, 12.1, 829)
  }
  /// Of a launch, and the part of the data sheet's bandwidth that is reached: as the other kernels have them.
  private static let launch = 6.7e-6, reached = 0.93

  package static func cost(
    of tiling: HopperForwardTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) -> KernelCost {
    let launch = HopperForwardLaunch(problem: problem, tiling: tiling)
    // Groups of 64 rows that there are, all of them and on the one multiprocessor that is the last to end. Items of a mask are
    // the smaller the later they come; half an item then is what others wait for.
    let groups = Double(problem.batch * problem.queryHeads * ((problem.queries + 63) / 64))
    let items = Double(launch.items) / Double(max(gpu.multiprocessors, 1))
    let edges = MaskEdges(problem)
    let waves = edges.limitsEnd && items > 1 ? items + 0.5 : items.rounded(.up)
    let perMultiprocessor = waves * groups / max(Double(launch.items), 1)
    let tiles = tilesOfGroup(tiling, problem, edges, areMany: items > 1)
    let cycles = cycles(groups: tiling.groups)
    let keys = Double(tiling.tileKeys)
    let width = Double((problem.dimension + 15) / 16 * 16 + problem.valueDimension)
    let seconds = perMultiprocessor / gpu.clock
    let products = tiles * keys * width / 32 * cycles.products * seconds
    let exponentials = tiles * (keys * 4 * cycles.exponentials + cycles.tile) * seconds
    // One group converts for all that multiply.
    let conversion =
      problem.cacheType == .e4m3
      ? tiles * TileConverter.cycles(bytes: keys * Double(problem.dimension + problem.valueDimension), groups: 1)
        * seconds
        / Double(tiling.groups) : 0
    let ends = (cycles.item + Double(problem.valueDimension) * cycles.column) * seconds
    let bytes =
      problem.keyValueHeads * problem.plannedKeys * problem.cacheType.byteCount
      + problem.queryHeads * problem.queries * problem.scalarType.byteCount
    let reading =
      Double(problem.batch) * Double(bytes) * Double(problem.dimension + problem.valueDimension)
      / (Self.reached * max(gpu.bandwidth, 1))
    return KernelCost(
      [
        "launch": Self.launch, "products": products, "exponentials": exponentials, "conversion": conversion,
        "items": ends,
        "reading": reading,
      ], seconds: Self.launch + max(max(products + exponentials, conversion) + ends, reading))
  }

  /// The tiles that 64 rows see, on the average, or at most where no multiprocessor has more than one item. Each edge of a
  /// mask goes through some tiles, of which rows see a part only.
  private static func tilesOfGroup(
    _ tiling: HopperForwardTiling, _ problem: AttentionProblem, _ edges: MaskEdges, areMany: Bool
  ) -> Double {
    let keys = Double(tiling.tileKeys)
    let all = (Double(max(problem.plannedKeys, 1)) / keys).rounded(.up)
    let limits = (edges.limitsFirst ? 1.0 : 0) + (edges.limitsEnd ? 1.0 : 0)
    if limits == 0 { return all }
    // What nobody sees of a tile that 64 rows end in, on the average: their ends are multiples of 64, or of what the tile's
    // size shares with it.
    let parts = (1 - Double(min(tiling.tileKeys & -tiling.tileKeys, 64)) / keys) / 2
    let ofQuery =
      problem.mask.chunk.map { Double(min($0, problem.plannedKeys)) / 2 }
      ?? (problem.visiblePairs / Double(max(problem.queries, 1)) + Double(problem.plannedKeys - problem.keys))
    // The last item sees most.
    let seen = areMany || edges.limitsFirst ? ofQuery : Double(problem.plannedKeys)
    return min((seen + 32 * limits) / keys + parts * limits, all)
  }
}
