public import Attention
public import PTX

/// What a launch passes to a forward kernel, in the order of the kernel's parameters. `ForwardLaunch` fills them in; the
/// two stand in one file because they must agree.
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
  /// Of sequences, `[B + 1]` s32: where queries and keys begin; `[B]` s32: how many there are, and which sequence of the keys;
  /// 0 where the launch's own numbers hold.
  let queryStarts, keyStarts, queryCounts, keyCounts, batchIndex: Register<U64>
  /// Rows that there are where queries and keys are packed; sequences of the keys.
  let queryRows, keyRows, keySequences: Register<U32>
  let softmax: SoftmaxParameters

  init(_ k: KernelBuilder) {
    (queryBase, keyBase, valueBase) = (k.pointer("queries"), k.pointer("keys"), k.pointer("values"))
    (outputBase, logSumExpBase) = (k.pointer("output"), k.pointer("log_sum_exp"))
    logSumExpBatchStride = k.parameter("log_sum_exp_batch_stride", U64.self)
    logSumExpHeadStride = k.parameter("log_sum_exp_head_stride", U64.self)
    (queryStrides, keyStrides) = (StrideParameters(k, "query"), StrideParameters(k, "key"))
    (valueStrides, outputStrides) = (StrideParameters(k, "value"), StrideParameters(k, "output"))
    queries = k.parameter("query_count", U32.self)
    keyValueHeads = k.parameter("key_value_heads", U32.self)
    blocksPerHead = k.parameter("blocks_per_head", U32.self)
    keys = k.parameter("key_count", S32.self)
    leftOffset = k.parameter("left_offset", S32.self)
    rightOffset = k.parameter("right_offset", S32.self)
    diagonal = k.parameter("diagonal", S32.self)
    chunk = k.parameter("chunk", S32.self)
    (queryStarts, keyStarts) = (k.pointer("query_starts"), k.pointer("key_starts"))
    (queryCounts, keyCounts, batchIndex) = (
      k.pointer("query_counts"), k.pointer("key_counts"), k.pointer("batch_index")
    )
    (queryRows, keyRows) = (k.parameter("query_rows", U32.self), k.parameter("key_rows", U32.self))
    keySequences = k.parameter("key_sequences", U32.self)
    softmax = SoftmaxParameters(k)
  }
}

/// A launch of a forward kernel on a problem: everything that is not in the kernel's text.
public struct ForwardLaunch: Hashable, Sendable {
  /// Where a tensor is, and its strides in elements.
  public struct Place: Hashable, Sendable {
    /// The address of element (0, 0, 0, 0).
    public var address: UInt64
    /// Distances in elements.
    public var strides: TensorStrides

    /// A tensor at an address of the GPU.
    public init(address: UInt64, strides: TensorStrides) {
      self.address = address
      self.strides = strides
    }
  }

  /// What the GPU's memory says of sequences with lengths of their own; addresses, 0 where there is nothing to say.
  public struct Sequences: Hashable, Sendable {
    /// `[B + 1]` s32.
    public var queryStarts, keyStarts: UInt64
    /// `[B]` s32.
    public var queryCounts, keyCounts, batchIndex: UInt64

    /// Nothing by default.
    public init(
      queryStarts: UInt64 = 0, keyStarts: UInt64 = 0, queryCounts: UInt64 = 0, keyCounts: UInt64 = 0,
      batchIndex: UInt64 = 0
    ) {
      (self.queryStarts, self.keyStarts) = (queryStarts, keyStarts)
      (self.queryCounts, self.keyCounts, self.batchIndex) = (queryCounts, keyCounts, batchIndex)
    }
  }

  /// Blocks of the grid.
  public let blocks: Int
  /// Dynamic shared memory of a block.
  public let sharedByteCount: Int
  private let blocksPerHead: Int
  private let problem: AttentionProblem
  /// Queries of all sequences, where they are packed.
  private let packedQueries: Int?
  /// Keys of all sequences, where they are packed.
  private let packedKeys: Int?
  /// Sequences of the keys, of which a call may take some.
  private let keySequences: Int
  private let hasSequences: Bool
  private let scales: SoftmaxScales

  /// What is known before the tensors are.
  ///
  /// - Parameters:
  ///   - problem: of sequences, the longest.
  ///   - packedQueries: queries of all sequences, where they are packed.
  ///   - packedKeys: the same of keys.
  ///   - keySequences: sequences of the keys; nil for those of the problem.
  init(
    _ problem: AttentionProblem, _ specialization: ForwardSpecialization, packedQueries: Int? = nil,
    packedKeys: Int? = nil, keySequences: Int? = nil
  ) {
    (self.problem, self.packedQueries, self.packedKeys) = (problem, packedQueries, packedKeys)
    self.keySequences = keySequences ?? problem.batch
    hasSequences = specialization.hasSequences
    let rows = problem.queries * problem.groupSize
    blocksPerHead = (rows + specialization.tiling.rows - 1) / specialization.tiling.rows
    blocks = blocksPerHead * problem.keyValueHeads * problem.batch
    sharedByteCount = SharedMemoryPlan(specialization).byteCount
    scales = SoftmaxScales(scale: problem.scale, softcap: problem.softcap)
  }

  /// The kernel's arguments for tensors at these places; `logSumExp` 0 where nobody wants it.
  public func arguments(
    queries: Place, keys: Place, values: Place, output: Place, logSumExp: UInt64, sequences: Sequences = Sequences()
  ) -> [Kernel.Argument] {
    var list: [Kernel.Argument] = [queries, keys, values, output].map { .pointer($0.address) }
    list.append(.pointer(logSumExp))
    let ofHead = (packedQueries ?? problem.queries) * 4
    list += [packedQueries == nil ? problem.queryHeads * ofHead : 0, ofHead].map { .u64(UInt64($0)) }
    for (place, isPacked) in [
      (queries, packedQueries != nil), (keys, packedKeys != nil), (values, packedKeys != nil),
      (output, packedQueries != nil),
    ] {
      place.strides.append(to: &list, problem.scalarType, isPacked: isPacked)
    }
    list += [problem.queries, problem.keyValueHeads, blocksPerHead].map { .u32(UInt32($0)) }
    let offsets = maskOffsets
    let chunk = min(problem.mask.chunk ?? 1, GPULimits.lengthLimit)
    list += [problem.keys, offsets.left, offsets.right, problem.keys - problem.queries, chunk].map { .s32(Int32($0)) }
    list += [sequences.queryStarts, sequences.keyStarts, sequences.queryCounts, sequences.keyCounts]
      .map { .pointer($0) }
    list.append(.pointer(sequences.batchIndex))
    list += [packedQueries ?? 0, packedKeys ?? 0, keySequences].map { .u32(UInt32($0)) }
    return list + scales.arguments
  }

  /// Clamped to what makes a difference, so that adding a query's number stays within 32 bits.
  private var maskOffsets: (left: Int, right: Int) {
    if hasSequences {
      // The kernel adds the diagonal of each sequence.
      let (left, right) = problem.mask.reach
      return (-min(left ?? 0, GPULimits.lengthLimit), min(right ?? 0, GPULimits.lengthLimit))
    }
    let (nq, nk) = (problem.queries, problem.keys)
    let (left, right) = problem.mask.reach
    let diagonal = nk - nq
    let first = left.map { max(diagonal - min($0, nq + nk), -nq) } ?? -nq
    let last = right.map { min(diagonal + min($0, nq + nk), nk - 1) } ?? nk - 1
    return (first, last)
  }
}
