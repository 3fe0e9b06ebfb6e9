/// Where everything lies in the shared memory of a forward kernel; the only place that knows.
///
///     Q (later O)   | K V of stage 0 | K V of stage 1 | ...      where each warp has rows of its own
///     Q (later O)   | K | V | P | a number for each row and column of warps      where warps share rows
public struct SharedMemoryPlan: Hashable, Sendable {
  /// Q of the block.
  public let queries: SharedTile
  /// O of the block, in the place of Q once that is done with; where warps share rows, the columns of one warp, and
  /// those of the next behind them.
  public let output: SharedTile
  /// K of a tile.
  public let keys: SharedTile
  /// V of a tile.
  public let values: SharedTile
  /// P of a tile, where warps share rows.
  let weights: SharedTile
  private let stages, columnWarps: Int

  /// The layout of a specialization.
  public init(_ specialization: ForwardSpecialization) {
    let tiling = specialization.tiling
    columnWarps = tiling.columnWarps
    let columns = specialization.columnsPerWarp
    queries = SharedTile(rows: tiling.rows, columns: specialization.dimension)
    output = SharedTile(rows: tiling.rows, columns: columns)
    keys = SharedTile(rows: tiling.tileKeys, columns: specialization.dimension)
    values = SharedTile(
      rows: tiling.tileKeys, columns: specialization.valueDimension,
      paddedColumns: columnWarps == 1 ? 0 : columns * columnWarps)
    weights = SharedTile(rows: tiling.rows, columns: tiling.tileKeys)
    stages = tiling.stages
  }

  /// Where the ring of K and V begins.
  var stagesOffset: Int { max(queries.byteCount, output.byteCount * columnWarps) }
  /// From K to V within a stage.
  var valuesOffset: Int { keys.byteCount }
  /// From a stage to the next.
  var stageByteCount: Int { keys.byteCount + values.byteCount }
  /// What a launch asks for.
  public var byteCount: Int {
    columnWarps == 1
      ? stagesOffset + stages * stageByteCount : statisticsOffset + weights.rows * columnWarps * 4
  }
  /// Where P is, and behind it the numbers that warps tell each other, where warps share rows.
  var weightsOffset: Int { stagesOffset + stageByteCount }
  /// `[column of warps, row]`, f32.
  var statisticsOffset: Int { weightsOffset + weights.byteCount }
}
