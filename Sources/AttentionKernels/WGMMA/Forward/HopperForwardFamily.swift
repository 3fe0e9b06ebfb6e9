package import Attention
internal import PTX

/// The kernels of prefill on Hopper: the copy engine and `wgmma`, a block for some queries of one head and all their keys.
package enum HopperForwardFamily: KernelFamily {
  package static let name = "hopper"
  package static let architecture = Architecture.exactly(90)

  package static func limitation(for problem: AttentionProblem) -> String? {
    if !problem.hasWholeKeys { return "sequences with lengths of their own, or a cache" }
    if problem.newKeys != nil { return "new keys" }
    if problem.keysPerSplit != nil { return "splits of a fixed length" }
    if max(problem.dimension, problem.valueDimension) > 256 { return "head dimensions above 256" }
    if problem.scoreUnits.isNegated { return "scales below zero" }
    return problem.cacheType == problem.scalarType && problem.queryType == problem.scalarType ? nil : "e4m3 numbers"
  }

  package static func check(_ problem: AttentionProblem, on gpu: GPULimits) throws(AttentionError) {
    _ = try Matrix.Inputs(of: problem.scalarType)
    try GPULimits.check(
      dimension: problem.dimension, valueDimension: problem.valueDimension, path: "GPU path", limit: 256)
    try GPULimits.check(counts: [("queries", [problem.queries]), ("keys", [problem.keys])])
  }

  package static func tilings(for problem: AttentionProblem, on gpu: GPULimits) -> [HopperForwardTiling] {
    // Of a tile of 128 rows or more the most would be empty.
    if problem.queries < 64 { return [] }
    // Two groups with as few keys, or as many, as there may be; three with as many as their registers hold.
    return [(2, [64, 80, 128, 176]), (3, [64, 80, 96, 128])].flatMap { groups, keys in
      keys.map { HopperForwardTiling(groups: groups, tileKeys: $0) }
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
    return LaunchSequence([
      LaunchSequence.Launch(
        HopperForwardKernel(specialization), blocks: launch.blocks(on: gpu), threads: tiling.threads,
        sharedByteCount: specialization.sharedByteCount,
        arguments: ArgumentTemplate(HopperForwardParameters.all, for: launch))
    ], counterByteCount: tiling.isPersistent && launch.items > launch.blocks(on: gpu) ? 4 : 0)
  }

  // MARK: - Cost

  /// What 64 rows of a tile take: cycles for each that its products take on the tensor cores, for each that its exponentials
  /// take on the special-function units, and for the tile. With two groups these units wait for one another more. Fitted on an
  /// NVIDIA H200, 2026-11-28, to D 64 and 128 at N 8192 (`tune --family hopper`; Documentation/GPULog.md).
  private static func cycles(groups: Int) -> (products: Double, exponentials: Double, tile: Double) {
    groups == 2 ? (0.77, 1.49, 0) : (0.88, 0.64, 156)
  }
  /// Of a block, for its beginning and end.
  private static let ofBlock = 4000.0
  /// Of a launch, and the part of the data sheet's bandwidth that is reached: as the other kernels have them.
  private static let launch = 6.7e-6, reached = 0.93

  package static func cost(
    of tiling: HopperForwardTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) -> KernelCost {
    let blocks = Double(HopperForwardLaunch(problem: problem, tiling: tiling).items)
    // One block a multiprocessor: the last wave is as long as the others.
    let waves = (blocks / Double(max(gpu.multiprocessors, 1))).rounded(.up)
    let seen = ForwardFamily.seenKeys(problem, on: gpu)
    let tiles = (seen / Double(tiling.tileKeys)).rounded(.up)
    let (groups, keys) = (Double(tiling.groups), Double(tiling.tileKeys))
    let width = Double((problem.dimension + 15) / 16 * 16 + problem.valueDimension)
    let cycles = cycles(groups: tiling.groups)
    let products = groups * keys * width / 32 * cycles.products
    let exponentials = groups * (keys * 4 * cycles.exponentials + cycles.tile)
    let seconds = waves / gpu.clock
    let rowBytes = Double((problem.dimension + problem.valueDimension) * problem.cacheType.byteCount)
    let reading =
      Double(problem.batch * problem.keyValueHeads) * seen * rowBytes / (Self.reached * max(gpu.bandwidth, 1))
    let work = (tiles * (products + exponentials) + Self.ofBlock) * seconds
    return KernelCost(
      [
        "launch": Self.launch, "products": tiles * products * seconds, "exponentials": tiles * exponentials * seconds,
        "blocks": Self.ofBlock * seconds, "reading": reading,
      ], seconds: Self.launch + max(work, reading))
  }
}
