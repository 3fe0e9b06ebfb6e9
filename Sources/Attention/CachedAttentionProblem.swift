/// Attention of sequences with lengths of their own: over a cache of keys and values ("decoding"), or over keys that are packed
/// one sequence behind the other ("variable lengths").
///
/// Query i of a sequence with q queries and n keys stands at key `i + n - q`, as in `AttentionMask`: the last query stands on
/// the last key. New keys, where a call brings some, are appended to the cache first and count as keys.
public struct CachedAttentionProblem: Hashable, Sendable {
  /// How the keys lie in memory.
  public enum Cache: Hashable, Sendable {
    /// `[sequences, capacity, H_kv, D]` (or any other strides).
    case contiguous(sequences: Int, capacity: Int)
    /// `[pages, pageSize, H_kv, D]` and a table `[batch, pagesPerSequence]` of the pages of each sequence.
    case paged(pages: Int, pageSize: Int, pagesPerSequence: Int)
    /// `[total, H_kv, D]`, a sequence behind the other, and where each begins (`cu_seqlens_k`, `[batch + 1]`); none has more than
    /// `longest` keys.
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

  /// Sequences in the call.
  public let batch: Int
  /// Queries of each sequence; where they are packed, of the longest.
  public let queries: Int
  /// Queries of all sequences, where they are packed `[total, H_q, D]`, a sequence behind the other (`cu_seqlens_q`,
  /// `[batch + 1]`); nil for `[B, s_q, H_q, D]`.
  public let packedQueries: Int?
  /// Query heads; query head h reads key/value head `h / groupSize`.
  public let queryHeads: Int
  /// Key/value heads.
  public let keyValueHeads: Int
  /// D of queries and keys.
  public let dimension: Int
  /// D_v of values and output.
  public let valueDimension: Int
  /// Where keys and values are.
  public let cache: Cache
  /// Whether sequences begin somewhere inside their caches; their lengths then count from the cache's start.
  public let hasLeftPadding: Bool
  /// What is appended; nil where nothing is.
  public let newKeys: NewKeys?
  /// The type of output and new keys, and that the attention is computed in.
  public let scalarType: ScalarType
  /// The type of the queries: `scalarType` or e4m3.
  public let queryType: ScalarType
  /// The type of keys and values: `scalarType` or e4m3, whose numbers are multiplied by a scale for each sequence and head.
  public let cacheType: ScalarType
  /// Which keys a query sees.
  public let mask: AttentionMask
  /// What scores are multiplied by.
  public let scale: Double
  /// Scores become `softcap * tanh(score / softcap)`; nil for none.
  public let softcap: Double?
  /// Keys that are computed together whatever else there is, so that a sequence's result does not depend on the others of its
  /// batch, not in a bit; nil leaves it to what is fast.
  public let keysPerSplit: Int?
  /// Whether the results of the splits are left as they are, for `PartialResults`, instead of being put together.
  public let leavesParts: Bool

  /// - Parameters:
  ///   - queries: of each sequence, or of the longest.
  ///   - packedQueries: of all sequences, where they are packed.
  ///   - queryType: nil for `scalarType`.
  ///   - cacheType: nil for `scalarType`.
  ///   - scale: 1/sqrt(D) where nil.
  ///   - leavesParts: needs `keysPerSplit`, and queries that are not packed.
  /// - Throws: `AttentionError` for extents, heads, types, masks, scales or softcaps that cannot be.
  public init(
    batch: Int, queries: Int, packedQueries: Int? = nil, queryHeads: Int, keyValueHeads: Int, dimension: Int,
    valueDimension: Int? = nil, cache: Cache, hasLeftPadding: Bool = false, newKeys: NewKeys? = nil,
    scalarType: ScalarType, queryType: ScalarType? = nil, cacheType: ScalarType? = nil, mask: AttentionMask = .causal,
    scale: Double? = nil, softcap: Double? = nil, keysPerSplit: Int? = nil, leavesParts: Bool = false
  ) throws(AttentionError) {
    let capacity = try Self.capacity(of: cache, batch: batch)
    if let packedQueries, packedQueries < 0 {
      throw .extent(tensor: "the queries", axis: "length", value: packedQueries)
    }
    if let keysPerSplit, keysPerSplit < 1 {
      throw .extent(tensor: "a split", axis: "number of keys", value: keysPerSplit)
    }
    if leavesParts && (keysPerSplit == nil || packedQueries != nil) {
      throw .unsupported(
        "Partial results are those of splits of a fixed length, of queries [B, s, H, D]: set keysPerSplit, and do not pack the queries."
      )
    }
    // The rest is what attention over whole caches would have to be.
    let keys = TensorShape(batch: batch, heads: keyValueHeads, length: capacity, dimension: dimension)
    var values = keys
    values.dimension = valueDimension ?? dimension
    let whole = try AttentionProblem(
      queries: TensorShape(batch: batch, heads: queryHeads, length: queries, dimension: dimension), keys: keys,
      values: values, scalarType: scalarType, mask: mask, scale: scale, softcap: softcap)
    if let newKeys {
      try newKeys.check(cache, dimension: dimension)
      if newKeys.count > capacity { throw .sequenceTooLong(length: newKeys.count, limit: capacity) }
    }
    for (what, type) in [("queries", queryType), ("the cache", cacheType)] {
      if let type, type != scalarType && type != .e4m3 {
        throw .mixedTypes(first: what, firstType: type, second: "the output", secondType: scalarType)
      }
    }
    (self.batch, self.queries, self.queryHeads, self.keyValueHeads) = (batch, queries, queryHeads, keyValueHeads)
    (self.dimension, self.valueDimension, self.cache) = (dimension, values.dimension, cache)
    (self.packedQueries, self.hasLeftPadding, self.newKeys) = (packedQueries, hasLeftPadding, newKeys)
    (self.queryType, self.cacheType) = (queryType ?? scalarType, cacheType ?? scalarType)
    (self.scalarType, self.mask, self.scale, self.softcap) = (scalarType, mask, whole.scale, softcap)
    (self.keysPerSplit, self.leavesParts) = (keysPerSplit, leavesParts)
    for (name, shape) in [
      ("The queries", queryShape), ("The output", outputShape), ("The cache of keys", keyShape),
      ("The cache of values", valueShape), ("The new keys", newKeyShape), ("The new values", newValueShape),
    ] where checkedProduct([8, shape.batch, shape.heads, shape.length, shape.dimension]) == nil {
      throw .tooLarge(tensor: name, shape: shape)
    }
  }

  private static func capacity(of cache: Cache, batch: Int) throws(AttentionError) -> Int {
    switch cache {
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

  /// Query heads that share a key/value head.
  public var groupSize: Int { queryHeads / keyValueHeads }
  /// The most keys that a sequence can have.
  public var capacity: Int {
    switch cache {
    case .contiguous(_, let capacity): capacity
    case .paged(_, let pageSize, let pagesPerSequence): pageSize * pagesPerSequence
    case .packed(_, let longest): longest
    }
  }
  /// Whether the keys are packed, a sequence behind the other.
  public var hasPackedKeys: Bool { if case .packed = cache { true } else { false } }

  /// `[B, H_q, s_q, D]`; packed, `[1, H_q, total, D]`.
  public var queryShape: TensorShape {
    TensorShape(
      batch: packedQueries == nil ? batch : 1, heads: queryHeads, length: packedQueries ?? queries, dimension: dimension
    )
  }
  /// S: how many partial results there are of each row, where they are left; 1 where they are put together.
  public var parts: Int {
    guard leavesParts, let keysPerSplit, capacity > 0 else { return 1 }
    return (capacity - 1) / keysPerSplit + 1
  }
  /// `[B, H_q, s_q, D_v]`; packed, `[1, H_q, total, D_v]`; of parts `[S B, H_q, s_q, D_v]`, a part behind the other.
  public var outputShape: TensorShape {
    var shape = queryShape
    (shape.batch, shape.dimension) = (shape.batch * parts, valueDimension)
    return shape
  }
  /// The type of the output: f32 of parts.
  public var outputType: ScalarType { leavesParts ? .f32 : scalarType }
  /// `[sequences, H_kv, capacity, D]`, `[pages, H_kv, page size, D]`, or packed `[1, H_kv, total, D]`.
  public var keyShape: TensorShape {
    switch cache {
    case .contiguous(let sequences, let capacity):
      TensorShape(batch: sequences, heads: keyValueHeads, length: capacity, dimension: dimension)
    case .paged(let pages, let pageSize, _):
      TensorShape(batch: pages, heads: keyValueHeads, length: pageSize, dimension: dimension)
    case .packed(let total, _):
      TensorShape(batch: 1, heads: keyValueHeads, length: total, dimension: dimension)
    }
  }
  /// The same of V, with D_v.
  public var valueShape: TensorShape {
    var shape = keyShape
    shape.dimension = valueDimension
    return shape
  }
  /// `[B, H_kv, s_new, D]`, packed `[1, H_kv, total, D]`; without new keys, no tokens.
  public var newKeyShape: TensorShape {
    TensorShape(
      batch: newKeys?.packedTotal == nil ? batch : 1, heads: keyValueHeads,
      length: newKeys.map { $0.packedTotal ?? $0.count } ?? 0, dimension: dimension)
  }
  /// The same of V, with D_v.
  public var newValueShape: TensorShape {
    var shape = newKeyShape
    shape.dimension = valueDimension
    return shape
  }
  /// Elements of the log-sum-exp: `[B, H_q, s_q]`; packed, `[H_q, total]`; of parts `[S, B, H_q, s_q]`.
  public var logSumExpCount: Int { outputShape.batch * queryHeads * queryShape.length }

  /// The same problem for one sequence, or for several as long, without a cache.
  ///
  /// - Parameter type: what it is computed in; nil for the problem's own.
  public func sequence(
    queries count: Int? = nil, length: Int, batch: Int = 1, type: ScalarType? = nil
  ) throws(AttentionError) -> AttentionProblem {
    let keys = TensorShape(batch: batch, heads: keyValueHeads, length: length, dimension: dimension)
    var values = keys
    values.dimension = valueDimension
    return try AttentionProblem(
      queries: TensorShape(batch: batch, heads: queryHeads, length: count ?? queries, dimension: dimension), keys: keys,
      values: values, scalarType: type ?? scalarType, mask: mask, scale: scale, softcap: softcap)
  }
}

extension CachedAttentionProblem.NewKeys {
  fileprivate func check(_ cache: CachedAttentionProblem.Cache, dimension: Int) throws(AttentionError) {
    if count < 0 { throw .extent(tensor: "the new keys", axis: "length", value: count) }
    if let packedTotal, packedTotal < 0 { throw .extent(tensor: "the new keys", axis: "length", value: packedTotal) }
    if case .packed = cache {
      throw .unsupported("Keys that are packed leave no room for new ones; append to a contiguous or paged cache.")
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
        let table = TensorShape(batch: 1, heads: 1, length: rotary.positions, dimension: rotary.dimension / 2)
        throw .tooLarge(tensor: "The rotary table", shape: table)
      }
    }
  }
}

extension CachedAttentionProblem: CustomStringConvertible {
  /// The shape in words.
  public var description: String {
    let heads = groupSize == 1 ? "\(queryHeads)" : "\(queryHeads)/\(keyValueHeads)"
    let where_ =
      switch cache {
      case .contiguous(_, let capacity): "a cache of \(capacity) keys"
      case .paged(_, let pageSize, let count): "a cache of \(count) pages of \(pageSize)"
      case .packed(let total, let longest): "\(total) packed keys, \(longest) at most"
      }
    let values = valueDimension == dimension ? "" : " (values \(valueDimension))"
    let count = packedQueries.map { "\($0) packed queries, \(queries) at most," } ?? "\(queries) queries"
    let new = newKeys.map { " and \($0.count) new" } ?? ""
    let types = cacheType == scalarType ? "\(scalarType)" : "\(scalarType) over \(cacheType)"
    let parts = leavesParts ? ", \(parts) parts" : ""
    return
      "batch \(batch), heads \(heads), \(count) over \(where_)\(new), dimension \(dimension)\(values), \(types), \(mask)\(parts)"
  }
}
