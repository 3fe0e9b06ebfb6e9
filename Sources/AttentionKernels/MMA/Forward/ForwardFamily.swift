package import Attention
package import PTX

/// The kernels of prefill: FlashAttention 2 on `mma.sync`, a block for some rows of one key/value head and all their
/// keys.
package enum ForwardFamily: KernelFamily {
  package static let name = "forward"
  package static let architecture = Architecture.from(80)

  /// The largest head dimension of these kernels: eight warps can hold no more of O for 32 rows in registers.
  package static let dimensionLimit = 1024

  package static func limitation(for problem: AttentionProblem) -> String? {
    if problem.pages != nil { return "pages" }
    return problem.cacheType == problem.scalarType ? commonLimitation(for: problem) : "e4m3 numbers"
  }

  /// That of all kernels of prefill.
  static func commonLimitation(for problem: AttentionProblem) -> String? {
    if problem.hasLeftPadding { return "left padding" }
    if problem.newKeys != nil { return "new keys" }
    if problem.cutsSequences { return "splits of a fixed length" }
    if problem.leavesParts { return "parts left to the caller" }
    return problem.queryType == problem.scalarType ? nil : "e4m3 queries"
  }

  package static func check(_ problem: AttentionProblem, on gpu: GPULimits) throws(AttentionError) {
    _ = try Matrix.Inputs(of: problem.scalarType)
    try GPULimits.check(
      dimension: problem.dimension, valueDimension: problem.valueDimension, path: "GPU path", limit: dimensionLimit)
    try GPULimits.check(counts: [("queries x group", [problem.queries, problem.groupSize]), ("keys", [problem.keys])])
    if !problem.hasWholeKeys { try GPULimits.check(placesOf: problem) }
  }

  /// Those of the rungs that win somewhere.
  package static func tilings(for problem: AttentionProblem, on gpu: GPULimits) -> [ForwardTiling] {
    let isWide = max(problem.dimension, problem.valueDimension) > 128
    return tilings(of: Rung(splitsKeys: false, sharing: .none))
      + (isWide ? tilings(of: Rung(splitsKeys: true, sharing: .keysAndValues)) : [])
  }

  /// All that are worth considering of a rung of the ladder.
  ///
  /// - Parameters:
  ///   - stages: only with so many stages.
  ///   - sums: what the tensor cores sum in.
  package static func tilings(
    of rung: Rung, stages: Int? = nil, sums: Matrix.Accumulator = .f32
  ) -> [ForwardTiling] {
    var list: [ForwardTiling] = []
    let stageCounts = stages.map { [$0] } ?? (rung.splitsKeys ? [2, 4] : [2, 3])
    for (warps, columns, rowTiles) in rung.splitsKeys
      ? [(4, 2, 1), (4, 4, 1), (8, 4, 1), (8, 4, 2), (8, 8, 1), (8, 8, 2)] : [(4, 1, 1), (4, 1, 2), (8, 1, 1)]
    {
      for keys in rung.splitsKeys ? [32, 64, 128] : [32, 48, 64, 80, 96, 128] {
        for slices in rung.splitsKeys && rung.sharing != .none ? [1, 2, 4, 8] : [1] {
          for keepsQueries in rung.sharing == .queriesKeysAndValues
            ? [true] : rung.splitsKeys ? [false] : [true, false]
          {
            for stages in stageCounts {
              list.append(
                ForwardTiling(
                  warps: warps, warpTiling: columns == 1 ? .queries : .queriesAndKeys(columns: columns),
                  sharing: rung.sharing, rowTilesPerWarp: rowTiles, tileKeys: keys, stages: stages, slices: slices,
                  keepsQueries: keepsQueries, sums: sums, blocksPerMultiprocessor: 1))
            }
          }
        }
      }
    }
    return list
  }

  package static func obstacle(
    to tiling: ForwardTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) -> String? {
    specialization(tiling, problem).obstacle(on: gpu)
  }

  /// With as many blocks on a multiprocessor as fit.
  package static func completed(
    _ tiling: ForwardTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) -> ForwardTiling {
    var tiling = tiling
    tiling.blocksPerMultiprocessor = specialization(tiling, problem).blocksThatFit(gpu)
    return tiling
  }

  package static func cost(
    of tiling: ForwardTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) -> KernelCost {
    let specialization = specialization(tiling, problem)
    let blocks = ForwardLaunch(problem, specialization).blocks
    let perMultiprocessor = Double(blocks) / Double(max(gpu.multiprocessors, 1))
    let tile = ForwardCost(
      specialization, blocks: max(1, min(tiling.blocksPerMultiprocessor, Int(perMultiprocessor.rounded(.up)))))
    // The tiles that the busiest multiprocessor works on, one after the other. Keys beyond the length cost as much as
    // others, and so do those that only some rows of a block see, at each edge of the mask (an NVIDIA H200, 2026-11-28, D 64,
    // N 512, causal: reckoned at 104 us without these, at 138 with them, and 169 to 184 as measured).
    let edges = MaskEdges(problem)
    let parts = (edges.limitsFirst ? 1.0 : 0) + (edges.limitsEnd ? 1.0 : 0)
    let keys = min(
      seenKeys(problem, on: gpu) + parts * (Double(tiling.rows / problem.groupSize) + Double(tiling.tileKeys)) / 2,
      Double(max(problem.plannedKeys, 1)))
    let tiles = max(perMultiprocessor, 1) * keys / Double(tiling.tileKeys)
    let rowBytes = (problem.dimension + problem.valueDimension) * problem.cacheType.byteCount
    let bytes = Double(problem.batch) * Double(problem.keyValueHeads) * seenKeys(problem, on: gpu) * Double(rowBytes)
    return tile.cost(tiles: tiles, bytes: bytes, on: gpu)
  }

  /// The keys that a block of 128 rows sees, on the average over those that one multiprocessor works on.
  private static func seenKeys(_ problem: AttentionProblem, on gpu: GPULimits) -> Double {
    var keys = Double(max(problem.plannedKeys, 1))
    let rows = Double(problem.queries) * Double(problem.groupSize)
    let blocks = Double(problem.batch) * Double(problem.keyValueHeads) * (rows / 128).rounded(.up)
    if problem.mask.reach.right != nil {
      // Where each works on one, the last block to end sees all.
      let waves = max((blocks / Double(max(gpu.multiprocessors, 1))).rounded(.up), 1)
      keys -= min(Double(problem.queries), keys) / 2 * (1 - 1 / waves)
    }
    let queriesOfBlock = 128 / Double(problem.groupSize)
    if let left = problem.mask.reach.left {
      keys = min(keys, Double(left) + Double(problem.mask.reach.right ?? problem.keys) + 1 + queriesOfBlock)
    }
    if let chunk = problem.mask.chunk { keys = min(keys, Double(chunk) + queriesOfBlock) }
    return max(keys, 1)
  }

  package static func launches(
    _ tiling: ForwardTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) throws(AttentionError) -> LaunchSequence {
    let specialization = specialization(tiling, problem)
    let launch = ForwardLaunch(problem, specialization)
    guard launch.blocks <= Int32.max else {
      throw .lengthOnDevice(
        tensor: "batch x heads x query tiles", length: launch.blocks, device: "GPU", limit: Int(Int32.max))
    }
    return LaunchSequence([
      LaunchSequence.Launch(
        ForwardKernel(specialization), blocks: launch.blocks, threads: tiling.threads,
        sharedByteCount: launch.sharedByteCount, blocksPerMultiprocessor: tiling.blocksPerMultiprocessor,
        arguments: ArgumentTemplate(ForwardParameters.all(problem), for: launch))
    ])
  }

  /// The problem is one that these kernels take.
  private static func specialization(_ tiling: ForwardTiling, _ problem: AttentionProblem) -> ForwardSpecialization {
    ForwardSpecialization(problem, inputs: problem.scalarType == .f16 ? .f16 : .bf16, tiling: tiling)
  }
}
