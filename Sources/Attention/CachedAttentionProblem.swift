/// Attention of a few queries over a cache of keys and values, of which each sequence has a length of its own: decoding.
///
/// Query i of a sequence with `queries` queries and a cache of length n stands at key `i + n - queries`, as in `AttentionMask`: the
/// last query stands on the last key.
public struct CachedAttentionProblem: Hashable, Sendable {
  /// How the cache lies in memory.
  public enum Cache: Hashable, Sendable {
    /// `[sequences, capacity, H_kv, D]` (or any other strides).
    case contiguous(sequences: Int, capacity: Int)
    /// `[pages, pageSize, H_kv, D]` and a table `[batch, pagesPerSequence]` of the pages of each sequence.
    case paged(pages: Int, pageSize: Int, pagesPerSequence: Int)
  }

  /// Sequences in the call.
  public let batch: Int
  /// Queries of each sequence.
  public let queries: Int
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
  /// The type of all tensors.
  public let scalarType: ScalarType
  /// Which keys a query sees.
  public let mask: AttentionMask
  /// What scores are multiplied by.
  public let scale: Double
  /// Scores become `softcap * tanh(score / softcap)`; nil for none.
  public let softcap: Double?

  /// - Parameters:
  ///   - scale: 1/sqrt(D) where nil.
  /// - Throws: `AttentionError` for extents, heads, masks, scales or softcaps that cannot be.
  public init(
    batch: Int, queries: Int, queryHeads: Int, keyValueHeads: Int, dimension: Int, valueDimension: Int? = nil,
    cache: Cache, hasLeftPadding: Bool = false, scalarType: ScalarType, mask: AttentionMask = .causal,
    scale: Double? = nil, softcap: Double? = nil
  ) throws(AttentionError) {
    let capacity: Int
    switch cache {
    case .contiguous(let sequences, let perSequence):
      if sequences < 1 && batch > 0 { throw .extent(tensor: "the cache", axis: "sequences", value: sequences) }
      capacity = perSequence
    case .paged(let pages, let pageSize, let pagesPerSequence):
      if pageSize < 1 { throw .extent(tensor: "the cache", axis: "page size", value: pageSize) }
      if pages < 0 { throw .extent(tensor: "the cache", axis: "length", value: pages) }
      if pagesPerSequence < 0 { throw .extent(tensor: "the page table", axis: "length", value: pagesPerSequence) }
      capacity = pageSize * pagesPerSequence
    }
    // The rest is what attention over whole caches would have to be.
    let keys = TensorShape(batch: batch, heads: keyValueHeads, length: capacity, dimension: dimension)
    var values = keys
    values.dimension = valueDimension ?? dimension
    let whole = try AttentionProblem(
      queries: TensorShape(batch: batch, heads: queryHeads, length: queries, dimension: dimension), keys: keys,
      values: values, scalarType: scalarType, mask: mask, scale: scale, softcap: softcap)
    (self.batch, self.queries, self.queryHeads, self.keyValueHeads) = (batch, queries, queryHeads, keyValueHeads)
    (self.dimension, self.valueDimension, self.cache) = (dimension, values.dimension, cache)
    self.hasLeftPadding = hasLeftPadding
    (self.scalarType, self.mask, self.scale, self.softcap) = (scalarType, mask, whole.scale, softcap)
  }

  /// Query heads that share a key/value head.
  public var groupSize: Int { queryHeads / keyValueHeads }
  /// The most keys that a sequence can have.
  public var capacity: Int {
    switch cache {
    case .contiguous(_, let capacity): capacity
    case .paged(_, let pageSize, let pagesPerSequence): pageSize * pagesPerSequence
    }
  }

  /// `[B, H_q, s_q, D]`.
  public var queryShape: TensorShape {
    TensorShape(batch: batch, heads: queryHeads, length: queries, dimension: dimension)
  }
  /// `[B, H_q, s_q, D_v]`.
  public var outputShape: TensorShape {
    TensorShape(batch: batch, heads: queryHeads, length: queries, dimension: valueDimension)
  }
  /// `[sequences, H_kv, capacity, D]`, or `[pages, H_kv, page size, D]`.
  public var keyShape: TensorShape {
    switch cache {
    case .contiguous(let sequences, let capacity):
      TensorShape(batch: sequences, heads: keyValueHeads, length: capacity, dimension: dimension)
    case .paged(let pages, let pageSize, _):
      TensorShape(batch: pages, heads: keyValueHeads, length: pageSize, dimension: dimension)
    }
  }
  /// The same of V, with D_v.
  public var valueShape: TensorShape {
    var shape = keyShape
    shape.dimension = valueDimension
    return shape
  }
  /// Elements of the log-sum-exp.
  public var logSumExpCount: Int { batch * queryHeads * queries }

  /// The same problem for one sequence of `length` keys, without a cache.
  public func sequence(length: Int) throws(AttentionError) -> AttentionProblem {
    let keys = TensorShape(batch: 1, heads: keyValueHeads, length: length, dimension: dimension)
    var values = keys
    values.dimension = valueDimension
    return try AttentionProblem(
      queries: TensorShape(batch: 1, heads: queryHeads, length: queries, dimension: dimension), keys: keys,
      values: values, scalarType: scalarType, mask: mask, scale: scale, softcap: softcap)
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
      }
    let values = valueDimension == dimension ? "" : " (values \(valueDimension))"
    return
      "batch \(batch), heads \(heads), \(queries) queries over \(where_), dimension \(dimension)\(values), \(scalarType), \(mask)"
  }
}
