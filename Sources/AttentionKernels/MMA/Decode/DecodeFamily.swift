package import Attention
internal import PTX

/// The kernels of decoding: few queries over long caches, or whole keys, whose keys are divided over blocks ("Flash-Decoding").
package enum DecodeFamily: KernelFamily {
  package static let name = "decode"
  package static let architecture = Architecture.from(80)

  /// The largest head dimension of these kernels.
  package static let dimensionLimit = 256

  package static func limitation(for problem: AttentionProblem) -> String? { nil }

  package static func check(_ problem: AttentionProblem, on gpu: GPULimits) throws(AttentionError) {
    _ = try Matrix.Inputs(of: problem.scalarType)
    try GPULimits.check(
      dimension: problem.dimension, valueDimension: problem.valueDimension, path: "GPU path of decoding",
      limit: dimensionLimit)
    let (heads, group) = (problem.keyValueHeads, problem.groupSize)
    try GPULimits.check(placesOf: problem)
    try GPULimits.check(counts: [
      ("queries x group", [problem.queries, group]), ("keys", [problem.keys]),
      ("batch x heads x queries", [problem.batch, problem.queryHeads, max(problem.queries, 1)]),
      ("the positions", [problem.newKeys?.rotary?.positions ?? 0]),
      // What the launch before counts.
      ("queries x heads x chunks of 8 columns", [problem.queries, problem.queryHeads, problem.dimension / 8]),
      (
        "new keys x heads x chunks of 8 columns",
        [
          min(problem.newKeys.map { $0.packedTotal ?? $0.count } ?? 0, problem.keys), heads,
          max(problem.dimension, problem.valueDimension) / 8,
        ]
      ),
    ])
    try GPULimits.check(bytesOf: problem, limit: dimensionLimit)
    if problem.cacheType == .e4m3 && problem.newKeys != nil && gpu.target < .sm89 {
      throw .unsupported(
        "Appending to an e4m3 cache needs a GPU of sm_89 or newer; append to a cache of 16 bits, or attend without new "
          + "keys.")
    }
  }

  /// Those that win somewhere among the cases that `DecodeCost` was fitted to, each with both ways of putting parts
  /// together; where none fits the GPU, one that does.
  package static func tilings(for problem: AttentionProblem, on gpu: GPULimits) -> [DecodeTiling] {
    let rows = problem.queries * problem.groupSize
    let dimension = max(problem.dimension, problem.valueDimension)
    // More rows: blocks of 64 that read the same K and V are faster than blocks of 128.
    let rowWarps = [1, 2, 4].first { $0 * 16 >= rows } ?? 4
    var sizes: [(groups: Int, keys: Int, stages: Int, blocks: Int)] =
      switch rowWarps {
      case 1: [(4, 16, 3, 1), (4, 32, 3, 1), (4, 16, 3, 2)]
      case 2: [(2, 32, 3, 1), (2, 16, 4, 1), (4, 32, 3, 1), (2, 32, 3, 2)]
      default:
        [(2, 32, 3, 1), (2, 32, 4, 1), (2, 64, 2, 1), (1, 64, 2, 2), (1, 32, 4, 2), (1, 32, 4, 1), (1, 64, 4, 1)]
      }
    if rowWarps == 4 && dimension <= 64 { sizes.append((2, 64, 3, 1)) }
    // Steps of keys that are on several pages: few and large, and a second block beside their waits.
    if rowWarps == 1 && problem.cacheType == .e4m3 && problem.pages != nil { sizes.append((4, 32, 3, 2)) }
    var list = sizes.map {
      DecodeTiling(
        rowWarps: rowWarps, keyGroups: $0.groups, keysPerStep: $0.keys, stages: $0.stages,
        blocksPerMultiprocessor: $0.blocks, keepsQueries: dimension <= 128)
    }
    // Steps of 32 keys would be on several pages of 16: eight warps wait for more of these at once than four do (NVIDIA H200, 2026-11-30, 32
    // rows: 24.2, 39.1, 68.9 and 248 us instead of 25.7, 42.8, 75.6 and 262; of bytes up to 7% slower).
    if rowWarps == 2 && problem.cacheType != .e4m3, let pages = problem.pages,
      pages.size % 16 == 0 && pages.size % 32 != 0
    {
      let eightWarps = DecodeTiling(
        rowWarps: 2, keyGroups: 4, keysPerStep: 16, stages: 3, blocksPerMultiprocessor: 1,
        keepsQueries: dimension <= 128)
      if obstacle(to: eightWarps, for: problem, on: gpu) == nil {
        list = list.map { $0.keysPerStep == 16 ? eightWarps : $0 }
      }
    }
    if list.allSatisfy({ obstacle(to: $0, for: problem, on: gpu) != nil }) {
      list.append(shrunk(list[0], for: problem, on: gpu))
    }
    // More waves than one where each block has a whole unit at least.
    let units = problem.batch * problem.keyValueHeads * max(1, (rows + rowWarps * 16 - 1) / (rowWarps * 16))
    if rowWarps == 1 && problem.packedQueries == nil && problem.keysPerSplit == nil {
      list += list.flatMap { tiling in
        [2, 4, 8].map {
          var tiling = tiling
          tiling.waves = $0
          return tiling
        }
      }.filter { units > $0.blocks(on: gpu) * ($0.waves - 1) / $0.waves }
    }
    return list.flatMap { tiling in
      combinations(for: problem, tiling).map {
        var tiling = tiling
        tiling.combination = $0
        return tiling
      }
    }
  }

  /// A tiling made smaller until it fits: at last, more blocks of fewer rows, which read K and V again.
  private static func shrunk(
    _ tiling: DecodeTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) -> DecodeTiling {
    var tiling = tiling
    func isTooLarge() -> Bool { obstacle(to: tiling, for: problem, on: gpu) != nil }
    while tiling.stages > 2 && isTooLarge() { tiling.stages -= 1 }
    while tiling.keysPerStep > 16 && isTooLarge() { tiling.keysPerStep -= 16 }
    while tiling.keyGroups > 1 && isTooLarge() { tiling.keyGroups /= 2 }
    while tiling.rowWarps > 1 && isTooLarge() { tiling.rowWarps /= 2 }
    return tiling
  }

  /// Who may put the parts together: the cost decides, but for splits of a fixed length, where it would depend on what
  /// else is in the batch.
  static func combinations(
    for problem: AttentionProblem, _ tiling: DecodeTiling
  ) -> [DecodeTiling.Combination] {
    if problem.leavesParts { return [.lastBlock] }
    guard let keys = problem.keysPerSplit else { return [.lastBlock, .launchBehind] }
    let rows = min(problem.queries * problem.groupSize, tiling.rows)
    let bytes = Double(max(problem.keys - 1, 0) / keys + 1) * Double(rows * problem.valueDimension * 4)
    return [bytes <= 65536 ? .lastBlock : .launchBehind]
  }

  package static func obstacle(
    to tiling: DecodeTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) -> String? {
    if let obstacle = obstacle(ofWholeKeys: problem, rows: tiling.rows, on: gpu) { return obstacle }
    let bytes = DecodeMemoryPlan(specialization(tiling, problem, gpu)).byteCount
    if bytes > gpu.sharedBytesPerBlock {
      return "needs \(bytes) bytes of shared memory; a block of this GPU has \(gpu.sharedBytesPerBlock)"
    }
    let blocks = tiling.blocksPerMultiprocessor
    // Each also takes 1 KB for the system.
    return blocks * (bytes + 1024) <= gpu.sharedBytesPerMultiprocessor
      ? nil
      : "needs \(bytes) bytes of shared memory for each of \(blocks) blocks; a multiprocessor of this GPU has "
        + "\(gpu.sharedBytesPerMultiprocessor)"
  }

  /// What stands against blocks of so many rows for whole keys, whose calls the kernels of prefill are made for: that neither
  /// rows nor units are few. Their calls bring no workspace, so that all share one of the library's, with counters in its
  /// beginning.
  static func obstacle(ofWholeKeys problem: AttentionProblem, rows: Int, on gpu: GPULimits) -> String? {
    if !problem.hasWholeKeys { return nil }
    let packed = problem.queries * problem.groupSize
    let units = problem.batch * problem.keyValueHeads * ((packed + rows - 1) / rows)
    if units > LaunchSequence.sharedUnits {
      return "counts units, of which there are more than \(LaunchSequence.sharedUnits)"
    }
    return packed <= 64 || units < gpu.multiprocessors
      ? nil : "divides no keys: there are \(units) units of rows for \(gpu.multiprocessors) multiprocessors"
  }

  package static func obstacle(to changes: TilingChanges, for problem: AttentionProblem) -> String? {
    problem.leavesParts && changes.names("combine")
      ? "says who puts parts together, which this problem leaves to the caller" : nil
  }

  package static func cost(
    of tiling: DecodeTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) -> KernelCost {
    var tiling = tiling
    tiling.combination = combinationThatCosts(tiling.combination, tiling, problem)
    let specialization = specialization(tiling, problem, gpu)
    return WorkSharing(
      problem: problem, specialization: specialization, gpu: gpu, blocks: tiling.blocks(on: gpu),
      splitTiles: splitTiles(problem, keys: problem.plannedKeys, tileKeys: tiling.tileKeys)
    ).costOfLongest
  }

  /// Who is reckoned to put parts together. For splits of a fixed length who does depends on how long sequences can be, which must not
  /// decide between tilings, and so between bits: the problem that costs are reckoned of says it then, which is the same for all.
  static func combinationThatCosts(
    _ combination: DecodeTiling.Combination, _ tiling: DecodeTiling, _ problem: AttentionProblem
  ) -> DecodeTiling.Combination {
    problem.keysPerSplit == nil ? combination : combinations(for: problem, tiling)[0]
  }

  /// Tiles of a split of fixed length, no more than so many keys have; 0 without.
  static func splitTiles(_ problem: AttentionProblem, keys: Int, tileKeys: Int) -> Int {
    let tiles = max(1, (keys + tileKeys - 1) / tileKeys)
    return problem.keysPerSplit.map { min(max(1, ($0 - 1) / tileKeys + 1), tiles) } ?? 0
  }

  package static func launches(
    _ tiling: DecodeTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) throws(AttentionError) -> LaunchSequence {
    try check(problem, rows: tiling.rows, tileKeys: tiling.tileKeys)
    let s = specialization(tiling, problem, gpu)
    return launches(
      s, for: problem, on: gpu, blocks: tiling.blocks(on: gpu), warps: tiling.warps, hopper: nil
    ) { launch in
      LaunchSequence.Launch(
        DecodeKernel(s), blocks: launch.blocks, threads: tiling.threads, sharedByteCount: launch.sharedByteCount,
        blocksPerMultiprocessor: tiling.blocksPerMultiprocessor, overtakes: s.waitsForPreparation,
        arguments: ArgumentTemplate(DecodeParameters.all(problem), for: launch))
    }
  }

  /// - Throws: `AttentionError.lengthOnDevice` for more work than the kernels, with blocks of so many rows, can count.
  static func check(_ problem: AttentionProblem, rows: Int, tileKeys: Int) throws(AttentionError) {
    let packed = problem.queries * problem.groupSize
    try GPULimits.check(counts: [
      (
        "batch x heads x tiles of keys",
        [
          problem.batch, problem.keyValueHeads, problem.keys / tileKeys + 1,
          max(1, (packed + rows - 1) / rows),
          // Units of whole splits, and blocks of whole splits, are up to twice as long each.
          problem.keysPerSplit == nil ? 1 : 4,
        ]
      ), ("blocks of the launch before", [PreparationKernel.blocks(problem)]),
    ])
  }

  /// What is done before, the launch that computes the attention, and what is done behind.
  ///
  /// - Parameters:
  ///   - warps: those of a block of the launch between.
  ///   - hopper: the tiling of Hopper's kernel, where that computes it.
  static func launches(
    _ s: DecodeSpecialization, for problem: AttentionProblem, on gpu: GPULimits, blocks: Int, warps: Int,
    hopper: HopperDecodeTiling?, attention: (DecodeLaunch) -> LaunchSequence.Launch
  ) -> LaunchSequence {
    let preparation = PreparationKernel.Specialization(problem, inputs: s.inputs, isOvertaken: s.overlapsLaunches)
    let launch = DecodeLaunch(problem, s, on: gpu, blocks: blocks, warps: warps, preparation: preparation)
    var launches: [LaunchSequence.Launch] = []
    if let preparation {
      launches.append(
        LaunchSequence.Launch(
          PreparationKernel(preparation), blocks: launch.preparationBlocks, threads: PreparationKernel.threads,
          arguments: ArgumentTemplate(PreparationParameters.all, for: launch)))
    }
    launches.append(attention(launch))
    if let combination = launch.combination {
      launches.append(
        LaunchSequence.Launch(
          CombineKernel(s, rows: combination.rows), blocks: combination.blocks, threads: CombineKernel.threads,
          sharedByteCount: combination.sharedByteCount,
          blocksPerMultiprocessor: CombineGrid.blocksOfMultiprocessor, overtakes: s.combination == .dependentLaunch,
          arguments: ArgumentTemplate(DecodeParameters.all(problem), for: launch)))
    }
    return LaunchSequence(
      launches, main: preparation == nil ? 0 : 1, workspaceByteCount: launch.workspace.byteCount,
      counterByteCount: launch.counterByteCount,
      sharesWorkspaces: launch.counterByteCount <= LaunchSequence.sharedUnits * 4,
      sharing: WorkSharing(
        problem: problem, specialization: s, gpu: gpu, blocks: launch.blocks, splitTiles: launch.splitTiles,
        hopper: hopper))
  }

  /// The problem is one that these kernels take.
  private static func specialization(
    _ tiling: DecodeTiling, _ problem: AttentionProblem, _ gpu: GPULimits
  ) -> DecodeSpecialization {
    DecodeSpecialization(
      problem, inputs: problem.scalarType == .f16 ? .f16 : .bf16, tiling: tiling, target: gpu.target)
  }
}
