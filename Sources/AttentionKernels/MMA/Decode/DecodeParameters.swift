internal import Attention
internal import PTX

/// The parameters of a decode kernel, and of the launch that puts its parts together.
final class DecodeParameters {
  let queryBase, keyBase, valueBase, outputBase: Register<U64>
  /// 0 where nobody wants it.
  let logSumExpBase: Register<U64>
  /// Bytes from a sequence, and from a head, to the next.
  let logSumExpBatchStride, logSumExpHeadStride: Register<U64>
  let queryStrides, outputStrides: StrideParameters
  /// Bytes from one sequence or page to the next, from head to head, from row to row.
  let keyStrides, valueStrides: StrideParameters
  /// What sequences have.
  let lists: SequenceLists
  let cacheScales: CacheScales.Lists
  /// `[B, pages]`, s32, and the bytes from a sequence to the next.
  let pageTable, pageTableStride: Register<U64>
  /// f32: parts of O `[parts, rows, D_v]`, their log-sum-exps `[parts, rows]`, and a u32 for each unit.
  let parts, partLogSumExps, arrivals: Register<U64>
  let batch: Register<S32>
  /// Blocks of the grid that the work is shared out over; and the units of all sequences, where each has as many.
  let blocks, units: Divisor
  /// Keys that the call brings for each sequence, unless they are packed; and the most keys of a sequence.
  let newKeys, capacity: Register<S32>
  /// Tiles of a split of fixed length.
  let splitTiles: Register<S32>
  /// Partial results of each row that the caller has room for.
  let leftParts: Register<U32>
  /// Queries of each sequence at most, and H_kv.
  let queries, keyValueHeads: Register<U32>
  /// The blocks of rows that a head has at most, and keys on a page.
  let rowBlocks, pageSize: Divisor
  /// Rows that there are where they are packed: queries, keys and new keys.
  let queryRows, keyRows, newKeyRows: Register<U32>
  /// Sequences of the cache, or its pages.
  let cachePlaces: Register<U32>
  /// How far a query sees to both sides of its own key.
  let left, right: Register<S32>
  /// Keys of a chunk.
  let chunk: Register<S32>
  /// nil where there are none.
  let ranges: RangeParameters?
  let softmax: SoftmaxParameters
  /// nil where there are none.
  let sinkBase: Register<U64>?

  private static let lists = DeclaredLists<DecodeLaunch> { _ = DecodeParameters($0, $1) }
  /// Those of a problem's kernels.
  static func all(_ problem: AttentionProblem) -> [ParameterList<DecodeLaunch>.Entry] { lists[problem] }

  init(_ list: ParameterList<DecodeLaunch>, _ own: ParameterParts) {
    queryBase = list.pointer("queries") { $0.preparedQueries }
    (keyBase, valueBase) = (list.pointer("keys", .keys), list.pointer("values", .values))
    (outputBase, logSumExpBase) = (list.pointer("output", .output), list.pointer("log_sum_exp", .logSumExp))
    logSumExpBatchStride = list.number("log_sum_exp_batch_stride", U64.self) { $0.problem.logSumExpStrides.batch }
    logSumExpHeadStride = list.number("log_sum_exp_head_stride", U64.self) { $0.problem.logSumExpStrides.head }
    queryStrides = list.strides("query") { $0.preparedQuerySteps }
    keyStrides = list.strides("key") {
      TensorSteps(.keys, $0.problem.cacheType, isPacked: $0.problem.hasPackedKeys)
    }
    valueStrides = list.strides("value") {
      TensorSteps(.values, $0.problem.cacheType, isPacked: $0.problem.hasPackedKeys)
    }
    outputStrides = list.strides("output") {
      TensorSteps(.output, $0.problem.outputType, isPacked: $0.problem.packedQueries != nil)
    }
    lists = SequenceLists(list)
    cacheScales = CacheScales.Lists(list)
    pageTable = list.pointer("page_table", .pageTable)
    pageTableStride = list.number("page_table_stride", U64.self) { ($0.problem.pages?.perSequence ?? 0) * 4 }
    parts = list.pointer("parts") { .address(.workspace, plus: $0.workspace.parts) }
    partLogSumExps = list.pointer("part_log_sum_exps") { .address(.workspace, plus: $0.workspace.partLogSumExps) }
    arrivals = list.pointer("arrivals", .counters)
    batch = list.number("batch", S32.self) { $0.problem.batch }
    blocks = list.divisor("blocks") { $0.blocks }
    units = list.divisor("units") { $0.units }
    newKeys = list.number("new_keys", S32.self) { $0.newKeysOfEach }
    capacity = list.number("capacity", S32.self) { $0.problem.keys }
    splitTiles = list.number("split_tiles", S32.self) { $0.splitTiles }
    leftParts = list.number("left_parts", U32.self) { $0.problem.parts }
    queries = list.number("query_count", U32.self) { $0.problem.queries }
    keyValueHeads = list.number("key_value_heads", U32.self) { $0.problem.keyValueHeads }
    rowBlocks = list.divisor("row_blocks") { $0.rowBlocks }
    pageSize = list.divisor("page_size") { $0.problem.pages?.size ?? 1 }
    queryRows = list.number("query_rows", U32.self) { $0.problem.packedQueries ?? 0 }
    keyRows = list.number("key_rows", U32.self) { $0.problem.hasPackedKeys ? $0.problem.keyShape.length : 0 }
    newKeyRows = list.number("new_key_rows", U32.self) { $0.problem.newKeys?.packedTotal ?? 0 }
    cachePlaces = list.number("cache_places", U32.self) { $0.problem.keyShape.batch }
    left = list.number("left", S32.self) { MaskWords($0.problem.mask).left }
    right = list.number("right", S32.self) { MaskWords($0.problem.mask).right }
    chunk = list.number("chunk", S32.self) { MaskWords($0.problem.mask).chunk }
    ranges = RangeParameters(list, own) { $0.problem }
    softmax = SoftmaxParameters(list) { $0.scales }
    sinkBase = AttentionSinks.base(list, if: own.contains(.sinks))
  }
}

extension DecodeParameters {
  /// What a unit's numbers are multiplied by.
  func scales(_ k: KernelBuilder, _ s: DecodeSpecialization, _ unit: WorkShare.Unit) -> CacheScales {
    guard s.hasScales else { return CacheScales(softmax) }
    return CacheScales(
      k, softmax, cacheScales, at: unit.sequence.reinterpreted(as: U32.self) * keyValueHeads + unit.head,
      hasSoftcap: s.hasSoftcap)
  }

  /// What the rows of a unit see.
  func mask(
    _ k: KernelBuilder, _ s: DecodeSpecialization, _ unit: WorkShare.Unit, rows: PackedQueries,
    ownRows: [Register<U32>], tileRows: Int, lane: Register<U32>
  ) -> ScoreMask {
    let diagonal = unit.length - unit.queries
    let rule = VisibleKeys(
      k, s.mask, keys: unit.length, left: diagonal - left, right: diagonal + right, diagonal: diagonal, chunk: chunk)
    let ranges = ranges?.ofSequence(
      k, s.mask, batch: unit.sequence.reinterpreted(as: U32.self), firstQuery: unit.firstQuery)
    return ScoreMask(
      k, s.mask, SeenKeys(k, s.mask, rule, ranges), rows: rows, ownRows: ownRows, tileRows: tileRows, lane: lane)
  }
}
