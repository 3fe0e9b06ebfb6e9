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
    let (left, right) = mask.reach
    if let left, left < 0 { throw .window(side: "left", value: left) }
    if let right, right < 0 { throw .window(side: "right", value: right) }
    if let chunk = mask.chunk, chunk < 1 { throw .extent(tensor: "the mask", axis: "chunk size", value: chunk) }
    guard ScalarType.computed.contains(scalarType) else { throw .typeOfCaches(scalarType) }
    let scale = scale ?? 1 / Double(queries.dimension).squareRoot()
    guard Self.isScale(scale) else { throw .scale(scale) }
    if let softcap, !Self.isSoftcap(softcap, of: scale) { throw .softcap(softcap) }

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

  // All paths compute scores in f32, base 2: what they multiply by must exist there.
  private static let log2e = 1.4426950408889634

  private static func isScale(_ scale: Double) -> Bool {
    Float(scale * log2e).isFinite && (scale == 0 || Float(scale).isNormal)
  }

  private static func isSoftcap(_ softcap: Double, of scale: Double) -> Bool {
    softcap > 0 && Float(softcap * log2e).isNormal && Float(scale / softcap).isFinite
  }

  private static func check(_ shape: TensorShape, of tensor: String) throws(AttentionError) {
    if shape.batch < 0 { throw .extent(tensor: tensor, axis: "batch", value: shape.batch) }
    if shape.heads < 1 { throw .extent(tensor: tensor, axis: "heads", value: shape.heads) }
    if shape.length < 0 { throw .extent(tensor: tensor, axis: "length", value: shape.length) }
    if shape.dimension < 1 { throw .extent(tensor: tensor, axis: "dimension", value: shape.dimension) }
    // A count of bytes, up to 4 an element, must also fit, and so must what an empty axis hides.
    guard checkedProduct([8, shape.batch, shape.heads, shape.length, shape.dimension]) != nil else {
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
    2 * Double(dimension + valueDimension) * visiblePairs * Double(batch) * Double(queryHeads)
  }

  /// Pairs of a query and a key that it sees, of one head: but for chunks, without a loop over the queries, who may be many.
  var visiblePairs: Double {
    if mask.chunk != nil { return (0..<queries).reduce(0) { $0 + Double(visibleKeys(ofQuery: $1).count) } }
    let (left, right) = mask.reach
    let reach = Double(queries) + Double(keys)
    // Query i sees the keys from clamp(i + offset - left) up to clamp(i + offset + right + 1); clamp is to 0...keys.
    let offset = Double(keys) - Double(queries)
    let ends = sumOfClamped(from: offset + min(right.map(Double.init) ?? reach, reach) + 1)
    let starts = sumOfClamped(from: offset - min(left.map(Double.init) ?? reach, reach))
    return ends - starts
  }

  /// The sum of `start`, `start + 1`, ... for all queries, each clamped to 0...keys.
  private func sumOfClamped(from start: Double) -> Double {
    let keys = Double(keys)
    func sumBelow(_ x: Double) -> Double {
      x <= 0 ? 0 : x <= keys ? x * (x - 1) / 2 : keys * (keys - 1) / 2 + (x - keys) * keys
    }
    return sumBelow(start + Double(queries)) - sumBelow(start)
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
