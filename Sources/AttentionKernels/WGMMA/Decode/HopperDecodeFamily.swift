package import Attention
internal import PTX

/// The kernels of decoding on Hopper, for more than 32 packed query rows, over bytes more than 16: the copy engine and `wgmma`, keys divided over
/// blocks as `DecodeFamily` does.
package enum HopperDecodeFamily: KernelFamily {
  package static let name = "hopper-decode"
  package static let architecture = Architecture.exactly(90)

  package static func limitation(for problem: AttentionProblem) -> String? {
    if problem.pages != nil && problem.hasLeftPadding { return "left padding on pages" }
    if problem.leavesParts { return "parts left to the caller" }
    return DecodeFamily.limitation(for: problem)
  }

  package static func check(_ problem: AttentionProblem, on gpu: GPULimits) throws(AttentionError) {
    try DecodeFamily.check(problem, on: gpu)
  }

  package static func tilings(for problem: AttentionProblem, on gpu: GPULimits) -> [HopperDecodeTiling] {
    let rows = problem.queries * problem.groupSize
    // Of fewer rows most of a tile of 64 would be empty. Bytes that warps of `mma.sync` convert once for each 16 rows pay for that earlier.
    let isOfBytes = problem.cacheType == .e4m3
    if rows <= (isOfBytes ? 16 : 32) { return [] }
    // Where it was measured, what lies between wins nowhere by more than 1%, smaller tiles of bytes nowhere, and is a kernel more to
    // compile; nor do halves of fewer than 64 keys (NVIDIA H200, 2026-11-30 and 12-01, `tune decode --all`, D 128).
    let isMeasured = problem.dimension == 128 && problem.valueDimension == 128 && problem.pages == nil
    let sizes = isOfBytes ? TileConverter.rows : [48, 64, 96, 128]
    // Where 64 rows are all, memory is what whole tiles wait for, unless they are of bytes; of whole keys halves were not measured.
    let dividesKeys = isOfBytes || rows > 64 && !problem.hasWholeKeys
    let groups = [(1, 1)] + (dividesKeys ? [(1, 2)] : []) + (rows <= 64 ? [] : [(2, 1)])
    return groups.flatMap { rowGroups, keyGroups in
      sizes.filter { keyGroups == 1 ? !isMeasured || $0 % 64 == 0 : $0 == 128 }.flatMap { keys in
        let stages = [6, 4, 3, 2].first { stages in
          let tiling = HopperDecodeTiling(rowGroups: rowGroups, keyGroups: keyGroups, tileKeys: keys, stages: stages)
          return HopperDecodeSpecialization(problem, tiling, target: gpu.target).sharedByteCount
            <= gpu.sharedBytesPerBlock
        }
        let tiling = HopperDecodeTiling(
          rowGroups: rowGroups, keyGroups: keyGroups, tileKeys: keys, stages: stages ?? 2)
        return DecodeFamily.combinations(for: problem, tiling.work).map {
          var tiling = tiling
          tiling.combination = $0
          return tiling
        }
      }
    }
  }

  package static func obstacle(
    to tiling: HopperDecodeTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) -> String? {
    if let obstacle = DecodeFamily.obstacle(ofWholeKeys: problem, rows: tiling.rows, on: gpu) { return obstacle }
    return HopperDecodeSpecialization(problem, tiling, target: gpu.target).obstacle(on: gpu)
  }

  package static func cost(
    of tiling: HopperDecodeTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) -> KernelCost {
    var tiling = tiling
    tiling.combination = DecodeFamily.combinationThatCosts(tiling.combination, tiling.work, problem)
    let specialization = HopperDecodeSpecialization(problem, tiling, target: gpu.target)
    return WorkSharing(
      problem: problem, specialization: specialization.work, gpu: gpu, blocks: gpu.multiprocessors,
      splitTiles: DecodeFamily.splitTiles(problem, keys: problem.plannedKeys, tileKeys: tiling.tileKeys),
      hopper: tiling
    ).costOfLongest
  }

  package static func launches(
    _ tiling: HopperDecodeTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) throws(AttentionError) -> LaunchSequence {
    let s = HopperDecodeSpecialization(problem, tiling, target: gpu.target)
    try DecodeFamily.check(problem, rows: tiling.rows, tileKeys: tiling.tileKeys)
    let own = DecodeFamily.launches(
      s.work, for: problem, on: gpu, blocks: gpu.multiprocessors, warps: s.tiles.threads / 32, hopper: tiling
    ) {
      LaunchSequence.Launch(
        HopperDecodeKernel(s), blocks: $0.blocks, threads: s.tiles.threads, sharedByteCount: s.sharedByteCount,
        overtakes: s.work.waitsForPreparation, arguments: ArgumentTemplate(HopperDecodeParameters.all(problem), for: $0)
      )
    }
    if problem.hasWholeKeys { return own }
    // A call whose strides the copy engine does not take runs by the other decode kernels, in the same workspace.
    let others = try KernelPlan(problem, on: gpu, options: KernelOptions(family: DecodeFamily.name)).launches
    return own.withRoom(for: others)
  }
}
