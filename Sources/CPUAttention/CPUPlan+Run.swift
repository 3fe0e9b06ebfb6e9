public import Attention

extension CPUPlan {
  /// Computes the problem on views of memory.
  ///
  /// - Parameters:
  ///   - output: `[B, H_q, N_q, D_v]` in the problem's type; overwritten.
  ///   - logSumExp: `[B, H_q, N_q]`, contiguous, natural logarithm; or nil.
  ///   - sinks: `[H_q]`, where the problem has some.
  ///   - ranges: what a call gives of the problem's ranges of keys.
  /// - Throws: `AttentionError.notThePlan`, `.mixedTypes` or `.logSumExpCount` where the views are not what was
  ///   planned.
  public func run(
    queries: TensorView, keys: TensorView, values: TensorView, output: MutableTensorView,
    logSumExp: UnsafeMutableBufferPointer<Float>? = nil, sinks: [Float]? = nil, ranges: [Int]? = nil
  ) throws(AttentionError) {
    try AttentionTensors<HostMemory>(
      queries: queries, keys: keys, values: values, output: output, logSumExp: logSumExp,
      entries: CacheEntries(sinks: sinks, ranges: ranges)
    ).check(problem)
    CPUCall.run(
      [
        CPUCall(
          self,
          Operands(
            queries: queries, keys: KeyRows(keys), values: KeyRows(values), output: output,
            logSumExp: logSumExp?.baseAddress, sinks: sinks, ranges: ranges))
      ], threads: threads)
  }

  /// What unit `index` is: rows of the first of some heads, the same of the others being of it. The last blocks, which see the
  /// most keys under a causal mask, come first, so that no thread is left alone with a long one at the end.
  func unit(_ index: Int, _ ranges: [Int]?) -> Unit {
    let split = index % keySplits
    let groups = problem.batch * headGroups
    let group = index / keySplits % groups
    let block = blocks - 1 - index / keySplits / groups
    let rows = block * blockRows..<min((block + 1) * blockRows, problem.groupSize * problem.queries)
    let first = group % headGroups * headsTogether
    return Unit(
      rows: PackedRows(
        problem: problem, batch: group / headGroups, keyValueHead: first, rows: rows, ranges: ranges),
      heads: min(headsTogether, problem.keyValueHeads - first), split: split)
  }

  /// What a thread computes at a time.
  struct Unit {
    let rows: PackedRows
    /// Key/value heads from that of the rows on.
    let heads: Int
    /// Of its keys.
    let split: Int
  }

  /// The tiles of one split of the keys that a block sees, ascending: those that its rows' first ranges span, and their second.
  func tiles(over keys: [Range<Int>], split: Int) -> [Int] {
    func tiles(_ keys: Range<Int>) -> Range<Int> {
      keys.isEmpty ? 0..<0 : keys.lowerBound / tileKeys..<(keys.upperBound + tileKeys - 1) / tileKeys
    }
    func own(_ count: Int) -> Range<Int> { count * split / keySplits..<count * (split + 1) / keySplits }
    if keys.count == 1 {
      let all = tiles(keys[0])
      return all[all.lowerBound + own(all.count).lowerBound..<all.lowerBound + own(all.count).upperBound].map { $0 }
    }
    let parts = keys.map(tiles).filter { !$0.isEmpty }.sorted { $0.lowerBound < $1.lowerBound }
    let all = parts.reduce(into: [Int]()) { all, part in
      all += max(part.lowerBound, all.last.map { $0 + 1 } ?? 0)..<max(part.upperBound, all.last.map { $0 + 1 } ?? 0)
    }
    return Array(all[own(all.count)])
  }

  /// Bytes of scratch memory that each thread needs, partial results not counted; it does not grow with the lengths. Few rows of
  /// heads that are read together need as much for each.
  public var scratchByteCount: Int {
    path.isRows ? RowWorker.scratchByteCount(self) : PanelWorker.scratchByteCount(self)
  }
}
