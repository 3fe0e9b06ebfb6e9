/// Where the tensors of a call over a cache are, in the memory of a GPU. Of an address that is 0, the tensor is not there.
public struct DeviceCacheTensors: Hashable, Sendable {
  /// `[B, H_q, s_q, D]`; packed `[1, H_q, total, D]`.
  public var queries: DeviceTensorView
  /// `[sequences, H_kv, capacity, D]`, `[pages, H_kv, page size, D]` or packed `[1, H_kv, total, D]`.
  public var keys: DeviceTensorView
  /// The same with D_v.
  public var values: DeviceTensorView
  /// `[B, H_q, s_q, D_v]`; packed `[1, H_q, total, D_v]`; overwritten.
  public var output: DeviceTensorView
  /// `[B, H_q, s_q]`, packed `[H_q, total]`, contiguous f32.
  public var logSumExp: UInt64
  /// `[B]` int32: the rows of each sequence's cache that hold keys, those that the call brings not counted; from 0 to the
  /// capacity, and read as the capacity where they are more. May be missing where keys are packed.
  public var lengths: UInt64
  /// `[B]` int32: which sequence of the cache; without, the sequence's own number. Not with pages. Nobody checks them, nor the pages.
  public var batchIndex: UInt64
  /// `[B]` int32: the row of each sequence's first key.
  public var leftPadding: UInt64
  /// `[B, pagesPerSequence]` int32.
  public var pageTable: UInt64
  /// `[B + 1]` int32: the first query of each sequence and the end of the last, where queries are packed.
  public var queryStarts: UInt64 = 0
  /// `[B]` int32: the queries of each sequence that count, where they are packed; without, all.
  public var queryCounts: UInt64 = 0
  /// `[B + 1]` int32: the first key of each sequence and the end of the last, where keys are packed.
  public var keyStarts: UInt64 = 0
  /// `[B, H_kv]` f32, above 0: what e4m3 queries are multiplied by; without, 1.
  public var queryScales: UInt64 = 0
  /// `[B, H_kv]` f32, above 0: what e4m3 keys are multiplied by.
  public var keyScales: UInt64 = 0
  /// `[B, H_kv]` f32, above 0: what e4m3 values are multiplied by.
  public var valueScales: UInt64 = 0
  /// What is appended to the cache first.
  public var newKeys: DeviceNewKeys?

  /// The tensors of a call.
  public init(
    queries: DeviceTensorView, keys: DeviceTensorView, values: DeviceTensorView, output: DeviceTensorView,
    lengths: UInt64, logSumExp: UInt64 = 0, batchIndex: UInt64 = 0, leftPadding: UInt64 = 0, pageTable: UInt64 = 0
  ) {
    (self.queries, self.keys, self.values, self.output) = (queries, keys, values, output)
    (self.lengths, self.logSumExp) = (lengths, logSumExp)
    (self.batchIndex, self.leftPadding, self.pageTable) = (batchIndex, leftPadding, pageTable)
  }
}

/// Keys and values that a call appends to the cache before it attends, in the memory of a GPU.
public struct DeviceNewKeys: Hashable, Sendable {
  /// `[B, H_kv, s_new, D]`; packed `[1, H_kv, total, D]`.
  public var keys: DeviceTensorView
  /// The same with D_v.
  public var values: DeviceTensorView
  /// `[B + 1]` int32: the first new key of each sequence and the end of the last, where they are packed.
  public var starts: UInt64 = 0
  /// Tables of the rotary embedding, `[positions, dimension / 2]`, contiguous, in the problem's type.
  public var cosines: UInt64 = 0
  /// The same of the sines.
  public var sines: UInt64 = 0
  /// `[B]` int32: the position of each sequence's first new key; without, its length.
  public var positions: UInt64 = 0

  /// Keys and values alone.
  public init(keys: DeviceTensorView, values: DeviceTensorView) { (self.keys, self.values) = (keys, values) }
}

extension DeviceCacheTensors {
  /// - Parameter workspace: nil where the plan has none.
  /// - Throws: `AttentionError` where a tensor is not what a problem needs, or is not aligned.
  func check(_ problem: CachedAttentionProblem, workspace: UInt64?) throws(AttentionError) {
    try queries.check("queries", isFor: problem.queryShape, problem.queryType)
    let appends = problem.newKeys != nil
    try keys.check("the cached keys", isFor: problem.keyShape, problem.cacheType, isWritten: appends)
    try values.check("the cached values", isFor: problem.valueShape, problem.cacheType, isWritten: appends)
    try output.check("output", isFor: problem.outputShape, problem.scalarType, isWritten: true)
    let new = newKeys
    if let new {
      try new.keys.check("the new keys", isFor: problem.newKeyShape, problem.scalarType)
      try new.values.check("the new values", isFor: problem.newValueShape, problem.scalarType)
    }
    for (name, address, multiple) in [
      ("the log-sum-exp", logSumExp, 4), ("the lengths", lengths, 4),
      ("the batch index", batchIndex, 4), ("the left padding", leftPadding, 4),
      ("the page table", pageTable, 4), ("the workspace", workspace ?? 0, 16),
      ("the query starts", queryStarts, 4), ("the query counts", queryCounts, 4),
      ("the key starts", keyStarts, 4), ("the new key starts", new?.starts ?? 0, 4),
      ("the query scales", queryScales, 4), ("the key scales", keyScales, 4),
      ("the value scales", valueScales, 4), ("the cosines", new?.cosines ?? 0, 16),
      ("the sines", new?.sines ?? 0, 16), ("the positions", new?.positions ?? 0, 4),
    ] where address % UInt64(multiple) != 0 {
      throw .alignment(
        tensor: name, what: "address", bytes: Int(truncatingIfNeeded: address), multiple: multiple)
    }
    var isPaged = false
    if case .paged = problem.cache { isPaged = true }
    let needed = [
      ("list of lengths", lengths != 0, problem.hasPackedKeys ? nil : true), ("page table", pageTable != 0, isPaged),
      ("left padding", leftPadding != 0, problem.hasLeftPadding),
      ("workspace", workspace != 0, workspace == nil ? nil : true),
      ("list of query starts", queryStarts != 0, problem.packedQueries != nil),
      ("list of query counts", queryCounts != 0, problem.packedQueries != nil ? nil : false),
      ("list of key starts", keyStarts != 0, problem.hasPackedKeys), ("new key", new != nil, appends),
      ("list of new key starts", new?.starts ?? 0 != 0, problem.newKeys?.packedTotal != nil),
      ("table of cosines", new?.cosines ?? 0 != 0, problem.newKeys?.rotary != nil),
      ("table of sines", new?.sines ?? 0 != 0, problem.newKeys?.rotary != nil),
      ("query scale", queryScales != 0, problem.queryType == .e4m3 ? nil : false),
      ("key scale", keyScales != 0, problem.cacheType == .e4m3 ? nil : false),
      ("value scale", valueScales != 0, problem.cacheType == .e4m3 ? nil : false),
      ("batch index", batchIndex != 0, isPaged || problem.hasPackedKeys ? false : nil),
    ]
    for case (let name, let isThere, let isNeeded?) in needed where isThere != isNeeded {
      throw .notInThePlan(tensor: name, isMissing: isNeeded)
    }
  }
}
