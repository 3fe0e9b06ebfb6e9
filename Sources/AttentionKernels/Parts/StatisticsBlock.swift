internal import Attention
internal import PTX

/// The rows of a block of a kernel that goes over what the backward pass knows of each row: some of those of a batch and key/value
/// head.
struct StatisticsBlock {
  private let k: KernelBuilder
  private let groupSize: Int
  let batch, keyValueHead: Register<U32>
  /// nil where all are whole.
  let sequence: ForwardSequence?
  let rows: PackedQueries
  /// The sequence's first row in the workspace.
  let firstRow: Register<U64>

  /// What such a kernel must be told.
  struct Parameters {
    let statistics: StatisticsParameters
    let queries, keyValueHeads, blocksPerHead: Register<U32>
    let keys: Register<S32>
    let lists: ForwardSequence.Lists

    /// - Parameter rows: of a block.
    init(_ list: ParameterList<AttentionProblem>, rows: Int) {
      statistics = StatisticsParameters(list) { $0 }
      queries = list.number("query_count", U32.self) { $0.queries }
      keyValueHeads = list.number("key_value_heads", U32.self) { $0.keyValueHeads }
      blocksPerHead = list.number("blocks_per_head", U32.self) { StatisticsBlock.perHead($0, rows: rows) }
      keys = list.number("key_count", S32.self) { $0.keys }
      lists = ForwardSequence.Lists(list) { $0 }
    }
  }

  /// Blocks of one batch and key/value head, and of all.
  static func perHead(_ problem: AttentionProblem, rows: Int) -> Int {
    (problem.queries * problem.groupSize + rows - 1) / rows
  }

  static func count(_ problem: AttentionProblem, rows: Int) -> Int {
    perHead(problem, rows: rows) * problem.keyValueHeads * problem.batch
  }

  /// - Parameter count: rows of a block.
  init(
    _ k: KernelBuilder, _ p: Parameters, rows count: Int, groupSize: Int, hasSequences: Bool, hasPackedQueries: Bool
  ) {
    (self.k, self.groupSize) = (k, groupSize)
    let block = k.special(.blockX)
    let unit = block / p.blocksPerHead
    batch = unit / p.keyValueHeads
    keyValueHead = unit - batch * p.keyValueHeads
    sequence = hasSequences ? ForwardSequence(k, p.lists, queries: p.queries, keys: p.keys, batch: batch) : nil
    rows = PackedQueries(
      k, groupSize: groupSize, firstRow: (block - unit * p.blocksPerHead) * count,
      queries: sequence?.queries ?? p.queries)
    firstRow = p.statistics.firstRow(
      k, batch: batch, keyValueHead: keyValueHead, groupSize: groupSize, isPacked: hasPackedQueries,
      firstQuery: sequence?.firstQuery)
  }

  /// The group's first query head.
  var firstHead: Register<U32> { groupSize == 1 ? keyValueHead : keyValueHead * groupSize }

  /// The address of the sequence's first row of a tensor of queries, of the group's first head.
  func first(_ base: Register<U64>, _ strides: StrideParameters) -> Register<U64> {
    let own = base + k.wide(batch) * strides.batch + k.wide(firstHead) * strides.head
    return sequence.map { own + k.wide($0.firstQuery) * strides.row } ?? own
  }
}
