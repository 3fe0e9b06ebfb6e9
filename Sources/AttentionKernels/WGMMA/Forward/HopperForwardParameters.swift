internal import Attention
internal import PTX

/// The parameters of Hopper's forward kernel.
final class HopperForwardParameters {
  let queryMap, keyMap, valueMap: TensorMapParameter
  let outputBase: Register<U64>
  let outputStrides: StrideParameters
  /// 0 where nobody wants it.
  let logSumExpBase: Register<U64>
  /// Bytes from a batch, and from a head, to the next.
  let logSumExpBatchStride, logSumExpHeadStride: Register<U64>
  /// Of the draws that items are handed out by, zero between calls; 0 where there is none.
  let counter: Register<U64>
  /// N_q, H_q, query heads of a key/value head, heads of all batches, items of one head and of all; where sequences have
  /// lengths of their own, N_q of the longest, and the most items that there can be.
  let queries, queryHeads, groupSize, allHeads, itemsPerHead, items: Register<U32>
  /// Query heads of a section (`HeadSections`).
  let headsOfSection: Register<U32>
  /// N_k; of sequences, the most.
  let keys: Register<S32>
  let mask: MaskParameters
  let lists: ForwardSequence.Lists
  let batch: Register<U32>
  /// Batches of the queries from a sequence to the next: 0 where they are packed.
  let queryBatchStep: Register<U32>
  let keyBoxes: KeyBoxes.Parameters
  let softmax: SoftmaxParameters
  /// nil where numbers have none.
  let cacheScales: CacheScales.Lists?
  /// nil where there are none.
  let sinkBase: Register<U64>?

  private static let lists = DeclaredLists<HopperForwardLaunch> { _ = HopperForwardParameters($0, $1) }
  /// Those of a problem's kernels.
  static func all(_ problem: AttentionProblem) -> [ParameterList<HopperForwardLaunch>.Entry] { lists[problem] }

  init(_ list: ParameterList<HopperForwardLaunch>, _ parts: ParameterParts) {
    queryMap = list.tensorMap("queries", .queries) {
      TensorBox($0.problem.queryType, $0.problem.queryShape, rows: $0.tiling.rows)
    }
    keyMap = list.tensorMap("keys", .keys) { $0.keys.box($0.problem, isKey: true) }
    valueMap = list.tensorMap("values", .values) { $0.keys.box($0.problem, isKey: false) }
    outputBase = list.pointer("output", .output)
    outputStrides = list.strides("output") {
      TensorSteps(.output, $0.problem.outputType, isPacked: $0.problem.packedQueries != nil)
    }
    logSumExpBase = list.pointer("log_sum_exp", .logSumExp)
    logSumExpBatchStride = list.number("log_sum_exp_batch_stride", U64.self) { $0.problem.logSumExpStrides.batch }
    logSumExpHeadStride = list.number("log_sum_exp_head_stride", U64.self) { $0.problem.logSumExpStrides.head }
    counter = list.pointer("counter", .counters)
    queries = list.number("query_count", U32.self) { $0.problem.queries }
    queryHeads = list.number("query_heads", U32.self) { $0.problem.queryHeads }
    groupSize = list.number("group_size", U32.self) { $0.problem.groupSize }
    allHeads = list.number("all_heads", U32.self) { $0.problem.queryHeads * $0.problem.batch }
    itemsPerHead = list.number("items_per_head", U32.self) { $0.itemsPerHead }
    items = list.number("item_count", U32.self) { $0.items }
    headsOfSection = list.number("heads_of_section", U32.self) { $0.headsOfSection }
    keys = list.number("key_count", S32.self) { $0.problem.keys }
    mask = MaskParameters(list, parts) { $0.problem }
    lists = ForwardSequence.Lists(list) { $0.problem }
    batch = list.number("batch", U32.self) { $0.problem.batch }
    queryBatchStep = list.number("query_batch_step", U32.self) { $0.problem.packedQueries == nil ? 1 : 0 }
    keyBoxes = KeyBoxes.Parameters(list) { $0.problem }
    softmax = SoftmaxParameters(list) { SoftmaxScales($0.problem.scoreUnits) }
    cacheScales = parts.contains(.scales) ? CacheScales.Lists(list) : nil
    sinkBase = AttentionSinks.base(list, if: parts.contains(.sinks))
  }
}

/// What a plan knows of a launch of Hopper's forward kernel.
struct HopperForwardLaunch: Sendable {
  let problem: AttentionProblem
  let tiling: HopperForwardTiling
  var keys: KeyBoxes.Cut { KeyBoxes.Cut(problem, tileKeys: tiling.tileKeys) }

  /// An item is as many query rows of a head as a block has. Where sequences have lengths of their own, these are the most
  /// that there can be.
  var itemsPerHead: Int { (problem.queries + tiling.rows - 1) / tiling.rows }
  var items: Int { itemsPerHead * problem.queryHeads * problem.batch }
  /// Query heads whose items are drawn together under a mask's right edge: as many as have 16 MB of keys and values, 4 to 32. More
  /// would not stay in the L2 cache, and of fewer the last ones' longest items begin late (Documentation/GPULog.md, NVIDIA H200,
  /// 2026-11-30).
  var headsOfSection: Int {
    let bytes =
      Double(problem.keys) * Double(problem.dimension + problem.valueDimension)
      * Double(problem.cacheType.byteCount) / Double(problem.groupSize)
    return Int(min(max(0x1p24 / max(bytes, 1), 4), 32))
  }
  func blocks(on gpu: GPULimits) -> Int { min(items, max(gpu.multiprocessors, 1)) }
}
