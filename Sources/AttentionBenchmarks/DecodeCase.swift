package import Attention

/// A case of the grid.
package struct DecodeCase: Encodable {
  package let batch, context, queries, queryHeads, kvHeads: Int

  package init(batch: Int, context: Int, queries: Int, queryHeads: Int, kvHeads: Int) {
    (self.batch, self.context, self.queries) = (batch, context, queries)
    (self.queryHeads, self.kvHeads) = (queryHeads, kvHeads)
  }

  /// Its problem; the cache is contiguous without a page size.
  package func problem(
    _ type: ScalarType, cacheType: ScalarType? = nil, dimension: Int = 128, pageSize: Int? = nil, newKeys: Int = 0,
    keysPerSplit: Int? = nil
  ) throws(AttentionError) -> AttentionProblem {
    var cache = AttentionProblem.KeyStorage.contiguous(sequences: batch, capacity: context)
    if let pageSize {
      let pages = (context - 1) / pageSize + 1
      // Beyond what can be counted it is refused like any other number.
      let (all, overflow) = pages.multipliedReportingOverflow(by: batch)
      cache = .paged(pages: overflow ? .max : all, pageSize: pageSize, pagesPerSequence: pages)
    }
    return try AttentionProblem(
      batch: batch, queries: queries, queryHeads: queryHeads, keyValueHeads: kvHeads, dimension: dimension,
      keys: cache,
      newKeys: newKeys > 0 ? .init(newKeys) : nil, scalarType: type, cacheType: cacheType, mask: .causal,
      keysPerSplit: keysPerSplit)
  }
}

extension DecodeCase {
  /// What `bench decode` and `tune decode` measure.
  package static var grid: [DecodeCase] {
    let shapes: [(batch: Int, context: Int, queries: [Int])] = [
      (4, 16384, [1, 4, 8]), (1, 1024, [1]), (1, 8192, [1]), (1, 32768, [1, 4, 8]), (1, 131072, [1]), (8, 1024, [1]),
      (8, 8192, [1, 4, 8]), (8, 32768, [1]), (32, 2048, [1]), (32, 8192, [1, 4, 8]), (128, 1024, [1]),
      (128, 4096, [1]), (128, 16384, [1]),
    ]
    return [(16, 1), (32, 8), (32, 4), (64, 8)].flatMap { heads in
      shapes.flatMap { shape in
        shape.queries.map {
          DecodeCase(batch: shape.batch, context: shape.context, queries: $0, queryHeads: heads.0, kvHeads: heads.1)
        }
      }
    }
  }
}
