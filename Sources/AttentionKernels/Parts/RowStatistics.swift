internal import Attention
internal import PTX

/// What the backward pass knows of each row of queries beside Q and dO, in a workspace: two f32,
///
///     -LSE log2(e), so that P = exp2(S log2(e) + it); -inf of a row that sees no key
///     delta = rows of (dO * O) - dLSE
///
/// The rows of a key/value head are packed as everywhere, query by query. Those behind the last, up to a multiple of
/// `rowMultiple`, hold -inf and 0, and so weigh nothing.
struct RowStatistics {
  /// Bytes of a row.
  static let byteCount = 8
  /// Rows of a tile that may be read whole.
  static let rowMultiple = 128
  /// Rows that a packed sequence has more than its own, so that the one behind it begins at 16 bytes and not within its last
  /// tile.
  private static let packedPadding = rowMultiple + 4

  /// Rows of a sequence, those behind the last included; a length that no kernel takes is one of those, too.
  static func padded(_ queries: Int, group: Int) -> Int {
    guard let rows = checkedProduct([queries, group]), rows < .max - rowMultiple else { return .max }
    return (rows + rowMultiple - 1) / rowMultiple * rowMultiple
  }

  /// Rows of all sequences of a key/value head.
  static func rows(of problem: AttentionProblem) -> Int {
    if let packed = problem.packedQueries {
      return (packed * problem.groupSize + problem.batch * packedPadding + 2 * rowMultiple) / 4 * 4
    }
    return problem.batch * padded(problem.queries, group: problem.groupSize)
  }

  /// Bytes of all.
  static func byteCount(of problem: AttentionProblem) -> Int {
    problem.keyValueHeads * rows(of: problem) * byteCount
  }

  /// The same, rounded up to where the sums of dQ may begin.
  static func roundedByteCount(of problem: AttentionProblem) -> Int { (byteCount(of: problem) + 127) / 128 * 128 }

  /// The row of a key/value head at which a sequence begins, a multiple of 2.
  ///
  /// - Parameter firstQuery: where it begins among packed queries; nil where none are.
  static func firstRow(
    _ k: KernelBuilder, batch: Register<U32>, rowsOfSequence: Register<U32>, groupSize: Int,
    firstQuery: Register<U32>?
  ) -> Register<U64> {
    guard let firstQuery else { return k.multiplyWide(batch, rowsOfSequence) }
    return k.wide(((firstQuery * groupSize) >> 2) << 2) + k.multiplyWide(batch, packedPadding)
  }
}

/// Where the statistics of a block's sequence and head are.
struct StatisticsParameters {
  private let base: Register<U64>
  /// From the statistics to the sums of dQ, where there are some.
  private let sumsOffset: Register<U64>
  /// Rows of a key/value head, and of one of its sequences where all are as long.
  private let rowsOfHead, rowsOfSequence: Register<U32>

  init<Launch>(_ list: ParameterList<Launch>, _ problem: @escaping @Sendable (Launch) -> AttentionProblem) {
    base = list.pointer("statistics", .workspace)
    sumsOffset = list.number("query_sums_offset", U64.self) { RowStatistics.roundedByteCount(of: problem($0)) }
    rowsOfHead = list.number("statistics_of_head", U32.self) { RowStatistics.rows(of: problem($0)) }
    rowsOfSequence = list.number("statistics_of_sequence", U32.self) {
      RowStatistics.rows(of: problem($0)) / max(problem($0).batch, 1)
    }
  }

  /// The address of a row.
  func address(ofRow row: Register<U64>) -> Register<U64> { base + row * RowStatistics.byteCount }

  /// The address of a row's sums (`QuerySums`).
  func sums(ofRow row: Register<U64>, dimension: Int) -> Register<U64> {
    base + sumsOffset + row * QuerySums.rowByteCount(dimension)
  }

  /// A sequence's first row, among all of the workspace.
  func firstRow(
    _ k: KernelBuilder, batch: Register<U32>, keyValueHead: Register<U32>, groupSize: Int, isPacked: Bool,
    firstQuery: Register<U32>?
  ) -> Register<U64> {
    // Queries are packed only where sequences have lengths, and not always then: the first row of a sequence is 0 otherwise.
    let first = RowStatistics.firstRow(
      k, batch: batch, rowsOfSequence: rowsOfSequence, groupSize: groupSize, firstQuery: isPacked ? firstQuery : nil)
    return k.multiplyWide(keyValueHead, rowsOfHead) + first
  }
}
