internal import Attention

/// What a plan knows of the launches of a decode call: of the kernel, of the preparation before it, and of the
/// combination behind.
struct DecodeLaunch: Sendable {
  /// Where things lie in the workspace, in bytes from its start; the counters come first.
  struct Workspace: Sendable {
    /// f32: parts of O `[parts, rows, D_v]`, and their log-sum-exps `[parts, rows]`.
    let parts, partLogSumExps: Int
    /// Turned queries, contiguous.
    let queries: Int
    /// All of it.
    let byteCount: Int
  }

  let problem: AttentionProblem
  /// Blocks of the grid.
  let blocks: Int
  /// The launch behind; nil where there is none.
  let combination: CombineGrid?
  /// Blocks of the launch before; 0 where there is none.
  let preparationBlocks: Int
  /// Dynamic shared memory of a block.
  let sharedByteCount: Int
  /// Bytes of the counters that are used, a u32 for each unit.
  let counterByteCount: Int
  let workspace: Workspace
  /// Blocks of rows that a head has at most, and units of all sequences.
  let rowBlocks, units: Int
  /// Tiles of a split of fixed length; 0 without; and keys of a tile.
  let splitTiles, tileKeys: Int
  let scales: SoftmaxScales
  private let preparesQueries: Bool

  /// - Parameters:
  ///   - blocks: of all waves, those that fit the GPU.
  ///   - warps: of a block.
  ///   - preparation: what is done before; nil for nothing.
  init(
    _ problem: AttentionProblem, _ specialization: DecodeSpecialization, on gpu: GPULimits, blocks: Int, warps: Int,
    preparation: PreparationKernel.Specialization?
  ) {
    self.problem = problem
    let tiling = specialization.tiling
    rowBlocks = (problem.queries * problem.groupSize + tiling.rows - 1) / tiling.rows
    units = problem.batch * problem.keyValueHeads * rowBlocks
    let (heads, rows) = (problem.batch * problem.keyValueHeads, problem.queries * problem.groupSize)
    tileKeys = tiling.tileKeys
    // No more than there can be tiles.
    let tilesOfUnit = max(1, (problem.keys + tiling.tileKeys - 1) / tiling.tileKeys)
    splitTiles = DecodeFamily.splitTiles(problem, keys: problem.keys, tileKeys: tiling.tileKeys)
    let splits = splitTiles == 0 ? tilesOfUnit : (tilesOfUnit + splitTiles - 1) / splitTiles
    self.blocks = min(blocks, units * splits)
    let places = min(
      (self.blocks + gpu.multiprocessors - 1) / max(gpu.multiprocessors, 1), tiling.blocksPerMultiprocessor)
    combination =
      specialization.combination.hasLaunch
      ? CombineGrid(specialization, heads: heads, rowsOfHead: rows, after: warps * places, on: gpu) : nil
    let parts =
      splitTiles == 0
      // Waves of whole keys, all alike, have whole units.
      ? (problem.hasWholeKeys && tiling.waves > 1 ? 0 : 2 * self.blocks)
      : splits == 1 || specialization.leavesParts ? 0 : units * splits
    sharedByteCount = DecodeMemoryPlan(specialization).byteCount
    counterByteCount = units * 4
    preparationBlocks = preparation.map { _ in PreparationKernel.blocks(problem) } ?? 0
    preparesQueries = preparation?.movesQueries ?? false
    // As many as there are units of 16 rows, so that kernels with larger ones, which may take each other's calls, have theirs where
    // no others have parts.
    let counters = LaunchSequence.sharedCounterByteCount(units: heads * ((rows + 15) / 16))
    let partBytes = parts * tiling.rows * problem.valueDimension * 4
    let partStatistics = counters + partBytes
    let queries = partStatistics + (parts * tiling.rows * 4 + 15) / 16 * 16
    workspace = Workspace(
      parts: counters, partLogSumExps: partStatistics, queries: queries,
      byteCount: queries
        + (preparesQueries ? problem.queryShape.elementCount * problem.scalarType.byteCount : 0))
    scales = SoftmaxScales(problem.scoreUnits)
  }

  /// Keys that the call brings for each sequence, unless they are packed.
  var newKeysOfEach: Int { problem.newKeys.map { $0.packedTotal == nil ? $0.count : 0 } ?? 0 }

  /// Where the queries are when the decode kernel begins: turned ones are in the workspace.
  var preparedQueries: ParameterSource {
    preparesQueries ? .address(.workspace, plus: workspace.queries) : .address(.queries)
  }
  var preparedQuerySteps: TensorSteps {
    let isPacked = problem.packedQueries != nil
    return preparesQueries
      ? TensorSteps(TensorLayout.bnhd.strides(of: problem.queryShape), problem.scalarType, isPacked: isPacked)
      : TensorSteps(.queries, problem.scalarType, isPacked: isPacked)
  }

  /// Blocks of the preparation for each sequence.
  var preparationBlocksPerSequence: Int { preparationBlocks / max(problem.batch, 1) }
}
