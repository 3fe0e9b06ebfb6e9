extension CacheEntries where Memory == HostMemory {
  /// The queries of a sequence.
  package func queries(of sequence: Int, _ problem: AttentionProblem) -> Range<Int> {
    guard let queryStarts else { return 0..<problem.queries }
    let all = queryStarts[sequence]..<queryStarts[sequence + 1]
    return queryCounts.map { all.prefix($0[sequence]) } ?? all
  }

  /// The rows of a sequence's cache that hold keys, without those that the call brings; of packed keys, their number.
  package func rows(of sequence: Int) -> Int { lengths?[sequence] ?? keyStarts![sequence + 1] - keyStarts![sequence] }

  /// The row of a sequence's first key in its cache.
  package func firstRow(of sequence: Int) -> Int { leftPadding?[sequence] ?? 0 }

  /// The new keys of a sequence, among all that are packed, or its own.
  package func newKeys(of sequence: Int, _ problem: AttentionProblem, starts: [Int]?) -> Range<Int> {
    starts.map { $0[sequence]..<$0[sequence + 1] } ?? 0..<(problem.newKeys?.count ?? 0)
  }

  /// Checks the numbers in lists that are there as the problem needs them.
  ///
  /// - Parameter newStarts: of new keys, where they are packed.
  /// - Throws: `AttentionError` where the numbers are not what a problem needs, or lead out of the cache.
  package func check(_ problem: AttentionProblem, newStarts: [Int]?) throws(AttentionError) {
    func each(_ what: String, _ values: [Int]?, limit: Int) throws(AttentionError) {
      guard let values else { return }
      if values.count != problem.batch { throw .cacheEntries("\(what)s", count: values.count, batch: problem.batch) }
      for (sequence, value) in values.enumerated() where !(0...max(limit, 0)).contains(value) || limit < 0 {
        throw .cacheEntry(what, sequence: sequence, value: value, limit: limit)
      }
    }
    func starts(_ what: String, _ values: [Int]?, total: Int?, longest: Int) throws(AttentionError) {
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
    try each("query count", queryCounts, limit: problem.queries)
    if let queryCounts, let queryStarts, queryStarts.count == problem.batch + 1 {
      for (sequence, count) in queryCounts.enumerated() where count > queryStarts[sequence + 1] - queryStarts[sequence]
      {
        throw .cacheEntry(
          "query count", sequence: sequence, value: count, limit: queryStarts[sequence + 1] - queryStarts[sequence])
      }
    }
    try starts("new key", newStarts, total: problem.newKeys?.packedTotal, longest: problem.newKeys?.count ?? 0)
    for (what, scales) in [("query scale", queryScales), ("key scale", keyScales), ("value scale", valueScales)] {
      if let scales, scales.count != problem.batch * problem.keyValueHeads {
        throw .cacheEntries("\(what)s", count: scales.count, batch: problem.batch * problem.keyValueHeads)
      }
    }
    let packedTotal = problem.hasPackedKeys ? problem.keyShape.length : nil
    try starts("key", keyStarts, total: packedTotal, longest: problem.keys)
    try each("length", lengths, limit: problem.keys)
    if let lengths, let keyStarts {
      for (sequence, length) in lengths.enumerated() where length > keyStarts[sequence + 1] - keyStarts[sequence] {
        throw .cacheEntry(
          "length", sequence: sequence, value: length, limit: keyStarts[sequence + 1] - keyStarts[sequence])
      }
    }
    for sequence in 0..<problem.batch {
      let (new, rows) = (newKeys(of: sequence, problem, starts: newStarts).count, rows(of: sequence))
      if new > 0 && rows + new > problem.keys {
        throw .cacheEntry("length with \(new) new keys", sequence: sequence, value: rows + new, limit: problem.keys)
      }
    }
    try each("left padding", leftPadding, limit: problem.keys)
    switch problem.storage {
    case .whole, .packed: break
    case .contiguous(let sequences, _): try each("place in the cache", batchIndex, limit: sequences - 1)
    case .paged(let pages, let pageSize, _):
      let pageTable = pageTable ?? []
      if pageTable.count != problem.batch {
        throw .cacheEntries("lists of pages", count: pageTable.count, batch: problem.batch)
      }
      for (sequence, list) in pageTable.enumerated() {
        let rows = rows(of: sequence) + newKeys(of: sequence, problem, starts: newStarts).count
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
    _ problem: AttentionProblem, newStarts: [Int]?
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
      let new = newKeys(of: sequence, problem, starts: newStarts).count
      if new == 0 { continue }
      guard let pageSize = problem.pages?.size, let pages = pageTable?[sequence] else {
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
