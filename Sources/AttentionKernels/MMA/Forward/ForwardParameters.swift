internal import Attention
internal import PTX

/// The parameters of a forward kernel.
final class ForwardParameters {
  let queryBase, keyBase, valueBase, outputBase: Register<U64>
  /// 0 where nobody wants it.
  let logSumExpBase: Register<U64>
  /// Bytes from a batch, and from a head, to the next.
  let logSumExpBatchStride, logSumExpHeadStride: Register<U64>
  let queryStrides, keyStrides, valueStrides, outputStrides: StrideParameters
  /// N_q, H_kv, and the blocks of one batch and key/value head.
  let queries, keyValueHeads, blocksPerHead: Register<U32>
  /// N_k; of sequences, the most.
  let keys: Register<S32>
  let mask: MaskParameters
  let lists: ForwardSequence.Lists
  let softmax: SoftmaxParameters
  /// nil where there are none.
  let sinkBase: Register<U64>?

  private static let lists = DeclaredLists<ForwardLaunch> { _ = ForwardParameters($0, $1) }
  /// Those of a problem's kernels.
  static func all(_ problem: AttentionProblem) -> [ParameterList<ForwardLaunch>.Entry] { lists[problem] }

  init(_ list: ParameterList<ForwardLaunch>, _ parts: ParameterParts) {
    (queryBase, keyBase) = (list.pointer("queries", .queries), list.pointer("keys", .keys))
    (valueBase, outputBase) = (list.pointer("values", .values), list.pointer("output", .output))
    logSumExpBase = list.pointer("log_sum_exp", .logSumExp)
    logSumExpBatchStride = list.number("log_sum_exp_batch_stride", U64.self) { $0.problem.logSumExpStrides.batch }
    logSumExpHeadStride = list.number("log_sum_exp_head_stride", U64.self) { $0.problem.logSumExpStrides.head }
    queryStrides = list.strides("query") {
      TensorSteps(.queries, $0.problem.queryType, isPacked: $0.problem.packedQueries != nil)
    }
    keyStrides = list.strides("key") {
      TensorSteps(.keys, $0.problem.cacheType, isPacked: $0.problem.hasPackedKeys)
    }
    valueStrides = list.strides("value") {
      TensorSteps(.values, $0.problem.cacheType, isPacked: $0.problem.hasPackedKeys)
    }
    outputStrides = list.strides("output") {
      TensorSteps(.output, $0.problem.outputType, isPacked: $0.problem.packedQueries != nil)
    }
    queries = list.number("query_count", U32.self) { $0.problem.queries }
    keyValueHeads = list.number("key_value_heads", U32.self) { $0.problem.keyValueHeads }
    blocksPerHead = list.number("blocks_per_head", U32.self) { $0.blocksPerHead }
    keys = list.number("key_count", S32.self) { $0.problem.keys }
    mask = MaskParameters(list, parts) { $0.problem }
    lists = ForwardSequence.Lists(list) { $0.problem }
    softmax = SoftmaxParameters(list) { $0.scales }
    sinkBase = AttentionSinks.base(list, if: parts.contains(.sinks))
  }
}

/// What a plan knows of a launch of a forward kernel.
struct ForwardLaunch: Sendable {
  let problem: AttentionProblem
  /// Blocks of the grid, and those of one batch and key/value head.
  let blocks, blocksPerHead: Int
  /// Dynamic shared memory of a block.
  let sharedByteCount: Int
  let scales: SoftmaxScales

  init(_ problem: AttentionProblem, _ specialization: ForwardSpecialization) {
    self.problem = problem
    let rows = problem.queries * problem.groupSize
    blocksPerHead = (rows + specialization.tiling.rows - 1) / specialization.tiling.rows
    blocks = blocksPerHead * problem.keyValueHeads * problem.batch
    sharedByteCount = SharedMemoryPlan(specialization).byteCount
    scales = SoftmaxScales(problem.scoreUnits)
  }
}
