internal import PTX

/// The rows of Q, O and the log-sum-exps that belong to a unit: where they are in memory.
struct UnitRows {
  private let k: KernelBuilder
  private let p: DecodeParameters
  private let groupSize: Int
  /// The sequence, or its place among those of all parts.
  private var sequence: Register<U32>
  /// The row of the sequence's first query, where queries are packed.
  private let firstQuery: Register<U32>?
  private let firstHead: Register<U32>
  /// The rows, of all queries of the sequence.
  let packed: PackedQueries

  /// - Parameter firstRow: the unit's first row of the pack.
  init(
    _ k: KernelBuilder, _ s: DecodeSpecialization, _ parameters: DecodeParameters, _ unit: WorkShare.Unit,
    firstRow: Register<U32>
  ) {
    (self.k, p, groupSize) = (k, parameters, s.groupSize)
    sequence = unit.sequence.reinterpreted(as: U32.self)
    firstQuery = unit.firstQuery
    firstHead = s.groupSize == 1 ? unit.head : unit.head * s.groupSize
    packed = PackedQueries(
      k, groupSize: s.groupSize, firstRow: firstRow, queries: unit.queries.reinterpreted(as: U32.self))
  }

  /// The rows of O and the log-sum-exps of a part that is left to the caller: those of all sequences lie behind those
  /// of the part before.
  func ofPart(_ part: Register<U32>) -> UnitRows {
    var rows = self
    rows.sequence = sequence + part * p.batch.reinterpreted(as: U32.self)
    return rows
  }

  /// The address of the unit's first head at the sequence's first query.
  func address(in base: Register<U64>, _ strides: StrideParameters) -> Register<U64> {
    let own = base + k.wide(sequence) * strides.batch + k.wide(firstHead) * strides.head
    return firstQuery.map { own + k.wide($0) * strides.row } ?? own
  }

  /// The query head of a row.
  func head(ofRow row: Register<U32>) -> Register<U32> { packed.head(ofRow: row, first: firstHead) }

  /// Writes a row's log-sum-exp to `[B, H_q, s_q]`, or packed `[H_q, total]`; somebody must want it.
  func store(logSumExp: Register<F32>, ofRow row: Register<U32>) {
    let query = packed.query(ofRow: row)
    let head = packed.head(ofRow: row, query: query, first: firstHead)
    let place = k.wide(sequence) * p.logSumExpBatchStride + k.wide(head) * p.logSumExpHeadStride
    k.store(logSumExp, global: p.logSumExpBase + place + k.wide(firstQuery.map { query + $0 } ?? query) * 4)
  }
}
