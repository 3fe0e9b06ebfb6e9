internal import Attention
public import PTX

/// What a launch passes to a decode kernel, in the order of its parameters. `DecodeLaunch` fills them in; the two stand in one
/// file because they must agree.
struct DecodeParameters {
  let queryBase, keyBase, valueBase, outputBase: Register<U64>
  /// 0 where nobody wants it.
  let logSumExpBase: Register<U64>
  /// Bytes from a sequence, and from a head, to the next.
  let logSumExpBatchStride, logSumExpHeadStride: Register<U64>
  let queryStrides, outputStrides: StrideParameters
  /// Bytes from one sequence or page to the next, from head to head, from row to row.
  let keyStrides, valueStrides: StrideParameters
  /// `[B]`, s32: the rows of each sequence's cache that hold keys; 0 where packed keys are as many as their starts say.
  let lengths: Register<U64>
  /// `[B + 1]`, s32: where each sequence's queries, keys and new keys begin, where they are packed; 0 otherwise.
  let queryStarts, keyStarts, newKeyStarts: Register<U64>
  /// `[B]`, s32: the queries of each sequence, where these are less than its starts say; 0 otherwise.
  let queryCounts: Register<U64>
  /// `[B, H_kv]`, f32: what queries, keys and values are multiplied by; 0 for 1.
  let queryScales, keyScales, valueScales: Register<U64>
  /// `[B]`, s32: the place of each sequence in the cache, and the row of its first key; 0 for the sequence's own number, and 0.
  let batchIndex, leftPadding: Register<U64>
  /// `[B, pages]`, s32, and the bytes from a sequence to the next.
  let pageTable, pageTableStride: Register<U64>
  /// f32: parts of O `[parts, rows, D_v]`, their log-sum-exps `[parts, rows]`, and a u32 for each unit.
  let parts, partLogSumExps, arrivals: Register<U64>
  let batch: Register<S32>
  /// Blocks of the grid that the work is shared out over.
  let blocks: Register<S32>
  /// Keys that the call brings for each sequence, unless they are packed; and the most keys of a sequence.
  let newKeys, capacity: Register<S32>
  /// Tiles of a split of fixed length.
  let splitTiles: Register<S32>
  /// Partial results of each row that the caller has room for.
  let leftParts: Register<U32>
  /// Queries of each sequence at most, H_kv, and the blocks of rows that a head has at most.
  let queries, keyValueHeads, rowBlocks: Register<U32>
  /// Keys on a page.
  let pageSize: Register<U32>
  /// Rows that there are where they are packed: queries, keys and new keys.
  let queryRows, keyRows, newKeyRows: Register<U32>
  /// Sequences of the cache, or its pages.
  let cachePlaces: Register<U32>
  /// How far a query sees to both sides of its own key.
  let left, right: Register<S32>
  /// Keys of a chunk.
  let chunk: Register<S32>
  let softmax: SoftmaxParameters

  init(_ k: KernelBuilder) {
    (queryBase, keyBase, valueBase) = (k.pointer("queries"), k.pointer("keys"), k.pointer("values"))
    (outputBase, logSumExpBase) = (k.pointer("output"), k.pointer("log_sum_exp"))
    logSumExpBatchStride = k.parameter("log_sum_exp_batch_stride", U64.self)
    logSumExpHeadStride = k.parameter("log_sum_exp_head_stride", U64.self)
    queryStrides = StrideParameters(k, "query")
    keyStrides = StrideParameters(k, "key")
    valueStrides = StrideParameters(k, "value")
    outputStrides = StrideParameters(k, "output")
    (lengths, batchIndex, leftPadding) = (k.pointer("lengths"), k.pointer("batch_index"), k.pointer("left_padding"))
    (queryStarts, keyStarts) = (k.pointer("query_starts"), k.pointer("key_starts"))
    (newKeyStarts, queryCounts) = (k.pointer("new_key_starts"), k.pointer("query_counts"))
    (queryScales, keyScales) = (k.pointer("query_scales"), k.pointer("key_scales"))
    valueScales = k.pointer("value_scales")
    (pageTable, pageTableStride) = (k.pointer("page_table"), k.parameter("page_table_stride", U64.self))
    (parts, partLogSumExps) = (k.pointer("parts"), k.pointer("part_log_sum_exps"))
    arrivals = k.pointer("arrivals")
    batch = k.parameter("batch", S32.self)
    blocks = k.parameter("blocks", S32.self)
    newKeys = k.parameter("new_keys", S32.self)
    capacity = k.parameter("capacity", S32.self)
    splitTiles = k.parameter("split_tiles", S32.self)
    leftParts = k.parameter("left_parts", U32.self)
    queries = k.parameter("query_count", U32.self)
    keyValueHeads = k.parameter("key_value_heads", U32.self)
    rowBlocks = k.parameter("row_blocks", U32.self)
    pageSize = k.parameter("page_size", U32.self)
    (queryRows, keyRows) = (k.parameter("query_rows", U32.self), k.parameter("key_rows", U32.self))
    (newKeyRows, cachePlaces) = (k.parameter("new_key_rows", U32.self), k.parameter("cache_places", U32.self))
    left = k.parameter("left", S32.self)
    right = k.parameter("right", S32.self)
    chunk = k.parameter("chunk", S32.self)
    softmax = SoftmaxParameters(k)
  }
}

/// A launch of a decode kernel: everything that is not in its text.
public struct DecodeLaunch: Hashable, Sendable {
  /// Where the tensors of a call are; addresses of a GPU.
  public struct Places: Hashable, Sendable {
    /// `[B, s_q, H_q, D]`; packed `[total, H_q, D]`.
    public var queries: ForwardLaunch.Place
    /// The cache of keys; `batch` of the strides goes from a sequence or a page to the next.
    public var keys: ForwardLaunch.Place
    /// The cache of values.
    public var values: ForwardLaunch.Place
    /// `[B, s_q, H_q, D_v]`; packed `[total, H_q, D_v]`; of parts `[S B, s_q, H_q, D_v]` f32.
    public var output: ForwardLaunch.Place
    /// `[B, H_q, s_q]` f32, packed `[H_q, total]`; or 0, but not of parts `[S, B, H_q, s_q]`.
    public var logSumExp: UInt64 = 0
    /// `[B]` s32; 0 for packed keys that all count.
    public var lengths: UInt64
    /// `[B]` s32, or 0.
    public var batchIndex: UInt64 = 0
    /// `[B]` s32, or 0.
    public var leftPadding: UInt64 = 0
    /// `[B, pages]` s32, or 0.
    public var pageTable: UInt64 = 0
    /// `[B + 1]` s32 where queries are packed, or 0.
    public var queryStarts: UInt64 = 0
    /// `[B]` s32, or 0 where all packed queries count.
    public var queryCounts: UInt64 = 0
    /// `[B + 1]` s32 where keys are packed, or 0.
    public var keyStarts: UInt64 = 0
    /// `[B, H_kv]` f32, or 0.
    public var queryScales: UInt64 = 0
    /// `[B, H_kv]` f32, or 0.
    public var keyScales: UInt64 = 0
    /// `[B, H_kv]` f32, or 0.
    public var valueScales: UInt64 = 0
    /// What is appended, or nil.
    public var newKeys: NewKeyPlaces?
    /// `DecodeLaunch.workspaceByteCount` bytes, the first `arrivalByteCount` of them zero before the first call, unless there are
    /// counters apart.
    public var workspace: UInt64
    /// `counterByteCount` bytes that were zero before the first call; 0 where they are the workspace's first.
    public var counters: UInt64 = 0

    /// The tensors that every call has.
    public init(
      queries: ForwardLaunch.Place, keys: ForwardLaunch.Place, values: ForwardLaunch.Place,
      output: ForwardLaunch.Place, lengths: UInt64, workspace: UInt64
    ) {
      (self.queries, self.keys, self.values, self.output) = (queries, keys, values, output)
      (self.lengths, self.workspace) = (lengths, workspace)
    }
  }

  /// Where new keys, and what belongs to them, are.
  public struct NewKeyPlaces: Hashable, Sendable {
    /// `[B, s_new, H_kv, D]`; packed `[total, H_kv, D]`.
    public var keys: ForwardLaunch.Place
    /// The same with D_v.
    public var values: ForwardLaunch.Place
    /// `[B + 1]` s32 where they are packed, or 0.
    public var starts: UInt64 = 0
    /// `[positions, rotary dimension / 2]`, or 0.
    public var cosines: UInt64 = 0
    /// The same of the sines.
    public var sines: UInt64 = 0
    /// `[B]` s32: positions to count from instead of the lengths; 0 for these.
    public var positions: UInt64 = 0

    /// Keys and values alone.
    public init(keys: ForwardLaunch.Place, values: ForwardLaunch.Place) { (self.keys, self.values) = (keys, values) }
  }

  /// Plans of up to so many units have their counters in the same place of a workspace, so that they can share one.
  public static let sharedUnits = 65536
  /// Whether this is such a plan.
  public var sharesWorkspaces: Bool { arrivalByteCount == Self.sharedUnits * 4 }

  /// Blocks of the grid.
  public let blocks: Int
  /// Blocks of the launch behind, where there is one; its arguments are the same.
  public let combineBlocks: Int
  /// Blocks of the launch before, where there is one.
  public let preparationBlocks: Int
  /// Dynamic shared memory of a block.
  public let sharedByteCount: Int
  /// Counters at the workspace's start, with room for those of other plans; they are zero between calls.
  public let arrivalByteCount: Int
  /// Those that are used.
  public let counterByteCount: Int
  /// Bytes that a call may write meanwhile.
  public let workspaceByteCount: Int
  /// Blocks of rows that a head has at most.
  let rowBlocks: Int
  /// Tiles of a split of fixed length; 0 without.
  let splitTiles: Int
  private let problem: CachedAttentionProblem
  private let partBytes, partStatisticsBytes: Int
  private let preparesQueries: Bool
  private let scales: SoftmaxScales

  /// - Parameter blocks: those that fit the GPU.
  init(_ problem: CachedAttentionProblem, _ specialization: DecodeSpecialization, blocks: Int) {
    self.problem = problem
    let tiling = specialization.tiling
    rowBlocks = (problem.queries * problem.groupSize + tiling.rows - 1) / tiling.rows
    let units = problem.batch * problem.keyValueHeads * rowBlocks
    combineBlocks =
      specialization.combination.hasLaunch
      ? problem.batch * problem.keyValueHeads * problem.queries * problem.groupSize : 0
    // No more than there can be tiles.
    let tilesOfUnit = max(1, (problem.capacity + tiling.tileKeys - 1) / tiling.tileKeys)
    splitTiles = problem.keysPerSplit.map { min(max(1, ($0 - 1) / tiling.tileKeys + 1), tilesOfUnit) } ?? 0
    let splits = splitTiles == 0 ? tilesOfUnit : (tilesOfUnit + splitTiles - 1) / splitTiles
    self.blocks = min(blocks, units * splits)
    let parts =
      splitTiles == 0 ? 2 * self.blocks : splits == 1 || specialization.combination == .caller ? 0 : units * splits
    sharedByteCount = DecodeMemoryPlan(specialization).byteCount
    counterByteCount = units * 4
    arrivalByteCount = (max(units, Self.sharedUnits) * 4 + 15) / 16 * 16
    partBytes = parts * tiling.rows * problem.valueDimension * 4
    partStatisticsBytes = (parts * tiling.rows * 4 + 15) / 16 * 16
    let preparation = PreparationKernel.Specialization(problem, inputs: specialization.inputs, isOvertaken: false)
    preparationBlocks = preparation.map { _ in PreparationKernel.blocks(problem) } ?? 0
    preparesQueries = preparation?.movesQueries ?? false
    let queryBytes = preparesQueries ? problem.queryShape.elementCount * problem.scalarType.byteCount : 0
    workspaceByteCount = arrivalByteCount + partBytes + partStatisticsBytes + queryBytes
    scales = SoftmaxScales(scale: problem.scale, softcap: problem.softcap)
  }

  /// Where the queries are when the kernel itself begins: turned ones are in the workspace.
  func preparedQueries(_ places: Places) -> ForwardLaunch.Place {
    if !preparesQueries { return places.queries }
    return ForwardLaunch.Place(
      address: places.workspace + UInt64(arrivalByteCount + partBytes + partStatisticsBytes),
      strides: TensorLayout.bnhd.strides(of: problem.queryShape))
  }

  /// The kernel's arguments; those of the launch behind are the same.
  public func arguments(_ places: Places) -> [Kernel.Argument] {
    // One array for all: this is most of what a call costs the host.
    var list: [Kernel.Argument] = []
    list.reserveCapacity(72)
    func pointer(_ address: UInt64) { list.append(.pointer(address)) }
    func count(_ number: Int) { list.append(.s32(Int32(number))) }
    let queries = preparedQueries(places)
    pointer(queries.address)
    pointer(places.keys.address)
    pointer(places.values.address)
    pointer(places.output.address)
    let ofHead = problem.queryShape.length * 4
    pointer(places.logSumExp)
    list.append(.u64(problem.packedQueries == nil ? UInt64(problem.queryHeads * ofHead) : 0))
    list.append(.u64(UInt64(ofHead)))
    queries.strides.append(to: &list, problem.scalarType, isPacked: problem.packedQueries != nil)
    places.keys.strides.append(to: &list, problem.cacheType, isPacked: problem.hasPackedKeys)
    places.values.strides.append(to: &list, problem.cacheType, isPacked: problem.hasPackedKeys)
    places.output.strides.append(to: &list, problem.outputType, isPacked: problem.packedQueries != nil)
    pointer(places.lengths)
    pointer(places.batchIndex)
    pointer(places.leftPadding)
    pointer(places.queryStarts)
    pointer(places.keyStarts)
    pointer(places.newKeys?.starts ?? 0)
    pointer(places.queryCounts)
    pointer(places.queryScales)
    pointer(places.keyScales)
    pointer(places.valueScales)
    pointer(places.pageTable)
    var (pageSize, pages) = (1, 0)
    if case .paged(_, let size, let perSequence) = problem.cache { (pageSize, pages) = (size, perSequence) }
    list.append(.u64(UInt64(pages * 4)))
    let parts = places.workspace + UInt64(arrivalByteCount)
    pointer(parts)
    pointer(parts + UInt64(partBytes))
    pointer(places.counters == 0 ? places.workspace : places.counters)
    count(problem.batch)
    count(blocks)
    count(problem.newKeys.map { $0.packedTotal == nil ? $0.count : 0 } ?? 0)
    count(problem.capacity)
    count(splitTiles)
    list.append(.u32(UInt32(problem.parts)))
    list.append(.u32(UInt32(problem.queries)))
    list.append(.u32(UInt32(problem.keyValueHeads)))
    list.append(.u32(UInt32(rowBlocks)))
    list.append(.u32(UInt32(pageSize)))
    list.append(.u32(UInt32(problem.packedQueries ?? 0)))
    list.append(.u32(UInt32(problem.hasPackedKeys ? problem.keyShape.length : 0)))
    list.append(.u32(UInt32(problem.newKeys?.packedTotal ?? 0)))
    list.append(.u32(UInt32(problem.keyShape.batch)))
    let (left, right) = problem.mask.reach
    count(min(left ?? 0, GPULimits.lengthLimit))
    count(min(right ?? 0, GPULimits.lengthLimit))
    count(min(problem.mask.chunk ?? 1, GPULimits.lengthLimit))
    list += scales.arguments
    return list
  }
}

extension TensorStrides {
  /// In the order of `StrideParameters`, in bytes. Sequences that are packed are one batch: where one begins is counted in rows.
  func append(to list: inout [Kernel.Argument], _ type: ScalarType, isPacked: Bool) {
    func bytes(_ stride: Int) { list.append(.u64(UInt64(bitPattern: Int64(stride &* type.byteCount)))) }
    bytes(isPacked ? 0 : batch)
    bytes(heads)
    bytes(length)
  }
}
