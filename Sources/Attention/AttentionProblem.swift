/// What is asked: `softmax(mask(scale * Q K^T)) V`, with shapes that have been checked against each other.
///
/// Queries are `[B, H_q, N_q, D]`, or packed, a sequence behind the other. Keys lie in one of four ways (`KeyStorage`):
/// whole, in a contiguous cache, on the pages of one, or packed. Query head h reads key/value head `h / (H_q / H_kv)`.
/// The output is `[B, H_q, N_q, D_v]`, the log-sum-exp `[B, H_q, N_q]`: f32, natural logarithm, the scale included. A
/// query that sees no key gets output 0 and log-sum-exp -inf. Memory beyond the given lengths never influences a
/// result.
///
/// Query i of a sequence with q queries and n keys stands at key `i + n - q`, as in `AttentionMask`: the last query
/// stands on the last key. New keys, where a call brings some, are appended to the cache first and count as keys.
public struct AttentionProblem: Hashable, Sendable {
  /// How the keys, and the values, lie in memory.
  public enum KeyStorage: Hashable, Sendable {
    /// `[B, H_kv, N_k, D]`, each sequence as long as the others.
    case whole(length: Int)
    /// A cache `[sequences, H_kv, capacity, D]`, in which each sequence has a length of its own.
    case contiguous(sequences: Int, capacity: Int)
    /// A cache `[pages, H_kv, pageSize, D]`, and a table `[B, pagesPerSequence]` of the pages of each sequence.
    case paged(pages: Int, pageSize: Int, pagesPerSequence: Int)
    /// `[1, H_kv, total, D]`, a sequence behind the other, and where each begins (`cu_seqlens_k`, `[B + 1]`); none has
    /// more than `longest` keys.
    case packed(total: Int, longest: Int)
  }

  /// Keys and values that a call appends to the cache before it attends.
  public struct NewKeys: Hashable, Sendable {
    /// Of each sequence; where they are packed, of the longest.
    public var count: Int
    /// Of all sequences, where they are packed `[total, H_kv, D]` (`cu_seqlens_k_new`); nil for `[B, count, H_kv, D]`.
    public var packedTotal: Int?
    /// How new keys and the queries are turned; nil for not at all.
    public var rotary: RotaryEmbedding?

    /// New keys of each sequence.
    public init(_ count: Int, packedTotal: Int? = nil, rotary: RotaryEmbedding? = nil) {
      (self.count, self.packedTotal, self.rotary) = (count, packedTotal, rotary)
    }
  }

  /// B: sequences of the call.
  public let batch: Int
  /// N_q: queries of each sequence; where they are packed, of the longest.
  public let queries: Int
  /// Queries of all sequences, where they are packed `[total, H_q, D]`, a sequence behind the other (`cu_seqlens_q`,
  /// `[B + 1]`); nil for `[B, N_q, H_q, D]`.
  public let packedQueries: Int?
  /// H_q, a multiple of H_kv.
  public let queryHeads: Int
  /// H_kv.
  public let keyValueHeads: Int
  /// D, of queries and keys.
  public let dimension: Int
  /// D_v, of values and output.
  public let valueDimension: Int
  /// Where keys and values are.
  public let storage: KeyStorage
  /// Whether sequences begin somewhere inside their caches; their lengths then count from the cache's start.
  public let hasLeftPadding: Bool
  /// What is appended; nil where nothing is.
  public let newKeys: NewKeys?
  /// The type of output and new keys, and that the attention is computed in.
  public let scalarType: ScalarType
  /// The type of the queries: `scalarType` or e4m3.
  public let queryType: ScalarType
  /// The type of keys and values: `scalarType` or e4m3, whose numbers are multiplied by a scale for each sequence and
  /// head.
  public let cacheType: ScalarType
  /// Which keys a query sees.
  public let mask: AttentionMask
  /// What the scores are multiplied by.
  public let scale: Double
  /// c of `c * tanh(scale * s / c)`, applied before the mask; nil for none.
  public let softcap: Double?
  /// Keys that are computed together whatever else there is, so that a sequence's result does not depend on the others
  /// of its batch, not in a bit; nil leaves it to what is fast. With `allKeys`, each sequence is computed in one part. (Packed queries:
  /// of calls with the same `queries`, the most of a sequence. On a GPU: of tensors that the same kernels take; the plan says which strides
  /// run by others.)
  public let keysPerSplit: Int?
  /// More keys than any sequence has.
  public static let allKeys = Int(Int32.max)
  /// Whether the results of the splits are left as they are, for `PartialResults`, instead of being put together.
  public let leavesParts: Bool
  /// The type of attention sinks, f32, f16 or bf16; nil where there are none. A sink is a logit of a query head, not scaled, that
  /// every query sees beside its keys and that has no value: it is in the softmax's denominator alone (learnt in gpt-oss, 2025).
  /// The log-sum-exp is the denominator's, the sink's part in it; that of partial results is without. A query that sees no key
  /// gets output 0 and its head's sink as log-sum-exp.
  public var sinkType: ScalarType?
  /// Ranges of keys that queries see, beside what `mask` says of them; nil for none.
  public var ranges: KeyRanges.Form?
  /// In which order gradients may be added up; of the results, nothing depends on it.
  public var gradientOrder = GradientOrder.fixed

  /// In which order the parts of a gradient may be added up.
  public enum GradientOrder: Hashable, Sendable {
    /// In one and the same: the gradients have the same bits in every run on a device.
    case fixed
    /// In any, where that is faster: on a GPU, blocks of keys add up dQ in memory, in f32, as they come.
    case any
  }

  /// Whole keys: `[B, H_kv, N_k, D]`.
  ///
  /// - Parameters:
  ///   - queries: `[B, H_q, N_q, D]`.
  ///   - keys: `[B, H_kv, N_k, D]`.
  ///   - values: `[B, H_kv, N_k, D_v]`.
  ///   - scalarType: f32, f16 or bf16, of all tensors.
  ///   - mask: which keys a query sees.
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
    try self.init(
      batch: queries.batch, queries: queries.length, queryHeads: queries.heads, keyValueHeads: keys.heads,
      dimension: queries.dimension, valueDimension: values.dimension, keys: .whole(length: keys.length),
      scalarType: scalarType, mask: mask, scale: scale, softcap: softcap)
  }

  /// Sequences with lengths of their own: over a cache of keys and values ("decoding"), or over packed ones ("variable
  /// lengths").
  ///
  ///     let problem = try AttentionProblem(
  ///       batch: 4, queries: 1, queryHeads: 32, keyValueHeads: 8, dimension: 128,
  ///       keys: .contiguous(sequences: 4, capacity: 16384), scalarType: .bf16, mask: .causal)
  ///
  /// - Parameters:
  ///   - batch: sequences of the call.
  ///   - queries: of each sequence, or of the longest.
  ///   - packedQueries: of all sequences, where they are packed.
  ///   - queryHeads: H_q, a multiple of H_kv.
  ///   - keyValueHeads: H_kv.
  ///   - dimension: D.
  ///   - valueDimension: D_v; nil for D.
  ///   - storage: where keys and values are.
  ///   - hasLeftPadding: whether sequences begin somewhere inside their caches.
  ///   - newKeys: what a call appends; nil for nothing.
  ///   - scalarType: f32, f16 or bf16.
  ///   - queryType: nil for `scalarType`.
  ///   - cacheType: nil for `scalarType`.
  ///   - mask: which keys a query sees.
  ///   - scale: 1/sqrt(D) where nil.
  ///   - softcap: nil for none.
  ///   - keysPerSplit: keys that are computed together whatever else there is; nil for what is fast.
  ///   - leavesParts: needs `keysPerSplit`, and queries that are not packed.
  /// - Throws: `AttentionError` for extents, heads, types, masks, scales or softcaps that cannot be.
  public init(
    batch: Int, queries: Int, packedQueries: Int? = nil, queryHeads: Int, keyValueHeads: Int, dimension: Int,
    valueDimension: Int? = nil, keys storage: KeyStorage, hasLeftPadding: Bool = false, newKeys: NewKeys? = nil,
    scalarType: ScalarType, queryType: ScalarType? = nil, cacheType: ScalarType? = nil, mask: AttentionMask,
    scale: Double? = nil, softcap: Double? = nil, keysPerSplit: Int? = nil, leavesParts: Bool = false
  ) throws(AttentionError) {
    let capacity = try storage.checkedCapacity(batch: batch)
    if let packedQueries, packedQueries < 0 {
      throw .extent(tensor: "the queries", axis: "length", value: packedQueries)
    }
    if let keysPerSplit, keysPerSplit < 1 {
      throw .extent(tensor: "a split", axis: "number of keys", value: keysPerSplit)
    }
    if leavesParts && (keysPerSplit == nil || packedQueries != nil) {
      throw .unsupported(
        "Partial results are those of splits of a fixed length, of queries [B, s, H, D]: set keysPerSplit, and do not pack "
          + "the queries.")
    }
    func shape(_ heads: Int, _ length: Int, _ dimension: Int) -> TensorShape {
      TensorShape(batch: batch, heads: heads, length: length, dimension: dimension)
    }
    let valueDimension = valueDimension ?? dimension
    try Self.check(shape(queryHeads, queries, dimension), of: "queries")
    try Self.check(shape(keyValueHeads, capacity, dimension), of: "keys")
    try Self.check(shape(keyValueHeads, capacity, valueDimension), of: "values")
    guard queryHeads % keyValueHeads == 0 else {
      throw .headsNotDivisible(queryHeads: queryHeads, keyValueHeads: keyValueHeads)
    }
    try mask.check()
    guard ScalarType.computed.contains(scalarType) else { throw .typeOfCaches(scalarType) }
    let scale = scale ?? 1 / Double(dimension).squareRoot()
    guard Self.isScale(scale) else { throw .scale(scale) }
    if let softcap, !Self.isSoftcap(softcap, of: scale) { throw .softcap(softcap) }
    let output = shape(queryHeads, queries, valueDimension)
    guard output.checkedElementCount != nil else { throw .tooLarge(tensor: "The output", shape: output) }
    if let newKeys {
      try newKeys.check(storage, dimension: dimension)
      if newKeys.count > capacity { throw .sequenceTooLong(length: newKeys.count, limit: capacity) }
    }
    if let queryType, queryType != scalarType && queryType != .e4m3 {
      throw .mixedTypes(first: "queries", firstType: queryType, second: "the output", secondType: scalarType)
    }
    if let cacheType, cacheType != scalarType && cacheType != .e4m3 {
      throw .mixedTypes(first: "the cache", firstType: cacheType, second: "the output", secondType: scalarType)
    }
    if case .whole = storage {
      let hasMore =
        packedQueries != nil || hasLeftPadding || keysPerSplit != nil || (queryType ?? scalarType) != scalarType
        || (cacheType ?? scalarType) != scalarType
      if hasMore {
        throw .unsupported(
          "Whole keys go with whole queries of their type, without left padding and fixed splits; say that the keys are a "
            + "contiguous cache, and how many each sequence has.")
      }
    }
    (self.batch, self.queries, self.queryHeads, self.keyValueHeads) = (batch, queries, queryHeads, keyValueHeads)
    (self.dimension, self.valueDimension, self.storage) = (dimension, valueDimension, storage)
    (self.packedQueries, self.hasLeftPadding, self.newKeys) = (packedQueries, hasLeftPadding, newKeys)
    (self.queryType, self.cacheType) = (queryType ?? scalarType, cacheType ?? scalarType)
    (self.scalarType, self.mask, self.scale, self.softcap) = (scalarType, mask, scale, softcap)
    (self.keysPerSplit, self.leavesParts) = (keysPerSplit, leavesParts)
    if case .whole = storage { return }
    try Self.count("The queries", queryShape)
    try Self.count("The output", outputShape)
    try Self.count("The cache of keys", keyShape)
    try Self.count("The cache of values", valueShape)
    if newKeys != nil {
      try Self.count("The new keys", newKeyShape)
      try Self.count("The new values", newValueShape)
    }
  }

  /// The same problem for one sequence, or for several as long, with whole keys.
  ///
  /// - Parameters:
  ///   - count: queries of each; nil for as many as the problem has.
  ///   - length: keys of each.
  ///   - batch: sequences.
  ///   - type: what it is computed in; nil for the problem's own.
  public func sequence(
    queries count: Int? = nil, length: Int, batch: Int = 1, type: ScalarType? = nil
  ) throws(AttentionError) -> AttentionProblem {
    var one = try AttentionProblem(
      batch: batch, queries: count ?? queries, queryHeads: queryHeads, keyValueHeads: keyValueHeads,
      dimension: dimension, valueDimension: valueDimension, keys: .whole(length: length),
      scalarType: type ?? scalarType,
      mask: mask, scale: scale, softcap: softcap)
    (one.sinkType, one.gradientOrder, one.ranges) = (sinkType, gradientOrder, ranges)
    // What a sequence has of them is all there is.
    if case .given(let count, _) = ranges { one.ranges = .given(count: count, isShared: true) }
    return one
  }

  /// - Throws: `AttentionError` where ranges cannot be, and where sinks cannot be had: of a type that they are not of, or in parts
  ///   that the caller puts together, which would each count them.
  package func checkSinksAndRanges() throws(AttentionError) {
    try checkRanges()
    guard let sinkType else { return }
    if sinkType == .e4m3 { throw .unsupported("Sinks are e4m3; they must be f32, f16 or bf16.") }
    if leavesParts {
      throw .unsupported("Partial results are without sinks; give the sinks to what puts the parts together.")
    }
  }
}

// MARK: - What can be

extension AttentionProblem {
  // What paths multiply by must exist in f32.
  package static func isScale(_ scale: Double) -> Bool {
    Float(ScoreUnits(scale: scale, softcap: nil).base2).isFinite && (scale == 0 || Float(scale).isNormal)
  }

  private static func isSoftcap(_ softcap: Double, of scale: Double) -> Bool {
    let units = ScoreUnits(scale: scale, softcap: softcap)
    return softcap > 0 && Float(units.base2).isNormal && Float(units.cap ?? 0).isFinite
  }

  private static func check(_ shape: TensorShape, of tensor: String) throws(AttentionError) {
    if shape.batch < 0 { throw .extent(tensor: tensor, axis: "batch", value: shape.batch) }
    if shape.heads < 1 { throw .extent(tensor: tensor, axis: "heads", value: shape.heads) }
    if shape.length < 0 { throw .extent(tensor: tensor, axis: "length", value: shape.length) }
    if shape.dimension < 1 { throw .extent(tensor: tensor, axis: "dimension", value: shape.dimension) }
    if !shape.isCountable { throw .tooLarge(tensor: tensor, shape: shape) }
  }

  private static func count(_ tensor: StaticString, _ shape: TensorShape) throws(AttentionError) {
    if !shape.isCountable { throw .tooLarge(tensor: "\(tensor)", shape: shape) }
  }

  private static func check(
    _ axis: String, _ first: String, _ firstExtent: Int, _ second: String, _ secondExtent: Int
  ) throws(AttentionError) {
    if firstExtent != secondExtent {
      throw .mismatch(axis: axis, first: first, firstExtent: firstExtent, second: second, secondExtent: secondExtent)
    }
  }
}

extension AttentionProblem.KeyStorage {
  /// The most keys that a sequence can have.
  fileprivate func checkedCapacity(batch: Int) throws(AttentionError) -> Int {
    switch self {
    case .whole(let length): return length
    case .contiguous(let sequences, let capacity):
      if sequences < 1 && batch > 0 { throw .extent(tensor: "the cache", axis: "sequences", value: sequences) }
      return capacity
    case .paged(let pages, let pageSize, let pagesPerSequence):
      if pageSize < 1 { throw .extent(tensor: "the cache", axis: "page size", value: pageSize) }
      if pages < 0 { throw .extent(tensor: "the cache", axis: "length", value: pages) }
      if pagesPerSequence < 0 { throw .extent(tensor: "the page table", axis: "length", value: pagesPerSequence) }
      guard let capacity = checkedProduct([pageSize, pagesPerSequence]) else {
        throw .sequenceTooLong(length: .max, limit: 1 << 62)
      }
      return capacity
    case .packed(let total, let longest):
      if total < 0 { throw .extent(tensor: "the keys", axis: "length", value: total) }
      return longest
    }
  }
}

extension AttentionProblem.NewKeys {
  fileprivate func check(_ storage: AttentionProblem.KeyStorage, dimension: Int) throws(AttentionError) {
    if count < 0 { throw .extent(tensor: "the new keys", axis: "length", value: count) }
    if let packedTotal, packedTotal < 0 { throw .extent(tensor: "the new keys", axis: "length", value: packedTotal) }
    switch storage {
    case .contiguous, .paged: break
    case .packed:
      throw .unsupported("Keys that are packed leave no room for new ones; append to a contiguous or paged cache.")
    case .whole:
      throw .unsupported("Whole keys leave no room for new ones; append to a contiguous or paged cache.")
    }
    if let rotary {
      guard rotary.dimension % 16 == 0, (1...dimension).contains(rotary.dimension) else {
        throw .unsupported(
          "The rotary dimension is \(rotary.dimension); it must be a multiple of 16 from 16 to the head dimension, \(dimension)."
        )
      }
      if rotary.positions < 1 {
        throw .extent(tensor: "the rotary embedding", axis: "number of positions", value: rotary.positions)
      }
      if checkedProduct([8, rotary.positions, rotary.dimension]) == nil {
        throw .tooLarge(tensor: "The rotary table", shape: rotary.tableShape)
      }
    }
  }
}

extension AttentionMask {
  fileprivate func check() throws(AttentionError) {
    if let left = reach.left, left < 0 { throw .window(side: "left", value: left) }
    if let right = reach.right, right < 0 { throw .window(side: "right", value: right) }
    if let chunk, chunk < 1 { throw .extent(tensor: "the mask", axis: "chunk size", value: chunk) }
  }
}

extension AttentionProblem: CustomStringConvertible {
  /// The problem in one line.
  public var description: String {
    let heads = groupSize == 1 ? "\(queryHeads)" : "\(queryHeads)/\(keyValueHeads)"
    let values = valueDimension == dimension ? "" : " (values \(valueDimension))"
    let count = packedQueries.map { "\($0) packed queries, \(queries) at most," } ?? "\(queries) queries"
    let keys =
      switch storage {
      case .whole(let length): "x \(length) keys"
      case .contiguous(_, let capacity): "over a cache of \(capacity) keys"
      case .paged(_, let pageSize, let count): "over a cache of \(count) pages of \(pageSize)"
      case .packed(let total, let longest): "over \(total) packed keys, \(longest) at most"
      }
    let new = newKeys.map { " and \($0.count) new" } ?? ""
    let types = cacheType == scalarType ? "\(scalarType)" : "\(scalarType) over \(cacheType)"
    return "batch \(batch), heads \(heads), \(count) \(keys)\(new), dimension \(dimension)\(values), \(types), \(mask)"
      + (softcap.map { ", softcap \($0)" } ?? "") + (ranges.map { ", \($0)" } ?? "")
      + (sinkType == nil ? "" : ", sinks")
      + (leavesParts ? ", \(parts) parts" : "")
  }
}
