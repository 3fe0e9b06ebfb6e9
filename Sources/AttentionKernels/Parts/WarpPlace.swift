internal import PTX

/// Where a thread stands in its block, and where the block's shared memory is: what parts that share work out over
/// warps ask for.
struct WarpPlace {
  /// The start of the dynamic shared memory.
  let shared: Register<U32>
  /// The thread in its block, and the lane in its warp.
  let thread, lane: Register<U32>
  /// The warp's first row of the block.
  let firstRow: Register<U32>
  /// Which of those that share rows the warp belongs to: each has columns of O of its own, or keys. 0 where none do.
  let sharer: Register<U32>
}
