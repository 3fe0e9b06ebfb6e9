/// Where everything lies in the shared memory of a forward kernel; the only place that knows.
///
///     Q (later O)   | K V of stage 0 | K V of stage 1 | ...
public struct SharedMemoryPlan: Hashable, Sendable {
  /// Q of the block.
  public let queries: SharedTile
  /// O of the block, in the place of Q once that is done with.
  public let output: SharedTile
  /// K of a tile.
  public let keys: SharedTile
  /// V of a tile.
  public let values: SharedTile
  private let stages: Int

  /// The layout of a specialization.
  public init(_ specialization: ForwardSpecialization) {
    let tiling = specialization.tiling
    queries = SharedTile(rows: tiling.rows, columns: specialization.dimension)
    output = SharedTile(rows: tiling.rows, columns: specialization.valueDimension)
    keys = SharedTile(rows: tiling.tileKeys, columns: specialization.dimension)
    values = SharedTile(rows: tiling.tileKeys, columns: specialization.valueDimension)
    stages = tiling.stages
  }

  /// Where the ring of K and V begins.
  var stagesOffset: Int { max(queries.byteCount, output.byteCount) }
  /// From K to V within a stage.
  var valuesOffset: Int { keys.byteCount }
  /// From a stage to the next.
  var stageByteCount: Int { keys.byteCount + values.byteCount }
  /// What a launch asks for.
  public var byteCount: Int { stagesOffset + stages * stageByteCount }
}
