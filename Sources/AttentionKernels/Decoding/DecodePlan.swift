public import Attention
public import PTX

/// How decoding is computed on a GPU: a kernel and a launch, every choice made once, before any length is known.
public struct DecodePlan: Hashable, Sendable {
  /// The largest head dimension of these kernels.
  public static let dimensionLimit = 256

  /// What is computed.
  public let problem: CachedAttentionProblem
  /// What the kernel's text is made from.
  public let specialization: DecodeSpecialization
  /// Grid, workspace and arguments.
  public let launch: DecodeLaunch
  /// The GPU that the choices were made for.
  public let gpu: GPULimits

  /// - Parameters:
  ///   - combination: who puts parts together; nil for what suits. Always the caller where the problem leaves them.
  ///   - changes: changes the tiling that suits, for experiments, as `DecodeTiling.changed(by:)` reads it.
  /// - Throws: `AttentionError` where these kernels do not take the type, a dimension or a length.
  public init(
    _ problem: CachedAttentionProblem, on gpu: GPULimits, combination: DecodeSpecialization.Combination? = nil,
    changes: String? = nil
  ) throws(AttentionError) {
    let inputs = try Matrix.Inputs(of: problem.scalarType)
    try GPULimits.check(
      dimension: problem.dimension, valueDimension: problem.valueDimension, path: "GPU path of decoding",
      limit: Self.dimensionLimit)
    let (heads, group) = (problem.keyValueHeads, problem.groupSize)
    try GPULimits.check(placesOf: problem)
    try GPULimits.check(counts: [
      ("queries x group", [problem.queries, group]), ("keys", [problem.capacity]),
      ("batch x heads x queries", [problem.batch, problem.queryHeads, max(problem.queries, 1)]),
      ("the positions", [problem.newKeys?.rotary?.positions ?? 0]),
      // What the launch before counts.
      ("queries x heads x chunks of 8 columns", [problem.queries, problem.queryHeads, problem.dimension / 8]),
      (
        "new keys x heads x chunks of 8 columns",
        [
          min(problem.newKeys.map { $0.packedTotal ?? $0.count } ?? 0, problem.capacity), heads,
          max(problem.dimension, problem.valueDimension) / 8,
        ]
      ),
    ])
    let suiting = DecodeTiling(problem, on: gpu)
    guard let tiling = changes == nil ? suiting : suiting.changed(by: changes!) else {
      throw .tiling(changes!, reason: "cannot be read; write any of \(DecodeTiling.changeSyntax), with commas")
    }
    if let changes, problem.leavesParts, DecodeSpecialization.Combination.changed(by: changes, on: gpu) != nil {
      throw .tiling(changes, reason: "says who puts parts together, which this problem leaves to the caller")
    }
    if problem.cacheType == .e4m3 {
      for (tensor, value) in [("queries and keys", problem.dimension), ("values", problem.valueDimension)]
      where value % 16 != 0 {
        throw .dimension(
          tensor: tensor, value: value, path: "GPU path over e4m3 caches", multiple: 16, limit: Self.dimensionLimit)
      }
      if problem.newKeys != nil && gpu.target < .sm89 {
        throw .unsupported(
          "Appending to an e4m3 cache needs a GPU of sm_89 or newer; append to a cache of 16 bits, or attend without new keys."
        )
      }
    }
    (self.problem, self.gpu) = (problem, gpu)
    specialization = DecodeSpecialization(
      problem, inputs: inputs, tiling: tiling, target: gpu.target,
      combination: problem.leavesParts
        ? .caller
        : combination ?? .changed(by: changes ?? "", on: gpu) ?? Self.combination(problem, tiling, gpu))
    let rows = problem.queries * group
    try GPULimits.check(counts: [
      (
        "batch x heads x tiles of keys",
        [
          problem.batch, heads, problem.capacity / tiling.tileKeys + 1, max(1, (rows + tiling.rows - 1) / tiling.rows),
          // Units of whole splits, and blocks of whole splits, are up to twice as long each.
          problem.keysPerSplit == nil ? 1 : 4,
        ]
      ), ("blocks of the launch before", [PreparationKernel.blocks(problem)]),
    ])
    launch = DecodeLaunch(
      problem, specialization, blocks: gpu.multiprocessors * tiling.blocksPerMultiprocessor)
    if launch.sharedByteCount > gpu.sharedBytesPerBlock {
      throw .tiling(
        "\(tiling)",
        reason: "needs \(launch.sharedByteCount) bytes of shared memory; a block of this GPU has "
          + "\(gpu.sharedBytesPerBlock)")
    }
  }

  /// The quicker way to put parts together: by the last block of each unit, which reads all of its parts, or by a launch behind
  /// with a block for each row.
  private static func combination(
    _ problem: CachedAttentionProblem, _ tiling: DecodeTiling, _ gpu: GPULimits
  ) -> DecodeSpecialization.Combination {
    let rows = problem.queries * problem.groupSize
    let units = problem.batch * problem.keyValueHeads * ((rows + tiling.rows - 1) / tiling.rows)
    let blocks = gpu.multiprocessors * tiling.blocksPerMultiprocessor
    let tiles = (problem.capacity + tiling.tileKeys - 1) / tiling.tileKeys
    let parts = min(tiles, (blocks + max(units, 1) - 1) / max(units, 1) + 1)
    let behind = DecodeSpecialization.Combination.behind(gpu)
    func bytes(_ parts: Int) -> Int { parts * min(rows, tiling.rows) * problem.valueDimension * 4 }
    if let keys = problem.keysPerSplit {
      // Not by what else is in the batch.
      return bytes(max(problem.capacity - 1, 0) / keys + 1) <= 64 << 10 ? .lastBlock : behind
    }
    return DecodeCost.lastBlock(bytes: bytes(parts))
      <= DecodeCost.launchBehind(rows: problem.batch * problem.keyValueHeads * rows)
      ? .lastBlock : behind
  }

  /// The parts of each unit (key/value head, block of rows) of a sequence: for each sequence, the most of its units. The kernel
  /// decides the same from the lengths that it finds.
  ///
  /// - Parameter lengths: the keys of each sequence, new ones included, without those before its beginning; each has the
  ///   plan's number of queries.
  public func splits(lengths: [Int]) -> [Int] { shares(lengths: lengths).sequences.map(\.parts) }

  /// How the work of such lengths is shared out.
  public struct Shares: Hashable, Sendable {
    /// Of a sequence, the tiles of each unit, and the most parts that one of them has.
    public struct Sequence: Hashable, Sendable {
      public let keys, tiles, parts: Int
    }
    /// One for each length.
    public let sequences: [Sequence]
    /// Units of each sequence, the tiles that a block takes, and the blocks that have some.
    public let units, tilesOfBlock, busyBlocks: Int
    /// What the call should cost.
    public let cost: DecodeCost
  }

  /// What the rule that the kernel follows makes of lengths; see `splits`.
  public func shares(lengths: [Int]) -> Shares {
    let (tiling, mask) = (specialization.tiling, specialization.mask)
    let rule = WorkRule(
      tileKeys: tiling.tileKeys, rows: tiling.rows, groupSize: problem.groupSize, keyValueHeads: problem.keyValueHeads,
      left: mask.contains(.left) ? problem.mask.reach.left.map { min($0, GPULimits.lengthLimit) } : nil,
      chunk: mask.contains(.chunks) ? problem.mask.chunk.map { min($0, GPULimits.lengthLimit) } : nil,
      splitTiles: launch.splitTiles == 0 ? nil : launch.splitTiles)
    let units = rule.units(queries: problem.queries)
    // As the kernel holds them.
    let lengths = lengths.map { min(max($0, 0), problem.capacity) }
    let tiles = lengths.map { rule.tiles(length: $0, queries: problem.queries) }
    let places = tiles.map { rule.places(tiles: $0) }
    let all = places.reduce(0, +) * units
    let share = rule.share(
      total: all, units: specialization.hasPackedQueries ? nil : lengths.count * units, blocks: max(launch.blocks, 1))
    var before = 0
    let sequences = zip(lengths, zip(tiles, places)).map { keys, counts in
      defer { before += counts.1 * units }
      let parts = (0..<units).map { unit in
        let parts = rule.parts(firstTile: before + unit * counts.1, tiles: counts.0, share: share)
        return parts.last - parts.first + 1
      }
      return Shares.Sequence(keys: keys, tiles: counts.0, parts: parts.max() ?? 0)
    }
    let keyBytes = (problem.dimension + problem.valueDimension) * problem.cacheType.byteCount
    let most = sequences.map(\.parts).max() ?? 0
    let rows = problem.batch * problem.keyValueHeads * problem.queries * problem.groupSize
    let combination =
      switch specialization.combination {
      case _ where most < 2, .caller: 0.0
      case .lastBlock:
        DecodeCost.lastBlock(
          bytes: most * min(problem.queries * problem.groupSize, tiling.rows) * problem.valueDimension * 4)
      case .secondLaunch, .dependentLaunch: DecodeCost.launchBehind(rows: rows)
      }
    return Shares(
      sequences: sequences, units: units, tilesOfBlock: share, busyBlocks: (all + share - 1) / share,
      cost: DecodeCost(
        blockBytes: min(share, all) * tiling.tileKeys * keyBytes,
        bytes: tiles.reduce(0, +) * units * tiling.tileKeys * keyBytes, combination: combination))
  }

  /// The kernel of the launch before; nil where there is none.
  public func preparationKernel() -> PreparationKernel? {
    PreparationKernel.Specialization(problem, inputs: specialization.inputs, isOvertaken: gpu.target >= .sm90)
      .map { PreparationKernel($0) }
  }

  /// The kernel of the second launch; nil where there is none.
  public func combineKernel() throws(KernelError) -> Kernel? {
    specialization.combination.hasLaunch ? try CombineKernel(specialization).kernel() : nil
  }

  /// The kernel of the specialization.
  public func kernel() throws(KernelError) -> Kernel { try DecodeKernel(specialization).kernel() }
}

extension DecodeSpecialization.Combination {
  static let changeName = "combine"

  /// By a launch behind, which begins early where the GPU can.
  fileprivate static func behind(_ gpu: GPULimits) -> Self { gpu.target < .sm90 ? .secondLaunch : .dependentLaunch }

  /// What changes of a tiling say of it; nil where they say nothing.
  fileprivate static func changed(by changes: String, on gpu: GPULimits) -> Self? {
    var result: Self?
    for change in changes.split(separator: ",") where change.hasPrefix("\(changeName)=") {
      result = change.hasSuffix("=last") ? .lastBlock : behind(gpu)
    }
    return result
  }
}

extension DecodeTiling {
  /// The tiling for a problem on a GPU: no more rows than there are, and as much of K and V under way as fits.
  ///
  /// Measured on an NVIDIA H200, 2026-11-21, by `bench decode --tiling ...` (Documentation/GPULog.md). One row tile: eight warps
  /// with keys of their own, four where the caches are small, so that more blocks have some. Four row tiles: one group of four
  /// warps where the caches are small, whose barriers and parts cost least; beyond, two groups with more and shorter steps under
  /// way. More rows: two blocks of 64 that read the same K and V are faster than one of 128.
  init(_ problem: CachedAttentionProblem, on gpu: GPULimits) {
    let rows = problem.queries * problem.groupSize
    let dimension = max(problem.dimension, problem.valueDimension)
    let rowTiles = min((rows + 15) / 16, dimension <= 128 ? 8 : 4)
    let rowWarps = [1, 2, 4].first { $0 >= rowTiles } ?? 4
    // With splits of a fixed length, nothing may depend on what else is in the batch.
    let cacheBytes =
      problem.keysPerSplit != nil
      ? Int.max
      : problem.batch * problem.keyValueHeads * problem.capacity * (problem.dimension + problem.valueDimension)
        * problem.cacheType.byteCount
    let cut: (groups: Int, keys: Int, stages: Int) =
      switch (rowTiles, dimension) {
      case (...1, _): (cacheBytes <= 64 << 20 ? 4 : 8, 16, 3)
      case (2, _): (cacheBytes <= 150 << 20 ? 2 : 4, 32, 3)
      case (3...4, ...128): cacheBytes <= 100 << 20 ? (1, 64, 4) : (2, 32, 4)
      case (_, ...128): cacheBytes <= 100 << 20 ? (1, 64, 4) : (2, 64, 2)
      default: (2, 32, 3)
      }
    self.init(
      rowWarps: rowWarps, keyGroups: cut.groups, keysPerStep: cut.keys, stages: cut.stages, blocksPerMultiprocessor: 1,
      keepsQueries: dimension <= 128)
    func byteCount() -> Int {
      DecodeMemoryPlan(DecodeSpecialization(problem, inputs: .f16, tiling: self)).byteCount
    }
    while stages > 2 && byteCount() > gpu.sharedBytesPerBlock { stages -= 1 }
    while keysPerStep > 16 && byteCount() > gpu.sharedBytesPerBlock { keysPerStep -= 16 }
    while keyGroups > 1 && byteCount() > gpu.sharedBytesPerBlock { keyGroups /= 2 }
    // Then more blocks of fewer rows, which read K and V again.
    while self.rowWarps > 1 && byteCount() > gpu.sharedBytesPerBlock { self.rowWarps /= 2 }
  }
}

extension DecodePlan: CustomStringConvertible {
  /// The choices in two lines.
  public var description: String {
    "GPU, \(gpu.name): \(specialization.name)\n\(specialization.tiling); \(launch.blocks) blocks, "
      + "\(launch.sharedByteCount / 1024) KB of shared memory each, \(launch.workspaceByteCount) bytes of workspace"
  }
}
