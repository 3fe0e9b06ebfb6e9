internal import Attention

/// The packed query rows of one block: which query and head each is, and which keys it sees.
///
/// Row r of a (batch, key/value head) is query `r / group` of head `r % group` of the group, so that neighbouring rows
/// stand at neighbouring diagonals and share K and V.
struct PackedRows {
  /// Up to this many packed rows, the dimension goes across lanes instead of the rows.
  static let fewRows = 8

  let problem: AttentionProblem
  let batch: Int
  var keyValueHead: Int
  let rows: Range<Int>
  /// What the call gives of ranges of keys; nil where that is nothing.
  let ranges: [Int]?

  func query(_ row: Int) -> Int { row / problem.groupSize }
  func head(_ row: Int) -> Int { keyValueHead * problem.groupSize + row % problem.groupSize }
  func visibleKeys(_ row: Int) -> VisibleRanges {
    problem.visibleRanges(ofQuery: query(row), sequence: batch, ranges)
  }

  /// The same rows of a head that many further on.
  func ofHead(_ number: Int) -> PackedRows {
    var other = self
    other.keyValueHead += number
    return other
  }

  /// Where a row stands in `[b, h_q, n_q]`.
  func index(_ row: Int) -> Int { (batch * problem.queryHeads + head(row)) * problem.queries + query(row) }

  /// The ranges that a row may see: one by a mask's rule alone, and otherwise two.
  var parts: Range<Int> { problem.ranges == nil ? 0..<1 : 0..<2 }
}

/// The keys that each row of a block sees, asked for once.
struct SeenByRows {
  private let first, keys: Int
  /// Of each row; none where all see all keys.
  private let ranges: [VisibleRanges]

  init(_ rows: PackedRows) {
    (first, keys) = (rows.rows.lowerBound, rows.problem.keys)
    let seeAll = !rows.problem.mask.isLimited && rows.problem.ranges == nil
    ranges = seeAll ? [] : rows.rows.map(rows.visibleKeys)
  }

  /// The first range of a row, or the second.
  subscript(row: Int, part: Int) -> Range<Int> { ranges.isEmpty ? 0..<keys : ranges[row - first][part] }

  /// Keys that the first ranges of some rows span, or the second.
  func any(of rows: Range<Int>, part: Int) -> Range<Int> {
    if ranges.isEmpty { return 0..<keys }
    var (first, end) = (Int.max, 0)
    for row in rows {
      let visible = self[row, part]
      if visible.isEmpty { continue }
      (first, end) = (min(first, visible.lowerBound), max(end, visible.upperBound))
    }
    return first < end ? first..<end : 0..<0
  }

  /// Keys that all first ranges of some rows have in common, or all second.
  func all(of rows: Range<Int>, part: Int) -> Range<Int> {
    if ranges.isEmpty { return 0..<keys }
    var (first, end) = (0, Int.max)
    for row in rows {
      let visible = self[row, part]
      (first, end) = (max(first, visible.lowerBound), min(end, visible.upperBound))
    }
    return first < end ? first..<end : 0..<0
  }
}

/// The tensors of a run.
struct Operands: Sendable {
  let queries: TensorView
  let keys: KeyRows
  let values: KeyRows
  let output: MutableTensorView
  /// `[b, h_q, n_q]`, or nil.
  nonisolated(unsafe) let logSumExp: UnsafeMutablePointer<Float>?
  /// `[h_q]`, or nil.
  let sinks: [Float]?
  /// What the call gives of ranges of keys, or nil.
  let ranges: [Int]?
  /// What numbers of bytes are multiplied by, a factor a key/value head: that of queries times that of keys, and that of values.
  var scoreFactors: [Double]?
  var valueFactors: [Float]?

  /// What scores of a key/value head are multiplied by.
  func scoreUnits(_ problem: AttentionProblem, head: Int) -> ScoreUnits {
    guard let scoreFactors else { return problem.scoreUnits }
    return ScoreUnits(scale: problem.scale * scoreFactors[head], softcap: problem.softcap)
  }

  /// Multiplies sums of values of a key/value head, before they are stored.
  func scale(_ sums: UnsafeMutablePointer<Float>, count: Int, head: Int) {
    guard let factor = valueFactors?[head], factor != 1 else { return }
    for i in 0..<count { sums[i] *= factor }
  }
}
