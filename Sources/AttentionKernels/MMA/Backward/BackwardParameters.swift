internal import Attention
internal import PTX

/// What a plan knows of a launch of a gradients' kernel.
struct BackwardLaunch: Sendable {
  let problem: AttentionProblem
  /// Blocks of the grid, and those of one batch and key/value head.
  let blocks, blocksPerHead: Int
  /// Dynamic shared memory of a block.
  let sharedByteCount: Int
  let scales: GradientScales

  init(_ problem: AttentionProblem, _ s: BackwardSpecialization) {
    self.problem = problem
    let rows = s.kind == .queries ? problem.queries * problem.groupSize : problem.keys
    blocksPerHead = (rows + s.cut.rows - 1) / s.cut.rows
    blocks = blocksPerHead * problem.keyValueHeads * problem.batch
    sharedByteCount = BackwardMemory(s).byteCount
    scales = GradientScales(problem.scoreUnits)
  }
}

/// What the backward pass multiplies by, as f32, with the scale's sign: it knows no maximum.
struct GradientScales: Hashable, Sendable {
  /// What makes a product of Q and K a power of two; with a softcap, what does so with its tanh.
  let scale: Float
  /// What makes a product the argument of the softcap's tanh.
  let capScale: Float
  /// From a capped score, as a power of two, back to the tanh.
  let inverseCap: Float
  /// What dQ and dK are multiplied by.
  let gradient: Float

  init(_ units: ScoreUnits) {
    scale = Float(units.isNegated ? -units.base2 : units.base2)
    capScale = Float(units.cap ?? 0)
    inverseCap = units.cap == nil ? 0 : Float(1 / units.base2)
    gradient = Float(units.cap.map { $0 * units.natural } ?? (units.isNegated ? -units.natural : units.natural))
  }
}

/// `GradientScales` as parameters of a kernel.
struct GradientScaleParameters {
  let scale, capScale, inverseCap, gradient: Register<F32>

  init<Launch>(_ list: ParameterList<Launch>, _ scales: @escaping @Sendable (Launch) -> GradientScales) {
    scale = list.float("scale") { scales($0).scale }
    capScale = list.float("cap_scale") { scales($0).capScale }
    inverseCap = list.float("inverse_cap") { scales($0).inverseCap }
    gradient = list.float("gradient_scale") { scales($0).gradient }
  }
}

/// The parameters of a gradients' kernel.
final class BackwardParameters {
  let queryBase, keyBase, valueBase, outputGradientBase: Register<U64>
  /// 0 where nobody wants them.
  let queryGradientBase, keyGradientBase, valueGradientBase: Register<U64>
  let queryStrides, keyStrides, valueStrides, outputGradientStrides: StrideParameters
  let queryGradientStrides, keyGradientStrides, valueGradientStrides: StrideParameters
  let statistics: StatisticsParameters
  /// N_q, H_kv, and the blocks of one batch and key/value head.
  let queries, keyValueHeads, blocksPerHead: Register<U32>
  /// N_k; of sequences, the most.
  let keys: Register<S32>
  let mask: MaskParameters
  let lists: ForwardSequence.Lists
  let scales: GradientScaleParameters

  private static let lists = DeclaredLists<BackwardLaunch> { _ = BackwardParameters($0, $1) }
  /// Those of a problem's kernels, which know no sinks.
  static func all(_ problem: AttentionProblem) -> [ParameterList<BackwardLaunch>.Entry] { lists[problem] }

  init(_ list: ParameterList<BackwardLaunch>, _ parts: ParameterParts) {
    func queryStrides(_ name: String, _ tensor: CallValue) -> StrideParameters {
      list.strides(name) {
        TensorSteps(tensor, $0.problem.scalarType, isPacked: $0.problem.packedQueries != nil)
      }
    }
    func keyStrides(_ name: String, _ tensor: CallValue) -> StrideParameters {
      list.strides(name) { TensorSteps(tensor, $0.problem.scalarType, isPacked: $0.problem.hasPackedKeys) }
    }
    (queryBase, keyBase) = (list.pointer("queries", .queries), list.pointer("keys", .keys))
    valueBase = list.pointer("values", .values)
    outputGradientBase = list.pointer("output_gradient", .outputGradient)
    queryGradientBase = list.pointer("query_gradient", .queryGradient)
    keyGradientBase = list.pointer("key_gradient", .keyGradient)
    valueGradientBase = list.pointer("value_gradient", .valueGradient)
    self.queryStrides = queryStrides("query", .queries)
    self.keyStrides = keyStrides("key", .keys)
    valueStrides = keyStrides("value", .values)
    outputGradientStrides = queryStrides("output_gradient", .outputGradient)
    queryGradientStrides = queryStrides("query_gradient", .queryGradient)
    keyGradientStrides = keyStrides("key_gradient", .keyGradient)
    valueGradientStrides = keyStrides("value_gradient", .valueGradient)
    statistics = StatisticsParameters(list) { $0.problem }
    queries = list.number("query_count", U32.self) { $0.problem.queries }
    keyValueHeads = list.number("key_value_heads", U32.self) { $0.problem.keyValueHeads }
    blocksPerHead = list.number("blocks_per_head", U32.self) { $0.blocksPerHead }
    keys = list.number("key_count", S32.self) { $0.problem.keys }
    mask = MaskParameters(list, parts) { $0.problem }
    lists = ForwardSequence.Lists(list) { $0.problem }
    scales = GradientScaleParameters(list) { $0.scales }
  }
}
