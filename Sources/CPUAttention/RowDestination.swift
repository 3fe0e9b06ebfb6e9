internal import Attention
internal import CPUMicrokernels

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// Where finished rows go: to the output tensor, or, when the keys are split, to f32 partial results.
struct RowDestination: ~Copyable {
  let call: CPUCall
  /// nil: the result is final.
  let partials: SplitPartials?
  let split: Int

  private var plan: CPUPlan { call.plan }
  private var operands: Operands { call.operands }

  /// Stores a panel: `output` `[Dv][rows]`.
  func store(
    _ output: UnsafePointer<Float>, _ state: FASoftmaxState, _ range: Range<Int>, vectors: Int, _ rows: PackedRows
  ) {
    let functions = plan.instructionSet.functions
    var pointers: [UnsafeMutableRawPointer?] = range.map { self.row($0, rows) }
    for (lane, row) in range.enumerated() { finish(state, lane, row, rows) }
    functions.pointee.store_output(
      output, state.sum, Int32(vectors), Int32(range.count), Int32(plan.problem.valueDimension), type, &pointers)
  }

  /// Stores the rows of a row worker: `output` `[rows][stride]`.
  func storeRows(_ output: UnsafePointer<Float>, stride: Int, _ state: FASoftmaxState, _ rows: PackedRows) {
    let functions = plan.instructionSet.functions
    for (r, row) in rows.rows.enumerated() {
      finish(state, r, row, rows)
      functions.pointee.store_row(
        output + r * stride, state.sum[r], Int32(plan.problem.valueDimension), type, self.row(row, rows))
    }
  }

  private var type: FAScalarType { partials == nil ? operands.output.scalarType.microkernelType : FA_F32 }

  private func row(_ row: Int, _ rows: PackedRows) -> UnsafeMutableRawPointer {
    if let partials { return UnsafeMutableRawPointer(partials.output(index: rows.index(row), split: split)) }
    return operands.output.row(batch: rows.batch, head: rows.head(row), token: rows.query(row))
  }

  /// Stores a row's log-sum-exp, and takes its sink into its sum, by which the output is divided then.
  private func finish(_ state: FASoftmaxState, _ lane: Int, _ row: Int, _ rows: PackedRows) {
    if partials == nil && operands.sinks == nil && operands.logSumExp == nil { return }
    // In 64 bits, so that nothing is lost beside a large maximum.
    let sum = Double(state.sum[lane])
    let unit = operands.scoreUnits(plan.problem, head: rows.keyValueHead).maximumUnit
    var logSumExp2 = sum == 0 ? -.infinity : Double(state.maximum[lane]) * unit + log2(sum)
    if let partials {
      partials.logSumExp2[rows.index(row) * plan.keySplits + split] = logSumExp2
      return
    }
    if let sinks = operands.sinks {
      let withSink = Sink(sinks[rows.head(row)], logSumExp2)
      state.sum[lane] = Float(sum * withSink.ratio)
      logSumExp2 = withSink.logSumExp2
    }
    if let logSumExp = operands.logSumExp {
      logSumExp[rows.index(row)] = Float(logSumExp2 * 0.6931471805599453)
    }
  }
}

/// What a sink, a natural logarithm, makes of a row.
private struct Sink {
  /// What its sum is multiplied by: infinite where the row sees no key, or none that counts.
  let ratio: Double
  let logSumExp2: Double

  init(_ sink: Float, _ logSumExp2: Double) {
    let sink = Double(sink) * 1.4426950408889634
    // Beside nothing, a sink of -inf is nothing, too.
    if logSumExp2 == -.infinity {
      (ratio, self.logSumExp2) = (1, sink)
    } else {
      ratio = 1 + exp2(sink - logSumExp2)
      let (larger, smaller) = (max(sink, logSumExp2), min(sink, logSumExp2))
      // Of a NaN, `max` gives the other: a row that is lost stays so.
      self.logSumExp2 =
        ratio.isNaN ? ratio : sink == -.infinity ? logSumExp2 : larger + log2(1 + exp2(smaller - larger))
    }
  }
}

/// Partial results of all rows and splits: `output` `[b, h_q, n_q, splits, d_v]`, each normalized by its own sum, and
/// `logSumExp2` `[b, h_q, n_q, splits]`, base 2.
final class SplitPartials: @unchecked Sendable {
  private let plan: CPUPlan
  private let outputs: UnsafeMutablePointer<Float>
  let logSumExp2: UnsafeMutablePointer<Double>

  init(_ plan: CPUPlan) {
    self.plan = plan
    let rows = plan.problem.logSumExpCount * plan.keySplits
    outputs = .allocate(capacity: max(rows * plan.problem.valueDimension, 1))
    logSumExp2 = .allocate(capacity: max(rows, 1))
  }

  deinit {
    outputs.deallocate()
    logSumExp2.deallocate()
  }

  func output(index: Int, split: Int) -> UnsafeMutablePointer<Float> {
    outputs + (index * plan.keySplits + split) * plan.problem.valueDimension
  }

  /// Weighs each part by its share of the whole sum, `2^(its log-sum-exp - the whole)`, always in the same order.
  func combine(into operands: Operands) {
    // Rows in pieces large enough to be worth a thread's waking up.
    let piece = 64
    let count = plan.problem.logSumExpCount
    WorkerTeam.run(items: (count + piece - 1) / piece, threads: plan.threads) { queue in
      // store_row reads whole vectors.
      let total = UnsafeMutablePointer<Float>.allocate(capacity: RowWorker.padded(plan.problem.valueDimension))
      defer { total.deallocate() }
      while let item = queue.next() {
        for index in item * piece..<min((item + 1) * piece, count) { combine(index, total, operands) }
      }
    }
  }

  private func combine(_ index: Int, _ total: UnsafeMutablePointer<Float>, _ operands: Operands) {
    let problem = plan.problem
    total.update(repeating: 0, count: RowWorker.padded(problem.valueDimension))
    let parts = UnsafeBufferPointer(start: logSumExp2 + index * plan.keySplits, count: plan.keySplits)
    // A NaN is no maximum, but it weighs NaN below.
    let largest = parts.reduce(-.infinity) { $1 > $0 ? $1 : $0 }
    let offset = largest == -.infinity ? 0 : largest
    var sum = 0.0
    for (split, part) in parts.enumerated() where part != -.infinity {
      let weight = exp2(part - offset)
      sum += weight
      let row = output(index: index, split: split)
      for c in 0..<problem.valueDimension { total[c] += Float(weight) * row[c] }
    }
    let query = index % problem.queries
    let head = index / problem.queries % problem.queryHeads
    let batch = index / problem.queries / problem.queryHeads
    var logSumExp2 = offset + log2(sum)
    if let sinks = operands.sinks {
      let withSink = Sink(sinks[head], sum == 0 ? -.infinity : logSumExp2)
      (sum, logSumExp2) = (sum * withSink.ratio, withSink.logSumExp2)
    }
    plan.instructionSet.functions.pointee.store_row(
      total, Float(sum), Int32(problem.valueDimension), operands.output.scalarType.microkernelType,
      operands.output.row(batch: batch, head: head, token: query))
    operands.logSumExp?[index] = Float(logSumExp2 * 0.6931471805599453)
  }
}
