/// Results over parts of the keys, computed apart, and to be put together: `O = sum of exp(LSE_i - LSE) O_i`.
///
/// The parts are f32 `[S, B, H, s, D_v]` with log-sum-exps f32 `[S, B, H, s]`; a part in which a query sees no key has
/// -inf, and may hold anything there.
public struct PartialResultsProblem: Hashable, Sendable {
  /// S: how many parts.
  public let parts: Int
  /// B, H, s and D_v of each.
  public let batch, heads, queries, dimension: Int
  /// The type of the result.
  public let outputType: ScalarType
  /// The type of attention sinks, which count once, here: f32, f16 or bf16, in the host's memory f32; nil where there are none.
  public var sinkType: ScalarType?

  /// - Throws: `AttentionError` for extents below 0, a dimension that is no multiple of 4, or a result of e4m3.
  public init(
    parts: Int, batch: Int, heads: Int, queries: Int, dimension: Int, outputType: ScalarType = .f32
  ) throws(AttentionError) {
    for (axis, value) in [("number of parts", parts), ("heads", heads), ("dimension", dimension)] where value < 1 {
      throw .extent(tensor: "the partial results", axis: axis, value: value)
    }
    for (axis, value) in [("batch", batch), ("length", queries)] where value < 0 {
      throw .extent(tensor: "the partial results", axis: axis, value: value)
    }
    let shape = TensorShape(batch: batch, heads: heads, length: queries, dimension: dimension)
    guard checkedProduct([8, parts, batch, heads, queries, dimension]) != nil else {
      throw .tooLarge(tensor: "the partial results", shape: shape)
    }
    if dimension % 4 != 0 {
      throw .dimension(tensor: "the partial results", value: dimension, path: "combination", multiple: 4, limit: .max)
    }
    guard ScalarType.computed.contains(outputType) else { throw .typeOfCaches(outputType) }
    (self.parts, self.batch, self.heads, self.queries, self.dimension) = (parts, batch, heads, queries, dimension)
    self.outputType = outputType
  }

  /// `[B, H, s, D_v]`, of each part and of the result.
  public var shape: TensorShape { TensorShape(batch: batch, heads: heads, length: queries, dimension: dimension) }
  /// Rows of a part; elements of its log-sum-exps.
  public var rows: Int { batch * heads * queries }
}
