/// How the rows of a call are dealt out to the blocks of its `CombineKernel`.
struct CombineGrid: Sendable {
  /// Rows of a block: a power of two, so that they belong to one unit.
  let rows: Int
  /// Blocks of the grid.
  let blocks: Int
  /// Whether blocks can begin only as those of the kernel before end, whose registers leave them no room.
  let beginsLate: Bool
  /// Dynamic shared memory of a block: for its sums, and so much more that no more blocks fit a multiprocessor than should.
  let sharedByteCount: Int

  /// Blocks that a multiprocessor has at once where there are enough rows.
  static let blocksOfMultiprocessor = 2
  /// The most warps of the kernel before that leave a block room beside them, by their registers.
  private static let warpsBeside = 4

  /// One row a block, unless blocks of one would come in waves (reckoned; what it gave: Documentation/GPULog.md, NVIDIA H200, 2026-11-29).
  ///
  /// Where blocks can begin only as those of the kernel before end, those that end first would take them all: so many rows
  /// then that two blocks a multiprocessor are enough, and no room for a third (5 to 7% of a call of 64 and 128 rows by Hopper's kernels:
  /// Documentation/GPULog.md, NVIDIA H200, 2026-11-30). With splits of a fixed length always one row, so that sums are
  /// made in one order whatever else there is.
  ///
  /// - Parameters:
  ///   - heads: key/value heads of all sequences.
  ///   - rowsOfHead: packed rows of each.
  ///   - warps: those of the kernel before that a multiprocessor has.
  init(_ s: DecodeSpecialization, heads: Int, rowsOfHead: Int, after warps: Int, on gpu: GPULimits) {
    let (all, places) = (heads * rowsOfHead, Self.blocksOfMultiprocessor * gpu.multiprocessors)
    beginsLate = warps > Self.warpsBeside && s.combination == .dependentLaunch
    let most = s.hasFixedSplits ? 1 : max(1, min(16, rowsOfHead, CombineKernel.threads / s.outputChunks))
    var rows = 1
    while 2 * rows <= most && (beginsLate ? all > rows * places : all >= 2 * rows * places) { rows *= 2 }
    self.rows = rows
    blocks = heads * ((rowsOfHead + rows - 1) / rows)
    let needed = CombineKernel.byteCount(columns: s.valueDimension, rows: rows)
    // So that so many fit, and no more do.
    let ofEach = gpu.sharedBytesPerMultiprocessor * 9 / 10 / Self.blocksOfMultiprocessor / 16 * 16
    sharedByteCount = beginsLate && blocks <= places ? max(needed, ofEach) : needed
  }
}
