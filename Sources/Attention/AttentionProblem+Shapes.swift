extension AttentionProblem {
  /// Query heads that share one key/value head.
  public var groupSize: Int { queryHeads / keyValueHeads }
  /// N_k; where sequences have lengths of their own, the most keys that one can have.
  public var keys: Int {
    switch storage {
    case .whole(let length): length
    case .contiguous(_, let capacity): capacity
    case .paged(_, let pageSize, let pagesPerSequence): pageSize * pagesPerSequence
    case .packed(_, let longest): longest
    }
  }
  /// Whether the keys are whole, so that a call has no list of lengths.
  public var hasWholeKeys: Bool { if case .whole = storage { true } else { false } }
  /// Whether the keys are packed, a sequence behind the other.
  public var hasPackedKeys: Bool { if case .packed = storage { true } else { false } }
  /// Keys on a page, and entries that a sequence has in the page table; nil without pages.
  public var pages: (size: Int, perSequence: Int)? {
    if case .paged(_, let size, let perSequence) = storage { (size, perSequence) } else { nil }
  }

  /// `[B, H_q, N_q, D]`; packed, `[1, H_q, total, D]`.
  public var queryShape: TensorShape {
    TensorShape(
      batch: packedQueries == nil ? batch : 1, heads: queryHeads, length: packedQueries ?? queries, dimension: dimension
    )
  }
  /// Whether the keys of a sequence are cut into splits of a fixed length, of which there may be more than one.
  package var cutsSequences: Bool { keysPerSplit.map { $0 < Self.allKeys } ?? false }
  /// S: how many partial results there are of each row, where they are left; 1 where they are put together.
  public var parts: Int {
    guard leavesParts, let keysPerSplit, keys > 0 else { return 1 }
    return (keys - 1) / keysPerSplit + 1
  }
  /// `[B, H_q, N_q, D_v]`; packed, `[1, H_q, total, D_v]`; of parts `[S B, H_q, N_q, D_v]`, a part behind the other.
  public var outputShape: TensorShape {
    var shape = queryShape
    (shape.batch, shape.dimension) = (shape.batch * parts, valueDimension)
    return shape
  }
  /// The type of the output: f32 of parts.
  public var outputType: ScalarType { leavesParts ? .f32 : scalarType }
  /// `[B, H_kv, N_k, D]`, of a cache `[sequences, H_kv, capacity, D]` or `[pages, H_kv, page size, D]`, packed `[1,
  /// H_kv, total, D]`.
  public var keyShape: TensorShape {
    let (count, length) =
      switch storage {
      case .whole(let length): (batch, length)
      case .contiguous(let sequences, let capacity): (sequences, capacity)
      case .paged(let pages, let pageSize, _): (pages, pageSize)
      case .packed(let total, _): (1, total)
      }
    return TensorShape(batch: count, heads: keyValueHeads, length: length, dimension: dimension)
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
  /// Elements of the log-sum-exp: `[B, H_q, N_q]`; packed, `[H_q, total]`; of parts `[S, B, H_q, N_q]`.
  public var logSumExpCount: Int { outputShape.batch * queryHeads * queryShape.length }
}

extension RotaryEmbedding {
  /// Of the cosines, and of the sines: `[1, 1, positions, dimension / 2]`.
  public var tableShape: TensorShape {
    TensorShape(batch: 1, heads: 1, length: positions, dimension: dimension / 2)
  }
}

extension AttentionProblem {
  /// Its scale and softcap as a softmax in base 2 multiplies by them.
  package var scoreUnits: ScoreUnits { ScoreUnits(scale: scale, softcap: softcap) }
}

// MARK: - Work, of whole keys

extension AttentionProblem {
  /// The keys that the mask lets a query see; ranges say more.
  public func visibleKeys(ofQuery query: Int) -> Range<Int> {
    mask.visibleKeys(ofQuery: query, queries: queries, keys: keys)
  }

  /// Floating-point operations by the field's convention: a multiply-add is two, the softmax is free, and a causal
  /// mask halves the work: `2 * (D + D_v)` for each pair of a query and a key that the mask lets it see, counted pair by pair; of
  /// ranges, whose numbers are a call's, nothing is known.
  public var flops: Double {
    2 * Double(dimension + valueDimension) * visiblePairs * Double(batch) * Double(queryHeads)
  }

  /// Pairs of a query and a key that it sees, of one head: but for chunks, without a loop over the queries, who may be
  /// many.
  package var visiblePairs: Double {
    if mask.chunk != nil { return (0..<queries).reduce(0) { $0 + Double(visibleKeys(ofQuery: $1).count) } }
    let (left, right) = mask.offsets(queries: queries, keys: keys)
    let (starts, ends) = (sumOfClamped(from: Double(left)), sumOfClamped(from: Double(right) + 1))
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
    Double(queryShape.elementCount) * Double(queryType.byteCount)
      + (Double(keyShape.elementCount) + Double(valueShape.elementCount)) * Double(cacheType.byteCount)
      + Double(outputShape.elementCount) * Double(outputType.byteCount)
  }
}
