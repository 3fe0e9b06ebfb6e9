internal import Attention
internal import PTX

/// The parameters of a forward kernel.
struct ForwardParameters {
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
  /// Query i sees the keys from `i + leftOffset` to `i + rightOffset`; in sequences, counted from its own key.
  let leftOffset, rightOffset: Register<S32>
  /// Query i stands on key `i + diagonal`; keys of a chunk.
  let diagonal, chunk: Register<S32>
  /// What sequences may have; 0 where the launch's own numbers hold.
  let lists: Lists
  let softmax: SoftmaxParameters

  static let all = ParameterList<ForwardLaunch>.declared { _ = ForwardParameters($0) }

  init(_ list: ParameterList<ForwardLaunch>) {
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
    leftOffset = list.number("left_offset", S32.self) { $0.maskOffsets.left }
    rightOffset = list.number("right_offset", S32.self) { $0.maskOffsets.right }
    diagonal = list.number("diagonal", S32.self) { $0.problem.keys - $0.problem.queries }
    chunk = list.number("chunk", S32.self) { MaskWords($0.problem.mask).chunk }
    lists = Lists(
      queryStarts: list.pointer("query_starts", .queryStarts), keyStarts: list.pointer("key_starts", .keyStarts),
      queryCounts: list.pointer("query_counts", .queryCounts), keyCounts: list.pointer("key_counts", .lengths),
      batchIndex: list.pointer("batch_index", .batchIndex),
      queryRows: list.number("query_rows", U32.self) { $0.problem.packedQueries ?? 0 },
      keyRows: list.number("key_rows", U32.self) { $0.problem.hasPackedKeys ? $0.problem.keyShape.length : 0 },
      keySequences: list.number("key_sequences", U32.self) {
        $0.problem.hasPackedKeys ? $0.problem.batch : $0.problem.keyShape.batch
      })
    softmax = SoftmaxParameters(list) { $0.scales }
  }

  /// What the GPU's memory says of sequences with lengths of their own.
  struct Lists {
    /// `[B + 1]` s32: where queries and keys begin.
    let queryStarts, keyStarts: Register<U64>
    /// `[B]` s32: how many there are, and which sequence of the keys.
    let queryCounts, keyCounts, batchIndex: Register<U64>
    /// Rows that there are where queries and keys are packed; sequences of the keys.
    let queryRows, keyRows, keySequences: Register<U32>
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

  /// Where the kernel does not add the diagonal of each sequence, with it.
  var maskOffsets: (left: Int, right: Int) {
    if problem.hasWholeKeys { return problem.mask.offsets(queries: problem.queries, keys: problem.keys) }
    let words = MaskWords(problem.mask)
    return (-words.left, words.right)
  }
}
