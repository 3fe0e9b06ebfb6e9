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
  let keyValueHead: Int
  let rows: Range<Int>

  func query(_ row: Int) -> Int { row / problem.groupSize }
  func head(_ row: Int) -> Int { keyValueHead * problem.groupSize + row % problem.groupSize }
  func visibleKeys(_ row: Int) -> Range<Int> { problem.visibleKeys(ofQuery: query(row)) }

  /// Where a row stands in `[b, h_q, n_q]`.
  func index(_ row: Int) -> Int { (batch * problem.queryHeads + head(row)) * problem.queries + query(row) }

  /// Keys that at least one of the rows sees, as one range.
  func keysSeen(by rows: Range<Int>) -> Range<Int> {
    var first = Int.max
    var end = 0
    for row in rows {
      let visible = visibleKeys(row)
      if visible.isEmpty { continue }
      first = min(first, visible.lowerBound)
      end = max(end, visible.upperBound)
    }
    return first < end ? first..<end : 0..<0
  }

  /// Keys that all of the rows see.
  func keysSeen(byEachOf rows: Range<Int>) -> Range<Int> {
    var first = 0
    var end = Int.max
    for row in rows {
      let visible = visibleKeys(row)
      first = max(first, visible.lowerBound)
      end = min(end, visible.upperBound)
    }
    return first < end ? first..<end : 0..<0
  }
}

/// The tensors of a run.
struct Operands: Sendable {
  let queries: TensorView
  let keys: TensorView
  let values: TensorView
  let output: MutableTensorView
  /// `[b, h_q, n_q]`, or nil.
  nonisolated(unsafe) let logSumExp: UnsafeMutablePointer<Float>?
  /// `[h_q]`, or nil.
  let sinks: [Float]?
}
