public import Attention
public import PTX

/// What a launch passes to a forward kernel, in the order of the kernel's parameters. `ForwardLaunch` fills them in; the
/// two stand in one file because they must agree.
struct ForwardParameters {
  let queryBase, keyBase, valueBase, outputBase: Register<U64>
  /// 0 where nobody wants it.
  let logSumExpBase: Register<U64>
  let queryStrides, keyStrides, valueStrides, outputStrides: StrideParameters
  /// N_q, H_kv, and the blocks of one batch and key/value head.
  let queries, keyValueHeads, blocksPerHead: Register<U32>
  /// N_k.
  let keys: Register<S32>
  /// Query i sees the keys from `i + leftOffset` to `i + rightOffset`.
  let leftOffset, rightOffset: Register<S32>
  /// Query i stands on key `i + diagonal`; keys of a chunk.
  let diagonal, chunk: Register<S32>
  let softmax: SoftmaxParameters

  init(_ k: KernelBuilder) {
    (queryBase, keyBase, valueBase) = (k.pointer("queries"), k.pointer("keys"), k.pointer("values"))
    (outputBase, logSumExpBase) = (k.pointer("output"), k.pointer("log_sum_exp"))
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

  /// Blocks of the grid.
  public let blocks: Int
  /// Dynamic shared memory of a block.
  public let sharedByteCount: Int
  private let blocksPerHead: Int
  private let problem: AttentionProblem
  private let scales: SoftmaxScales

  /// What is known before the tensors are.
  public init(_ problem: AttentionProblem, _ specialization: ForwardSpecialization) {
    self.problem = problem
    let rows = problem.queries * problem.groupSize
    blocksPerHead = (rows + specialization.tiling.rows - 1) / specialization.tiling.rows
    blocks = blocksPerHead * problem.keyValueHeads * problem.batch
    sharedByteCount = SharedMemoryPlan(specialization).byteCount
    scales = SoftmaxScales(scale: problem.scale, softcap: problem.softcap)
  }

  /// The kernel's arguments for tensors at these places; `logSumExp` 0 where nobody wants it.
  public func arguments(
    queries: Place, keys: Place, values: Place, output: Place, logSumExp: UInt64
  ) -> [Kernel.Argument] {
    var list: [Kernel.Argument] = [queries, keys, values, output].map { .pointer($0.address) }
    list.append(.pointer(logSumExp))
    let elementBytes = problem.scalarType.byteCount
    for place in [queries, keys, values, output] {
      for stride in [place.strides.batch, place.strides.heads, place.strides.length] {
        list.append(.u64(UInt64(bitPattern: Int64(stride * elementBytes))))
      }
    }
    list += [problem.queries, problem.keyValueHeads, blocksPerHead].map { .u32(UInt32($0)) }
    let offsets = maskOffsets
    let chunk = min(problem.mask.chunk ?? 1, GPULimits.lengthLimit)
    list += [problem.keys, offsets.left, offsets.right, problem.keys - problem.queries, chunk].map { .s32(Int32($0)) }
    return list + scales.arguments
  }

  /// Clamped to what makes a difference, so that adding a query's number stays within 32 bits.
  private var maskOffsets: (left: Int, right: Int) {
    let (nq, nk) = (problem.queries, problem.keys)
    let (left, right) = problem.mask.reach
    let diagonal = nk - nq
    let first = left.map { max(diagonal - min($0, nq + nk), -nq) } ?? -nq
    let last = right.map { min(diagonal + min($0, nq + nk), nk - 1) } ?? nk - 1
    return (first, last)
  }
}
