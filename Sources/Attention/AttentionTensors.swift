/// Where the tensors and lists of a call are: the memory of the host, or of a GPU.
public protocol TensorMemory {
  /// A tensor with strides.
  associatedtype View: Sendable
  /// The same, to be written.
  associatedtype Output: Sendable
  /// Contiguous f32 that log-sum-exps are written to.
  associatedtype Statistics
  /// A whole number for each sequence.
  associatedtype Numbers: Hashable, Sendable
  /// The pages of each sequence.
  associatedtype PageTable: Hashable, Sendable
  /// An f32 for each sequence and key/value head.
  associatedtype Factors: Hashable, Sendable
  /// A number for each query head.
  associatedtype Sinks: Hashable, Sendable

  /// - Throws: `AttentionError` where a view is not what a problem needs.
  static func check(
    _ view: View, _ name: StaticString, isFor shape: TensorShape, _ type: ScalarType, isWritten: Bool
  ) throws(AttentionError)
  /// The same memory, to be read.
  static func readOnly(_ output: Output) -> View
  /// Whether elements of two tensors share memory, as far as that can be told.
  static func sharesMemory(_ a: View, _ b: View) -> Bool
}

/// The host's memory, borrowed for a call.
public enum HostMemory: TensorMemory {
  /// With strides of any kind.
  public typealias View = TensorView
  /// With strides that let no two elements share memory.
  public typealias Output = MutableTensorView
  /// As many as a problem says.
  public typealias Statistics = UnsafeMutableBufferPointer<Float>
  /// One for each sequence.
  public typealias Numbers = [Int]
  /// A list for each sequence.
  public typealias PageTable = [[Int]]
  /// `[B, H_kv]`.
  public typealias Factors = [Float]
  /// `[H_q]`; f32 alone.
  public typealias Sinks = [Float]

  /// As the protocol says.
  public static func check(
    _ view: TensorView, _ name: StaticString, isFor shape: TensorShape, _ type: ScalarType, isWritten: Bool
  ) throws(AttentionError) {
    try view.check("\(name)", isFor: shape, type, isWritten: isWritten)
  }
  /// The same memory.
  public static func readOnly(_ output: MutableTensorView) -> TensorView { output.readOnly }
  /// As far as strides tell.
  public static func sharesMemory(_ a: TensorView, _ b: TensorView) -> Bool { a.sharesMemory(with: b) }
}

/// The memory of a GPU. Lists are addresses: whole numbers are int32, a page table is `[B, pagesPerSequence]` of them.
///
/// Nobody waits to look at the numbers in lists, and no number makes a call touch memory that it was not given:
/// lengths, starts, counts and paddings are held within their tensors; zeros stand for keys and values on pages, or in
/// sequences of the cache, that do not exist, and nothing is appended there. Other sequences' results are right, unless
/// the numbers make sequences share rows; how their keys are divided, and so their last bits, may change with any
/// length.
public enum GPUMemory: TensorMemory {
  /// Pointers and strides are multiples of 16 bytes.
  public typealias View = DeviceTensorView
  /// The same.
  public typealias Output = DeviceTensorView
  /// An address.
  public typealias Statistics = UInt64
  /// The address of int32.
  public typealias Numbers = UInt64
  /// The address of `[B, pagesPerSequence]` int32.
  public typealias PageTable = UInt64
  /// The address of f32.
  public typealias Factors = UInt64
  /// `[H_q]`, of the problem's `sinkType`.
  public typealias Sinks = UInt64

  /// As the protocol says.
  public static func check(
    _ view: DeviceTensorView, _ name: StaticString, isFor shape: TensorShape, _ type: ScalarType, isWritten: Bool
  ) throws(AttentionError) {
    try view.check(name, isFor: shape, type, isWritten: isWritten)
  }
  /// The same memory.
  public static func readOnly(_ output: DeviceTensorView) -> DeviceTensorView { output }
  /// As far as strides tell.
  public static func sharesMemory(_ a: DeviceTensorView, _ b: DeviceTensorView) -> Bool { a.sharesMemory(with: b) }
}

/// The tensors of a call.
public struct AttentionTensors<Memory: TensorMemory> {
  /// `[B, H_q, N_q, D]`; packed `[1, H_q, total, D]`.
  public var queries: Memory.View
  /// `[B, H_kv, N_k, D]`, of a cache `[sequences, H_kv, capacity, D]` or `[pages, H_kv, page size, D]`, packed `[1,
  /// H_kv, total, D]`.
  public var keys: Memory.View
  /// The same with D_v.
  public var values: Memory.View
  /// `[B, H_q, N_q, D_v]`; packed `[1, H_q, total, D_v]`; overwritten where there are queries. Of parts that are left
  /// `[S B, H_q, N_q, D_v]` f32, where a part without keys may hold anything.
  public var output: Memory.Output
  /// `[B, H_q, N_q]`, packed `[H_q, total]`, contiguous f32, natural logarithm, scale included; nil where it is not
  /// needed. Of parts `[S, B, H_q, N_q]`, -inf in those without keys, and needed.
  public var logSumExp: Memory.Statistics?
  /// What the call says of each of its sequences.
  public var entries: CacheEntries<Memory>
  /// What is appended to the cache first.
  public internal(set) var newKeys: NewKeyTensors<Memory>?

  /// The tensors of a call that brings no keys.
  public init(
    queries: Memory.View, keys: Memory.View, values: Memory.View, output: Memory.Output,
    logSumExp: Memory.Statistics? = nil, entries: CacheEntries<Memory> = CacheEntries()
  ) {
    (self.queries, self.keys, self.values, self.output) = (queries, keys, values, output)
    (self.logSumExp, self.entries) = (logSumExp, entries)
  }

  /// The tensors of a call that brings keys: the cache is written, too.
  public init(
    queries: Memory.View, keys: Memory.Output, values: Memory.Output, appending newKeys: NewKeyTensors<Memory>,
    output: Memory.Output, logSumExp: Memory.Statistics? = nil, entries: CacheEntries<Memory>
  ) {
    self.init(
      queries: queries, keys: Memory.readOnly(keys), values: Memory.readOnly(values), output: output,
      logSumExp: logSumExp, entries: entries)
    self.newKeys = newKeys
  }
}

/// What a call says of each of its sequences; nothing of whole keys.
public struct CacheEntries<Memory: TensorMemory>: Hashable, Sendable {
  /// `[B]`: the rows of each sequence's cache that hold keys, those that the call brings not counted; from 0 to the
  /// capacity. nil where packed keys are as many as their starts say.
  public var lengths: Memory.Numbers?
  /// `[B]`: which sequence of the cache; nil for each its own number. Not with pages.
  public var batchIndex: Memory.Numbers?
  /// `[B]`: the row of each sequence's first key; nil for 0.
  public var leftPadding: Memory.Numbers?
  /// `[B, pagesPerSequence]`: the pages of each sequence; in the host's memory, as many as its length needs or more.
  /// nil without pages.
  public var pageTable: Memory.PageTable?
  /// `[B + 1]`: the first query of each sequence and the end of the last, where queries are packed.
  public var queryStarts: Memory.Numbers?
  /// `[B]`: the queries of each sequence that count, where they are packed; nil for all.
  public var queryCounts: Memory.Numbers?
  /// `[B + 1]`: the first key of each sequence and the end of the last, where keys are packed.
  public var keyStarts: Memory.Numbers?
  /// `[B, H_kv]`, above 0: what e4m3 queries are multiplied by; nil for 1.
  public var queryScales: Memory.Factors?
  /// `[B, H_kv]`, above 0: what e4m3 keys are multiplied by; nil for 1.
  public var keyScales: Memory.Factors?
  /// `[B, H_kv]`, above 0: what e4m3 values are multiplied by; nil for 1.
  public var valueScales: Memory.Factors?
  /// `[H_q]`: attention sinks (`AttentionProblem.sinkType`), finite or -inf; nil where there are none.
  public var sinks: Memory.Sinks?
  /// What a call gives of ranges of keys (`AttentionProblem.ranges`): `[B or 1, N_q, count, 2]`, of packed queries `[1, total, count, 2]`,
  /// or `[B]`, on a GPU int32 at a multiple of 8 bytes (prefixes: 4); nil where that is nothing.
  public var ranges: Memory.Numbers?

  /// A list for all sequences, where there is something to say.
  public init(
    lengths: Memory.Numbers? = nil, batchIndex: Memory.Numbers? = nil, leftPadding: Memory.Numbers? = nil,
    pageTable: Memory.PageTable? = nil, queryStarts: Memory.Numbers? = nil, queryCounts: Memory.Numbers? = nil,
    keyStarts: Memory.Numbers? = nil, queryScales: Memory.Factors? = nil, keyScales: Memory.Factors? = nil,
    valueScales: Memory.Factors? = nil, sinks: Memory.Sinks? = nil, ranges: Memory.Numbers? = nil
  ) {
    (self.sinks, self.ranges) = (sinks, ranges)
    (self.lengths, self.batchIndex, self.leftPadding, self.pageTable) = (lengths, batchIndex, leftPadding, pageTable)
    (self.queryStarts, self.queryCounts, self.keyStarts) = (queryStarts, queryCounts, keyStarts)
    (self.queryScales, self.keyScales, self.valueScales) = (queryScales, keyScales, valueScales)
  }
}

extension CacheEntries {
  /// The same lists in other memory.
  package func moved<Other: TensorMemory>(
    to: Other.Type = Other.self, numbers: (Memory.Numbers?) throws(AttentionError) -> Other.Numbers?,
    pages: (Memory.PageTable?) throws(AttentionError) -> Other.PageTable?,
    factors: (Memory.Factors?) throws(AttentionError) -> Other.Factors?,
    sinks: (Memory.Sinks?) throws(AttentionError) -> Other.Sinks?
  ) throws(AttentionError) -> CacheEntries<Other> {
    CacheEntries<Other>(
      lengths: try numbers(lengths), batchIndex: try numbers(batchIndex), leftPadding: try numbers(leftPadding),
      pageTable: try pages(pageTable), queryStarts: try numbers(queryStarts), queryCounts: try numbers(queryCounts),
      keyStarts: try numbers(keyStarts), queryScales: try factors(queryScales), keyScales: try factors(keyScales),
      valueScales: try factors(valueScales), sinks: try sinks(self.sinks), ranges: try numbers(ranges))
  }
}

/// Keys and values that a call appends to the cache before it attends.
public struct NewKeyTensors<Memory: TensorMemory>: Sendable {
  /// `[B, H_kv, s_new, D]`; packed, `[1, H_kv, total, D]`.
  public var keys: Memory.View
  /// The same with D_v.
  public var values: Memory.View
  /// `[B + 1]`: the first new key of each sequence and the end of the last, where they are packed.
  public var starts: Memory.Numbers?
  /// Tables of the rotary embedding, `[1, 1, positions, dimension / 2]` in the problem's type, on a GPU contiguous; nil
  /// without one.
  public var rotary: (cosines: Memory.View, sines: Memory.View)?
  /// `[B]`: the position of each sequence's first new key; nil for its length.
  public var positions: Memory.Numbers?

  /// New keys of a call.
  public init(
    keys: Memory.View, values: Memory.View, starts: Memory.Numbers? = nil,
    rotary: (cosines: Memory.View, sines: Memory.View)? = nil, positions: Memory.Numbers? = nil
  ) {
    (self.keys, self.values, self.starts, self.rotary, self.positions) = (keys, values, starts, rotary, positions)
  }
}

// MARK: - What a problem needs

extension AttentionTensors {
  /// What tensors in any memory must be: of the problem's shapes and types, there where it needs them, and not in each
  /// other's memory.
  private func checkTensors(_ problem: AttentionProblem) throws(AttentionError) {
    let appends = problem.newKeys != nil
    try Memory.check(queries, "queries", isFor: problem.queryShape, problem.queryType, isWritten: false)
    let (keyName, valueName): (StaticString, StaticString) =
      problem.hasWholeKeys ? ("keys", "values") : ("the cached keys", "the cached values")
    try Memory.check(keys, keyName, isFor: problem.keyShape, problem.cacheType, isWritten: appends)
    try Memory.check(values, valueName, isFor: problem.valueShape, problem.cacheType, isWritten: appends)
    try Memory.check(
      Memory.readOnly(output), "output", isFor: problem.outputShape, problem.outputType, isWritten: true)
    try expect("new key", newKeys != nil, appends)
    if let newKeys { try check(newKeys, problem) }
    if problem.leavesParts { try expect("log-sum-exp", logSumExp != nil, true) }
  }

  private func checkPresence(_ problem: AttentionProblem) throws(AttentionError) {
    try entries.checkPresence(problem)
    guard let newKeys else { return }
    try expect("list of new key starts", newKeys.starts != nil, problem.newKeys?.packedTotal != nil)
    try expect("list of positions", newKeys.positions != nil, problem.newKeys?.rotary == nil ? false : nil)
  }

  private func check(_ new: NewKeyTensors<Memory>, _ problem: AttentionProblem) throws(AttentionError) {
    try Memory.check(new.keys, "the new keys", isFor: problem.newKeyShape, problem.scalarType, isWritten: false)
    try Memory.check(new.values, "the new values", isFor: problem.newValueShape, problem.scalarType, isWritten: false)
    func apart(_ written: String, _ cache: Memory.View) throws(AttentionError) {
      if Memory.sharesMemory(cache, new.keys) { throw .sharedMemory(written: written, read: "the new keys") }
      if Memory.sharesMemory(cache, new.values) { throw .sharedMemory(written: written, read: "the new values") }
      if Memory.sharesMemory(cache, queries) { throw .sharedMemory(written: written, read: "queries") }
    }
    try apart("the cached keys", keys)
    try apart("the cached values", values)
    let rotary = problem.newKeys?.rotary
    try expect("rotary embedding", new.rotary != nil, rotary != nil)
    if let rotary, let tables = new.rotary {
      let (shape, type) = (rotary.tableShape, problem.scalarType)
      try Memory.check(tables.cosines, "the cosines", isFor: shape, type, isWritten: false)
      try Memory.check(tables.sines, "the sines", isFor: shape, type, isWritten: false)
    }
  }

}

/// - Parameter isNeeded: nil where the tensor may be there or not.
private func expect(_ name: StaticString, _ isThere: Bool, _ isNeeded: Bool?) throws(AttentionError) {
  if let isNeeded, isThere != isNeeded { throw .notInThePlan(tensor: "\(name)", isMissing: isNeeded) }
}

extension CacheEntries {
  /// The lists that a problem needs are there, and no others.
  func checkPresence(_ problem: AttentionProblem) throws(AttentionError) {
    let isPaged = problem.pages != nil
    if case .contiguous(let sequences, _) = problem.storage, batchIndex == nil, problem.batch > sequences {
      throw .cacheEntries("sequences in the cache", count: sequences, batch: problem.batch)
    }
    let (whole, packedKeys) = (problem.hasWholeKeys, problem.hasPackedKeys)
    let (packedQueries, queriesAreBytes) = (problem.packedQueries != nil, problem.queryType == .e4m3)
    let cacheIsBytes = problem.cacheType == .e4m3
    try expect("list of lengths", lengths != nil, whole ? false : packedKeys ? nil : true)
    try expect("page table", pageTable != nil, isPaged)
    try expect("left padding", leftPadding != nil, problem.hasLeftPadding)
    try expect("list of query starts", queryStarts != nil, packedQueries)
    try expect("list of query counts", queryCounts != nil, packedQueries ? nil : false)
    try expect("list of key starts", keyStarts != nil, packedKeys)
    try expect("query scale", queryScales != nil, queriesAreBytes ? nil : false)
    try expect("key scale", keyScales != nil, cacheIsBytes ? nil : false)
    try expect("value scale", valueScales != nil, cacheIsBytes ? nil : false)
    try expect("list of sinks", sinks != nil, problem.sinkType != nil)
    try expect("list of key ranges", ranges != nil, problem.needsRanges)
    try expect("batch index", batchIndex != nil, isPaged || packedKeys || whole ? false : nil)
  }
}

extension AttentionTensors where Memory == HostMemory {
  /// - Throws: `AttentionError` where a tensor is not what a problem needs, whatever the lists are.
  package func checkWithoutLists(_ problem: AttentionProblem) throws(AttentionError) {
    try checkTensors(problem)
    if let logSumExp, logSumExp.count != problem.logSumExpCount {
      throw .logSumExpCount(given: logSumExp.count, needed: problem.logSumExpCount)
    }
  }

  /// - Throws: `AttentionError` where a tensor is not what a problem needs, or a number leads out of the cache.
  package func check(_ problem: AttentionProblem) throws(AttentionError) {
    try checkWithoutLists(problem)
    try checkPresence(problem)
    try entries.checkSinks(problem)
    try entries.checkRanges(problem)
    if let positions = newKeys?.positions, positions.count != problem.batch {
      throw .cacheEntries("positions", count: positions.count, batch: problem.batch)
    }
    if problem.hasWholeKeys { return }
    try entries.check(problem, newStarts: newKeys?.starts)
    if let newKeys { try entries.checkPositions(problem, newStarts: newKeys.starts, newKeys.positions) }
  }
}

extension CacheEntries where Memory == HostMemory {
  /// - Throws: where sinks are not one f32 for each head.
  func checkSinks(_ problem: AttentionProblem) throws(AttentionError) {
    guard let sinks, let type = problem.sinkType else { return }
    if type != .f32 {
      throw .unsupported(
        "The sinks of the problem are \(type); in the host's memory they are f32: set sinkType to .f32.")
    }
    try Self.check(sinks, heads: problem.queryHeads)
  }

  /// - Throws: where there are not as many sinks as heads, or one is NaN or +inf.
  package static func check(_ sinks: [Float]?, heads: Int) throws(AttentionError) {
    guard let sinks else { return }
    if sinks.count != heads {
      throw .unsupported("There are \(sinks.count) sinks and \(heads) query heads; give one for each.")
    }
    if let head = sinks.firstIndex(where: { !($0 < .infinity) }) {
      throw .unsupported("The sink of head \(head) is \(sinks[head]); it must be finite, or -inf for none.")
    }
  }

  /// - Parameters:
  ///   - newStarts: of new keys, where they are packed.
  ///   - positions: of each sequence's first new key; nil for its length.
  /// - Throws: where the tables of a problem's rotary embedding have no row for a position.
  package func checkPositions(
    _ problem: AttentionProblem, newStarts: [Int]?, _ positions: [Int]?
  ) throws(AttentionError) {
    guard let rotary = problem.newKeys?.rotary else { return }
    for b in 0..<problem.batch {
      let newCount = newKeys(of: b, problem, starts: newStarts).count
      let base = positions?[b] ?? rows(of: b)
      for (count, isKey) in [(newCount, true), (queries(of: b, problem).count, false)] where count > 0 {
        for number in [0, count - 1] {
          let position = rotary.position(number, base: base, isKey: isKey, mask: problem.mask)
          if (0..<rotary.positions).contains(position) { continue }
          throw .unsupported(
            "Sequence \(b) reaches position \(position), and the rotary tables have \(rotary.positions) rows; give tables "
              + "with a row for each position from 0 on.")
        }
      }
    }
  }
}

extension AttentionTensors where Memory == GPUMemory {
  /// - Throws: `AttentionError` where a tensor is not what a problem needs, whatever the lists are, or is not aligned.
  package func checkWithoutLists(_ problem: AttentionProblem) throws(AttentionError) {
    try checkTensors(problem)
    try GPUMemory.checkAligned("log-sum-exp", logSumExp)
    guard let (cosines, sines) = newKeys?.rotary else { return }
    func contiguous(_ name: String, _ table: DeviceTensorView) throws(AttentionError) {
      if table.shape.length < 2 || table.strides.length == table.shape.dimension { return }
      throw .unsupported(
        "The rows of \(name) are \(table.strides.length) elements apart; on a GPU a table of \(table.shape.dimension) "
          + "columns must be contiguous.")
    }
    try contiguous("the cosines", cosines)
    try contiguous("the sines", sines)
  }

  /// - Throws: `AttentionError` where a tensor is not what a problem needs, or is not aligned.
  package func check(_ problem: AttentionProblem) throws(AttentionError) {
    try checkWithoutLists(problem)
    try checkPresence(problem)
    try entries.checkSinks(problem)
    try entries.checkRanges(problem)
    if problem.hasWholeKeys { return }
    try entries.checkAligned()
    guard let newKeys else { return }
    try GPUMemory.checkAligned("list of new key starts", newKeys.starts)
    try GPUMemory.checkAligned("list of positions", newKeys.positions)
  }
}

extension GPUMemory {
  /// - Throws: where an address of 32-bit numbers is no multiple of 4.
  static func checkAligned(_ name: StaticString, _ address: UInt64?) throws(AttentionError) {
    guard let address, address & 3 != 0 else { return }
    throw .alignment(tensor: "the \(name)", what: "address", bytes: Int(truncatingIfNeeded: address), multiple: 4)
  }
}

extension CacheEntries where Memory == GPUMemory {
  /// - Throws: where the address of sinks is no multiple of their size.
  func checkSinks(_ problem: AttentionProblem) throws(AttentionError) {
    guard let sinks, let size = problem.sinkType?.byteCount, sinks % UInt64(size) != 0 else { return }
    throw .alignment(
      tensor: "the list of sinks", what: "address", bytes: Int(truncatingIfNeeded: sinks), multiple: size)
  }

  /// - Throws: where the address of ranges is no multiple of the size of one, or of a prefix.
  func checkRanges(_ problem: AttentionProblem) throws(AttentionError) {
    let size = problem.ranges == .prefix ? 4 : 8
    guard let ranges, ranges % UInt64(size) != 0 else { return }
    throw .alignment(
      tensor: "the list of key ranges", what: "address", bytes: Int(truncatingIfNeeded: ranges), multiple: size)
  }

  // A call for each, not lists: these checks are a part of what every call costs the host.
  func checkAligned() throws(AttentionError) {
    try GPUMemory.checkAligned("list of lengths", lengths)
    try GPUMemory.checkAligned("batch index", batchIndex)
    try GPUMemory.checkAligned("left padding", leftPadding)
    try GPUMemory.checkAligned("page table", pageTable)
    try GPUMemory.checkAligned("list of query starts", queryStarts)
    try GPUMemory.checkAligned("list of query counts", queryCounts)
    try GPUMemory.checkAligned("list of key starts", keyStarts)
    try GPUMemory.checkAligned("query scale", queryScales)
    try GPUMemory.checkAligned("key scale", keyScales)
    try GPUMemory.checkAligned("value scale", valueScales)
  }
}
