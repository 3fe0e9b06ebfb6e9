/// Where everything lies in the shared memory of a forward kernel; the only place that knows.
///
///     Q (later O) | K V | K V | ...                  a place in the ring for K and V of a tile
///     Q (later O) | K or V | K or V | ...            K and V take turns
///     Q, then K or V, later O | K or V | ...         in the bytes of Q as well
///     ... | P | a number for each row and column of warps        where warps share rows
package struct SharedMemoryPlan: Hashable, Sendable {
  /// Q of the block.
  package let queries: SharedTile
  /// O of the block, on its way out; where warps share rows, the columns of one warp, and those of the next behind
  /// them.
  package let output: SharedTile
  /// K of a tile.
  package let keys: SharedTile
  /// The parts that K comes in.
  let keySlices: [SharedTile.Slice]
  /// V of a tile, or of a slice of its keys.
  package let values: SharedTile
  /// P of a tile, where warps share rows.
  let weights: SharedTile
  private let tiling: ForwardTiling

  /// The layout of a specialization.
  package init(_ specialization: ForwardSpecialization) {
    tiling = specialization.tiling
    let (columns, layout) = (specialization.columnsPerWarp, tiling.layout)
    queries = SharedTile(rows: tiling.rows, columns: specialization.dimension, layout: layout)
    output = SharedTile(rows: tiling.rows, columns: columns, layout: layout)
    keys = SharedTile(rows: tiling.tileKeys, columns: specialization.dimension, layout: layout)
    keySlices = keys.slices(tiling.slices)
    values = SharedTile(
      rows: tiling.keysPerSlice, columns: specialization.valueDimension,
      paddedColumns: tiling.columnWarps == 1 ? 0 : columns * tiling.columnWarps, layout: layout)
    weights = SharedTile(rows: tiling.rows, columns: tiling.tileKeys, layout: layout)
  }

  /// Whether no access has bank conflicts.
  package var isConflictFree: Bool {
    [queries, keys, values].allSatisfy(\.isConflictFree)
      && (tiling.store == .byShuffles || output.isConflictFree)
  }

  /// Where the ring of K and V begins.
  var ringOffset: Int {
    tiling.sharing == .queriesKeysAndValues ? 0 : max(queries.byteCount, outputByteCount)
  }
  /// O of all warps, where it passes through here.
  private var outputByteCount: Int {
    tiling.store == .throughSharedMemory ? output.byteCount * tiling.columnWarps : 0
  }
  /// From a place of the ring to the next.
  var placeByteCount: Int {
    tiling.sharing == .none
      ? keys.byteCount + values.byteCount : max(keySlices.map(\.byteCount).max()!, values.byteCount)
  }
  /// From K to V within a place that holds both.
  var valuesOffset: Int { tiling.sharing == .none ? keys.byteCount : 0 }
  /// Where P is, and behind it the numbers that warps tell each other, where warps share rows.
  var weightsOffset: Int {
    max(ringOffset + tiling.stages * placeByteCount, max(queries.byteCount, outputByteCount))
  }
  /// `[column of warps, row]`, f32.
  var statisticsOffset: Int { weightsOffset + weights.byteCount }
  /// What a launch asks for.
  package var byteCount: Int {
    tiling.columnWarps == 1 ? weightsOffset : statisticsOffset + weights.rows * tiling.columnWarps * 4
  }
}
