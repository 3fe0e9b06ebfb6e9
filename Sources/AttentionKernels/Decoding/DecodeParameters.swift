internal import Attention
public import PTX

/// What a launch passes to a decode kernel, in the order of its parameters. `DecodeLaunch` fills them in; the two stand in one
/// file because they must agree.
struct DecodeParameters {
  let queryBase, keyBase, valueBase, outputBase: Register<U64>
  /// 0 where nobody wants it.
  let logSumExpBase: Register<U64>
  let queryStrides, outputStrides: StrideParameters
  /// Bytes from one sequence or page to the next, from head to head, from row to row.
  let keyStrides, valueStrides: StrideParameters
  /// `[B]`, s32: the keys of each sequence.
  let lengths: Register<U64>
  /// `[B]`, s32: the place of each sequence in the cache, and the row of its first key; 0 for the sequence's own number, and 0.
  let batchIndex, leftPadding: Register<U64>
  /// `[B, pages]`, s32, and the bytes from a sequence to the next.
  let pageTable, pageTableStride: Register<U64>
  /// f32: parts of O `[2 blocks, rows, D_v]`, their log-sum-exps `[2 blocks, rows]`, and a u32 for each unit.
  let parts, partLogSumExps, arrivals: Register<U64>
  let batch: Register<S32>
  /// Blocks of the grid that the work is shared out over.
  let blocks: Register<S32>
  /// Queries of each sequence, H_kv, and the blocks of rows of a unit's head.
  let queries, keyValueHeads, rowBlocks: Register<U32>
  /// Keys on a page.
  let pageSize: Register<U32>
  /// How far a query sees to both sides of its own key.
  let left, right: Register<S32>
  let softmax: SoftmaxParameters

  init(_ k: KernelBuilder) {
    (queryBase, keyBase, valueBase) = (k.pointer("queries"), k.pointer("keys"), k.pointer("values"))
    (outputBase, logSumExpBase) = (k.pointer("output"), k.pointer("log_sum_exp"))
    queryStrides = StrideParameters(k, "query")
    keyStrides = StrideParameters(k, "key")
    valueStrides = StrideParameters(k, "value")
    outputStrides = StrideParameters(k, "output")
    (lengths, batchIndex, leftPadding) = (k.pointer("lengths"), k.pointer("batch_index"), k.pointer("left_padding"))
    (pageTable, pageTableStride) = (k.pointer("page_table"), k.parameter("page_table_stride", U64.self))
    (parts, partLogSumExps) = (k.pointer("parts"), k.pointer("part_log_sum_exps"))
    arrivals = k.pointer("arrivals")
    batch = k.parameter("batch", S32.self)
    blocks = k.parameter("blocks", S32.self)
    queries = k.parameter("query_count", U32.self)
    keyValueHeads = k.parameter("key_value_heads", U32.self)
    rowBlocks = k.parameter("row_blocks", U32.self)
    pageSize = k.parameter("page_size", U32.self)
    left = k.parameter("left", S32.self)
    right = k.parameter("right", S32.self)
    softmax = SoftmaxParameters(k)
  }
}

/// A launch of a decode kernel: everything that is not in its text.
public struct DecodeLaunch: Hashable, Sendable {
  /// Where the tensors of a call are; addresses of a GPU.
  public struct Places: Hashable, Sendable {
    /// `[B, s_q, H_q, D]`.
    public var queries: ForwardLaunch.Place
    /// The cache of keys; `batch` of the strides goes from a sequence or a page to the next.
    public var keys: ForwardLaunch.Place
    /// The cache of values.
    public var values: ForwardLaunch.Place
    /// `[B, s_q, H_q, D_v]`.
    public var output: ForwardLaunch.Place
    /// `[B, H_q, s_q]` f32, or 0.
    public var logSumExp: UInt64 = 0
    /// `[B]` s32.
    public var lengths: UInt64
    /// `[B]` s32, or 0.
    public var batchIndex: UInt64 = 0
    /// `[B]` s32, or 0.
    public var leftPadding: UInt64 = 0
    /// `[B, pages]` s32, or 0.
    public var pageTable: UInt64 = 0
    /// `DecodeLaunch.workspaceByteCount` bytes, the first `arrivalByteCount` of them zero before the first call.
    public var workspace: UInt64

    /// The tensors that every call has.
    public init(
      queries: ForwardLaunch.Place, keys: ForwardLaunch.Place, values: ForwardLaunch.Place,
      output: ForwardLaunch.Place, lengths: UInt64, workspace: UInt64
    ) {
      (self.queries, self.keys, self.values, self.output) = (queries, keys, values, output)
      (self.lengths, self.workspace) = (lengths, workspace)
    }
  }

  /// Blocks of the grid.
  public let blocks: Int
  /// Blocks of the second launch, where there is one; its arguments are the same.
  public let combineBlocks: Int
  /// Dynamic shared memory of a block.
  public let sharedByteCount: Int
  /// Counters at the workspace's start; they are zero between calls.
  public let arrivalByteCount: Int
  /// Bytes that a call may write meanwhile.
  public let workspaceByteCount: Int
  /// Blocks of rows of a unit's head.
  let rowBlocks: Int
  private let problem: CachedAttentionProblem
  private let partBytes: Int
  private let scales: SoftmaxScales

  /// - Parameter blocks: those that fit the GPU.
  init(_ problem: CachedAttentionProblem, _ specialization: DecodeSpecialization, blocks: Int) {
    self.problem = problem
    let tiling = specialization.tiling
    rowBlocks = (problem.queries * problem.groupSize + tiling.rows - 1) / tiling.rows
    let units = problem.batch * problem.keyValueHeads * rowBlocks
    combineBlocks =
      specialization.combination != .lastBlock
      ? problem.batch * problem.keyValueHeads * problem.queries * problem.groupSize : 0
    // No more than there can be tiles.
    let tiles = units * max(1, (problem.capacity + tiling.tileKeys - 1) / tiling.tileKeys)
    self.blocks = min(blocks, tiles)
    sharedByteCount = DecodeMemoryPlan(specialization).byteCount
    arrivalByteCount = (units * 4 + 15) / 16 * 16
    partBytes = 2 * self.blocks * tiling.rows * problem.valueDimension * 4
    workspaceByteCount = arrivalByteCount + partBytes + 2 * self.blocks * tiling.rows * 4
    scales = SoftmaxScales(scale: problem.scale, softcap: problem.softcap)
  }

  /// The kernel's arguments.
  public func arguments(_ places: Places) -> [Kernel.Argument] {
    let elementBytes = problem.scalarType.byteCount
    func bytes(_ stride: Int) -> Kernel.Argument { .u64(UInt64(bitPattern: Int64(stride * elementBytes))) }
    var list: [Kernel.Argument] = [places.queries, places.keys, places.values, places.output]
      .map { .pointer($0.address) }
    list.append(.pointer(places.logSumExp))
    for place in [places.queries, places.keys, places.values, places.output] {
      list += [bytes(place.strides.batch), bytes(place.strides.heads), bytes(place.strides.length)]
    }
    list += [places.lengths, places.batchIndex, places.leftPadding, places.pageTable].map { .pointer($0) }
    var (pageSize, pages) = (1, 0)
    if case .paged(_, let size, let perSequence) = problem.cache { (pageSize, pages) = (size, perSequence) }
    list.append(.u64(UInt64(pages * 4)))
    let parts = places.workspace + UInt64(arrivalByteCount)
    list += [.pointer(parts), .pointer(parts + UInt64(partBytes)), .pointer(places.workspace)]
    list += [.s32(Int32(problem.batch)), .s32(Int32(blocks))]
    list += [problem.queries, problem.keyValueHeads, rowBlocks, pageSize].map { .u32(UInt32($0)) }
    let (left, right) = problem.mask.reach
    list += [left ?? 0, right ?? 0].map { .s32(Int32(min($0, GPULimits.lengthLimit))) }
    return list + scales.arguments
  }
}
