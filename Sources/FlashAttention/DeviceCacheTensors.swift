/// Where the tensors of a call over a cache are, in the memory of a GPU. Of an address that is 0, the tensor is not there.
///
/// Nobody waits to look at the numbers in lists, and no number makes a call touch memory that it was not given: lengths, starts,
/// counts and paddings are held within their tensors; zeros stand for keys and values on pages, or in sequences of the cache, that
/// do not exist, and nothing is appended there. Other sequences' results are right, unless the numbers make sequences share rows;
/// how their keys are divided, and so their last bits, may change with any length.
public struct DeviceCacheTensors: Hashable, Sendable {
  /// `[B, H_q, s_q, D]`; packed `[1, H_q, total, D]`.
  public var queries: DeviceTensorView
  /// `[sequences, H_kv, capacity, D]`, `[pages, H_kv, page size, D]` or packed `[1, H_kv, total, D]`.
  public var keys: DeviceTensorView
  /// The same with D_v.
  public var values: DeviceTensorView
  /// `[B, H_q, s_q, D_v]`; packed `[1, H_q, total, D_v]`; overwritten. Of parts that are left `[S B, H_q, s_q, D_v]` f32; those without
  /// keys are not written.
  public var output: DeviceTensorView
  /// `[B, H_q, s_q]`, packed `[H_q, total]`, contiguous f32. Of parts `[S, B, H_q, s_q]`, and needed: -inf in those without keys.
  public var logSumExp: UInt64
  /// `[B]` int32: the rows of each sequence's cache that hold keys, those that the call brings not counted; from 0 to the
  /// capacity. May be missing where keys are packed.
  public var lengths: UInt64
  /// `[B]` int32: which sequence of the cache; without, the sequence's own number. Not with pages.
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
    try output.check("output", isFor: problem.outputShape, problem.outputType, isWritten: true)
    if problem.leavesParts && logSumExp == 0 { throw .notInThePlan(tensor: "log-sum-exp", isMissing: true) }
    let new = newKeys
    if let new {
      try new.keys.check("the new keys", isFor: problem.newKeyShape, problem.scalarType)
      try new.values.check("the new values", isFor: problem.newValueShape, problem.scalarType)
      for (isKey, cache) in [(true, keys), (false, values)] {
        let written = isKey ? "the cached keys" : "the cached values"
        if cache.sharesMemory(with: new.keys) { throw .sharedMemory(written: written, read: "the new keys") }
        if cache.sharesMemory(with: new.values) { throw .sharedMemory(written: written, read: "the new values") }
        if cache.sharesMemory(with: queries) { throw .sharedMemory(written: written, read: "queries") }
      }
    }
    // Calls, not lists: these checks are a part of what every call costs the host.
    func aligned(_ name: StaticString, _ address: UInt64, _ multiple: Int) throws(AttentionError) {
      if address & UInt64(multiple - 1) == 0 { return }
      throw .alignment(
        tensor: "the \(name)", what: "address", bytes: Int(truncatingIfNeeded: address), multiple: multiple)
    }
    /// - Parameter isNeeded: nil where the tensor may be there or not.
    func expect(
      _ name: StaticString, _ address: UInt64, isNeeded: Bool?, multiple: Int = 4
    ) throws(AttentionError) {
      if let isNeeded, (address != 0) != isNeeded { throw .notInThePlan(tensor: "\(name)", isMissing: isNeeded) }
      try aligned(name, address, multiple)
    }
    var isPaged = false
    if case .paged = problem.cache { isPaged = true }
    if case .contiguous(let sequences, _) = problem.cache, batchIndex == 0, problem.batch > sequences {
      throw .cacheEntries("sequences in the cache", count: sequences, batch: problem.batch)
    }
    let (arePacked, rotary) = (problem.packedQueries != nil, problem.newKeys?.rotary != nil)
    let (queriesAreBytes, cacheIsBytes) = (problem.queryType == .e4m3, problem.cacheType == .e4m3)
    try aligned("log-sum-exp", logSumExp, 4)
    try expect("list of lengths", lengths, isNeeded: problem.hasPackedKeys ? nil : true)
    try expect("page table", pageTable, isNeeded: isPaged)
    try expect("left padding", leftPadding, isNeeded: problem.hasLeftPadding)
    try expect("workspace", workspace ?? 0, isNeeded: workspace == nil ? nil : true, multiple: 16)
    try expect("list of query starts", queryStarts, isNeeded: arePacked)
    try expect("list of query counts", queryCounts, isNeeded: arePacked ? nil : false)
    try expect("list of key starts", keyStarts, isNeeded: problem.hasPackedKeys)
    if (new != nil) != appends { throw .notInThePlan(tensor: "new key", isMissing: appends) }
    try expect("list of new key starts", new?.starts ?? 0, isNeeded: problem.newKeys?.packedTotal != nil)
    try expect("table of cosines", new?.cosines ?? 0, isNeeded: rotary, multiple: 16)
    try expect("table of sines", new?.sines ?? 0, isNeeded: rotary, multiple: 16)
    try expect("list of positions", new?.positions ?? 0, isNeeded: rotary ? nil : false)
    try expect("query scale", queryScales, isNeeded: queriesAreBytes ? nil : false)
    try expect("key scale", keyScales, isNeeded: cacheIsBytes ? nil : false)
    try expect("value scale", valueScales, isNeeded: cacheIsBytes ? nil : false)
    try expect("batch index", batchIndex, isNeeded: isPaged || problem.hasPackedKeys ? false : nil)
  }
}
