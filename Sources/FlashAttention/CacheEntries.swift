/// What a call says of each of its sequences, in the host's memory.
public struct CacheEntries: Hashable, Sendable {
  /// The rows of each sequence's cache that hold keys, those that the call brings not counted. nil where packed keys are as many as
  /// their starts say.
  public var lengths: [Int]?
  /// Which sequence of the cache; nil for each its own number. Not with pages.
  public var batchIndex: [Int]?
  /// The row of each sequence's first key; nil for 0.
  public var leftPadding: [Int]?
  /// The pages of each sequence, as many as its length needs or more; nil without pages.
  public var pageTable: [[Int]]?
  /// The first query of each sequence and the end of the last, where queries are packed: `batch + 1` numbers.
  public var queryStarts: [Int]?
  /// The queries of each sequence that count, where they are packed; nil for all.
  public var queryCounts: [Int]?
  /// The first key of each sequence and the end of the last, where keys are packed.
  public var keyStarts: [Int]?
  /// What e4m3 queries stand for, a factor for each sequence and key/value head `[B, H_kv]`, above 0; nil for 1.
  public var queryScales: [Float]?
  /// What e4m3 keys stand for.
  public var keyScales: [Float]?
  /// What e4m3 values stand for.
  public var valueScales: [Float]?

  /// One number, or one list of pages, for each sequence.
  public init(
    lengths: [Int]? = nil, batchIndex: [Int]? = nil, leftPadding: [Int]? = nil, pageTable: [[Int]]? = nil,
    queryStarts: [Int]? = nil, keyStarts: [Int]? = nil, queryScales: [Float]? = nil, keyScales: [Float]? = nil,
    valueScales: [Float]? = nil
  ) {
    (self.lengths, self.batchIndex, self.leftPadding, self.pageTable) = (lengths, batchIndex, leftPadding, pageTable)
    (self.queryStarts, self.keyStarts) = (queryStarts, keyStarts)
    (self.queryScales, self.keyScales, self.valueScales) = (queryScales, keyScales, valueScales)
  }

  /// The queries of a sequence.
  func queries(of sequence: Int, _ problem: CachedAttentionProblem) -> Range<Int> {
    guard let queryStarts else { return 0..<problem.queries }
    let all = queryStarts[sequence]..<queryStarts[sequence + 1]
    return queryCounts.map { all.prefix($0[sequence]) } ?? all
  }

  /// The rows of a sequence's cache that hold keys, without those that the call brings; of packed keys, their number.
  func rows(of sequence: Int) -> Int { lengths?[sequence] ?? keyStarts![sequence + 1] - keyStarts![sequence] }

  /// - Parameter newStarts: of new keys, where they are packed.
  /// - Throws: `AttentionError` where the numbers are not what a problem needs, or lead out of the cache.
  func check(_ problem: CachedAttentionProblem, newStarts: [Int]?) throws(AttentionError) {
    func each(_ what: String, _ values: [Int]?, limit: Int) throws(AttentionError) {
      guard let values else { return }
      if values.count != problem.batch { throw .cacheEntries("\(what)s", count: values.count, batch: problem.batch) }
      for (sequence, value) in values.enumerated() where !(0...max(limit, 0)).contains(value) || limit < 0 {
        throw .cacheEntry(what, sequence: sequence, value: value, limit: limit)
      }
    }
    func starts(_ what: String, _ values: [Int]?, total: Int?, longest: Int) throws(AttentionError) {
      if (values != nil) != (total != nil) {
        throw .notInThePlan(tensor: "list of \(what) starts", isMissing: total != nil)
      }
      guard let values, let total else { return }
      if values.count != problem.batch + 1 {
        throw .cacheEntries("\(what) starts (with the end of the last)", count: values.count, batch: problem.batch)
      }
      for (sequence, pair) in zip(values, values.dropFirst()).enumerated() {
        if !(0...total).contains(pair.0) {
          throw .cacheEntry("\(what) start", sequence: sequence, value: pair.0, limit: total)
        }
        // Two numbers of any size: their difference may have no room.
        let (count, overflow) = pair.1.subtractingReportingOverflow(pair.0)
        if overflow || !(0...longest).contains(count) || pair.1 > total {
          throw .cacheEntry("\(what) count", sequence: sequence, value: count, limit: min(longest, total - pair.0))
        }
      }
    }
    try starts("query", queryStarts, total: problem.packedQueries, longest: problem.queries)
    if queryCounts != nil && queryStarts == nil {
      throw .notInThePlan(tensor: "list of query counts", isMissing: false)
    }
    try each("query count", queryCounts, limit: problem.queries)
    if let queryCounts, let queryStarts, queryStarts.count == problem.batch + 1 {
      for (sequence, count) in queryCounts.enumerated() where count > queryStarts[sequence + 1] - queryStarts[sequence]
      {
        throw .cacheEntry(
          "query count", sequence: sequence, value: count, limit: queryStarts[sequence + 1] - queryStarts[sequence])
      }
    }
    try starts("new key", newStarts, total: problem.newKeys?.packedTotal, longest: problem.newKeys?.count ?? 0)
    if lengths == nil && !problem.hasPackedKeys { throw .notInThePlan(tensor: "list of lengths", isMissing: true) }
    if (leftPadding != nil) != problem.hasLeftPadding {
      throw .notInThePlan(tensor: "left padding", isMissing: problem.hasLeftPadding)
    }
    for (what, scales) in [("query scale", queryScales), ("key scale", keyScales), ("value scale", valueScales)] {
      if let scales, scales.count != problem.batch * problem.keyValueHeads {
        throw .cacheEntries("\(what)s", count: scales.count, batch: problem.batch * problem.keyValueHeads)
      }
    }
    var packedTotal: Int?
    if case .packed(let total, _) = problem.cache { packedTotal = total }
    try starts("key", keyStarts, total: packedTotal, longest: problem.capacity)
    try each("length", lengths, limit: problem.capacity)
    if let lengths, let keyStarts {
      for (sequence, length) in lengths.enumerated() where length > keyStarts[sequence + 1] - keyStarts[sequence] {
        throw .cacheEntry(
          "length", sequence: sequence, value: length, limit: keyStarts[sequence + 1] - keyStarts[sequence])
      }
    }
    for sequence in 0..<problem.batch {
      let new = newStarts.map { $0[sequence + 1] - $0[sequence] } ?? problem.newKeys?.count ?? 0
      let rows = rows(of: sequence)
      if new > 0 && rows + new > problem.capacity {
        throw .cacheEntry("length with \(new) new keys", sequence: sequence, value: rows + new, limit: problem.capacity)
      }
    }
    try each("left padding", leftPadding, limit: problem.capacity)
    switch problem.cache {
    case .packed:
      if pageTable != nil { throw .notInThePlan(tensor: "page table", isMissing: false) }
      if batchIndex != nil { throw .notInThePlan(tensor: "batch index", isMissing: false) }
    case .contiguous(let sequences, _):
      if pageTable != nil { throw .notInThePlan(tensor: "page table", isMissing: false) }
      if batchIndex == nil && problem.batch > sequences {
        throw .cacheEntries("sequences in the cache", count: sequences, batch: problem.batch)
      }
      try each("place in the cache", batchIndex, limit: sequences - 1)
    case .paged(let pages, let pageSize, _):
      if batchIndex != nil { throw .notInThePlan(tensor: "batch index", isMissing: false) }
      guard let pageTable else { throw .notInThePlan(tensor: "page table", isMissing: true) }
      if pageTable.count != problem.batch {
        throw .cacheEntries("lists of pages", count: pageTable.count, batch: problem.batch)
      }
      for (sequence, list) in pageTable.enumerated() {
        let new = newStarts.map { $0[sequence + 1] - $0[sequence] } ?? problem.newKeys?.count ?? 0
        let rows = rows(of: sequence) + new
        let needed = rows == 0 ? 0 : (rows - 1) / pageSize + 1
        if list.count < needed {
          throw .cacheEntry("length", sequence: sequence, value: rows, limit: list.count * pageSize)
        }
        for page in list.prefix(needed) where !(0..<pages).contains(page) {
          throw .cacheEntry("page", sequence: sequence, value: page, limit: pages - 1)
        }
      }
    }
    if problem.newKeys != nil { try checkThatNoRowIsWrittenTwice(problem, newStarts: newStarts) }
  }

  /// - Throws: where two sequences of a call would append to the same row of the cache.
  private func checkThatNoRowIsWrittenTwice(
    _ problem: CachedAttentionProblem, newStarts: [Int]?
  ) throws(AttentionError) {
    /// Of each sequence of the cache, or page, the rows that are written there, and by whom.
    var writers: [Int: [(rows: Range<Int>, sequence: Int)]] = [:]
    func write(_ rows: Range<Int>, at place: Int, by sequence: Int) throws(AttentionError) {
      for other in writers[place] ?? [] where other.rows.overlaps(rows) {
        let (row, isPaged) = (max(other.rows.lowerBound, rows.lowerBound), pageTable != nil)
        throw .unsupported(
          "Sequences \(other.sequence) and \(sequence) of the call would both append to row \(row) of "
            + "\(isPaged ? "page" : "sequence") \(place) of the cache; give each rows of its own.")
      }
      writers[place, default: []].append((rows, sequence))
    }
    for sequence in 0..<problem.batch {
      let first = rows(of: sequence)
      let new = newStarts.map { $0[sequence + 1] - $0[sequence] } ?? problem.newKeys?.count ?? 0
      if new == 0 { continue }
      guard case .paged(_, let pageSize, _) = problem.cache, let pages = pageTable?[sequence] else {
        try write(first..<first + new, at: batchIndex?[sequence] ?? sequence, by: sequence)
        continue
      }
      for number in first / pageSize...(first + new - 1) / pageSize {
        let start = number * pageSize
        try write(
          max(first - start, 0)..<min(first + new - start, pageSize), at: pages[number], by: sequence)
      }
    }
  }
}

/// Keys and values that a call appends to the cache before it attends, in the host's memory.
public struct NewKeyViews: Sendable {
  /// `[B, H_kv, s_new, D]`; packed, `[1, H_kv, total, D]`.
  public var keys: TensorView
  /// The same with D_v.
  public var values: TensorView
  /// The first new key of each sequence and the end of the last, where they are packed.
  public var starts: [Int]?
  /// Tables of the rotary embedding, `[1, 1, positions, dimension / 2]`; nil without one.
  public var rotary: (cosines: TensorView, sines: TensorView)?
  /// The position of each sequence's first new key; nil for its length.
  public var positions: [Int]?

  /// New keys of a call.
  public init(
    keys: TensorView, values: TensorView, starts: [Int]? = nil, rotary: (cosines: TensorView, sines: TensorView)? = nil,
    positions: [Int]? = nil
  ) {
    (self.keys, self.values, self.starts, self.rotary, self.positions) = (keys, values, starts, rotary, positions)
  }
}
