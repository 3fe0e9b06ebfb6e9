/// What is asked: `softmax(mask(scale * Q K^T)) V`, with shapes that have been checked against each other.
///
/// Q is `[B, H_q, N_q, D]`, K `[B, H_kv, N_k, D]`, V `[B, H_kv, N_k, D_v]`; query head h reads key/value head
/// `h / (H_q / H_kv)`. The output is `[B, H_q, N_q, D_v]`, the log-sum-exp `[B, H_q, N_q]`: f32, natural logarithm, the
/// scale included. A query that sees no key gets output 0 and log-sum-exp -inf. Memory beyond the given lengths never
/// influences a result.
public struct AttentionProblem: Hashable, Sendable {
  /// The type of the elements.
  public let scalarType: ScalarType
  /// B: independent sequences.
  public let batch: Int
  /// H_q, a multiple of H_kv.
  public let queryHeads: Int
  /// H_kv.
  public let keyValueHeads: Int
  /// N_q.
  public let queries: Int
  /// N_k.
  public let keys: Int
  /// D, of queries and keys.
  public let dimension: Int
  /// D_v, of values and output.
  public let valueDimension: Int
  /// Which keys a query sees.
  public let mask: AttentionMask
  /// What the scores are multiplied by.
  public let scale: Double
  /// c of `c * tanh(scale * s / c)`, applied before the mask; nil for none.
  public let softcap: Double?

  /// - Parameters:
  ///   - scale: nil for `1/sqrt(D)`.
  ///   - softcap: nil for none.
  /// - Throws: `AttentionError` where the shapes do not fit each other or a number makes no sense.
  public init(
    queries: TensorShape, keys: TensorShape, values: TensorShape, scalarType: ScalarType,
    mask: AttentionMask = .none, scale: Double? = nil, softcap: Double? = nil
  ) throws(AttentionError) {
    for (name, shape) in [("queries", queries), ("keys", keys), ("values", values)] {
      try Self.check(shape, of: name)
    }
    try Self.check("batch", "queries", queries.batch, "keys", keys.batch)
    try Self.check("batch", "keys", keys.batch, "values", values.batch)
    try Self.check("heads", "keys", keys.heads, "values", values.heads)
    try Self.check("length", "keys", keys.length, "values", values.length)
    try Self.check("dimension", "queries", queries.dimension, "keys", keys.dimension)
    guard queries.heads % keys.heads == 0 else {
      throw .headsNotDivisible(queryHeads: queries.heads, keyValueHeads: keys.heads)
    }
    if case .window(let left, let right) = mask {
      if let left, left < 0 { throw .window(side: "left", value: left) }
      if let right, right < 0 { throw .window(side: "right", value: right) }
    }
    let scale = scale ?? 1 / Double(queries.dimension).squareRoot()
    guard scale.isFinite else { throw .scale(scale) }
    if let softcap, !(softcap.isFinite && softcap > 0) { throw .softcap(softcap) }

    self.scalarType = scalarType
    batch = queries.batch
    queryHeads = queries.heads
    keyValueHeads = keys.heads
    self.queries = queries.length
    self.keys = keys.length
    dimension = queries.dimension
    valueDimension = values.dimension
    self.mask = mask
    self.scale = scale
    self.softcap = softcap
    guard outputShape.checkedElementCount != nil else { throw .tooLarge(tensor: "The output", shape: outputShape) }
  }

  private static func check(_ shape: TensorShape, of tensor: String) throws(AttentionError) {
    if shape.batch < 0 { throw .extent(tensor: tensor, axis: "batch", value: shape.batch) }
    if shape.heads < 1 { throw .extent(tensor: tensor, axis: "heads", value: shape.heads) }
    if shape.length < 0 { throw .extent(tensor: tensor, axis: "length", value: shape.length) }
    if shape.dimension < 1 { throw .extent(tensor: tensor, axis: "dimension", value: shape.dimension) }
    // A count of bytes, up to 4 an element, must also fit.
    guard let count = shape.checkedElementCount, count <= Int.max / 8 else {
      throw .tooLarge(tensor: tensor, shape: shape)
    }
  }

  private static func check(
    _ axis: String, _ first: String, _ firstExtent: Int, _ second: String, _ secondExtent: Int
  ) throws(AttentionError) {
    if firstExtent != secondExtent {
      throw .mismatch(axis: axis, first: first, firstExtent: firstExtent, second: second, secondExtent: secondExtent)
    }
  }
}

extension AttentionProblem {
  /// Query heads that share one key/value head.
  public var groupSize: Int { queryHeads / keyValueHeads }

  /// `[B, H_q, N_q, D]`.
  public var queryShape: TensorShape {
    TensorShape(batch: batch, heads: queryHeads, length: queries, dimension: dimension)
  }
  /// `[B, H_kv, N_k, D]`.
  public var keyShape: TensorShape {
    TensorShape(batch: batch, heads: keyValueHeads, length: keys, dimension: dimension)
  }
  /// `[B, H_kv, N_k, D_v]`.
  public var valueShape: TensorShape {
    TensorShape(batch: batch, heads: keyValueHeads, length: keys, dimension: valueDimension)
  }
  /// `[B, H_q, N_q, D_v]`.
  public var outputShape: TensorShape {
    TensorShape(batch: batch, heads: queryHeads, length: queries, dimension: valueDimension)
  }
  /// Values of the log-sum-exp, `[B, H_q, N_q]`.
  public var logSumExpCount: Int { batch * queryHeads * queries }

  /// The keys that a query sees.
  public func visibleKeys(ofQuery query: Int) -> Range<Int> {
    mask.visibleKeys(ofQuery: query, queries: queries, keys: keys)
  }

  /// Floating-point operations by the field's convention: a multiply-add is two, the softmax is free, and a causal
  /// mask halves the work: `2 * (D + D_v)` for each pair of a query and a key that it sees, counted pair by pair.
  public var flops: Double {
    var pairs = 0.0
    for query in 0..<queries { pairs += Double(visibleKeys(ofQuery: query).count) }
    return 2 * Double(dimension + valueDimension) * pairs * Double(batch * queryHeads)
  }

  /// Bytes of Q, K, V and O, each moved once.
  public var bytes: Double {
    let elements =
      Double(queryShape.elementCount) + Double(keyShape.elementCount) + Double(valueShape.elementCount)
      + Double(outputShape.elementCount)
    return elements * Double(scalarType.byteCount)
  }
}

extension AttentionProblem: CustomStringConvertible {
  /// The problem in one line.
  public var description: String {
    var text = "batch \(batch), heads \(queryHeads)"
    if keyValueHeads != queryHeads { text += "/\(keyValueHeads)" }
    text += ", \(queries) queries x \(keys) keys, dimension \(dimension)"
    if valueDimension != dimension { text += " (values \(valueDimension))" }
    text += ", \(scalarType), \(mask)"
    if let softcap { text += ", softcap \(softcap)" }
    return text
  }
}
