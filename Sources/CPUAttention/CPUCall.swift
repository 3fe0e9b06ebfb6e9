package import Attention

/// A problem with its tensors, one of those that are computed at once. An object, because its parts are large, and each copy of all would cost
/// as much as a few short rows.
package final class CPUCall: Sendable {
  let plan: CPUPlan
  let operands: Operands

  init(_ plan: CPUPlan, _ operands: Operands) {
    (self.plan, self.operands) = (plan.reading(operands.keys, operands.values), operands)
  }

  /// A sequence of a call over a cache.
  ///
  /// - Parameters:
  ///   - plan: of the sequence's problem.
  ///   - queries: `[1, H_q, N_q, D]`.
  ///   - output: `[1, H_q, N_q, D_v]`.
  ///   - logSumExp: `[H_q, N_q]`.
  ///   - scoreFactors: what a key/value head's products of bytes are multiplied by; nil where they are numbers.
  ///   - valueFactors: the same of its values.
  package convenience init(
    _ plan: CPUPlan, queries: TensorView, keys: KeyRows, values: KeyRows, output: MutableTensorView,
    logSumExp: UnsafeMutablePointer<Float>?, sinks: [Float]?, ranges: [Int]?, scoreFactors: [Double]?,
    valueFactors: [Float]?
  ) {
    self.init(
      plan,
      Operands(
        queries: queries, keys: keys, values: values, output: output, logSumExp: logSumExp, sinks: sinks,
        ranges: ranges,
        scoreFactors: scoreFactors, valueFactors: valueFactors))
  }

  /// What a thread does in a second, of a small problem.
  private static let flops = 67e9, bytes = 10e9

  /// Computes calls on up to `threads` threads, each unit of theirs by whoever is free.
  package static func run(_ calls: [CPUCall], threads: Int) {
    let calls = calls.filter { $0.plan.problem.logSumExpCount > 0 }
    // The number behind each call's last unit.
    let ends = calls.reduce(into: [Int]()) { $0.append(($0.last ?? 0) + $1.plan.units) }
    // Another thread is woken for what takes it as long as waking it does, at least.
    let seconds = calls.map(\.plan).reduce(0) { $0 + max($1.computedFlops / flops, $1.problem.bytes / bytes) }
    let worthIt = Int(min(Double(threads), max(1, seconds / WorkerTeam.secondsWorthAThread)))
    let partials = calls.map { $0.plan.keySplits > 1 ? SplitPartials($0.plan) : nil }
    WorkerTeam.run(items: ends.last ?? 0, threads: worthIt, team: threads) { queue in
      var (next, number) = (queue.next(), 0)
      while let item = next {
        // Items that a thread takes ascend.
        while item >= ends[number] { number += 1 }
        let numbers = ends[number] - calls[number].plan.units..<ends[number]
        next = calls[number].compute(from: item, of: numbers, partials[number], queue)
      }
    }
    for (call, own) in zip(calls, partials) { own?.combine(into: call.operands) }
  }

  /// Computes units from a number on, as long as the queue gives this call's; returns what it gave then.
  private func compute(
    from first: Int, of numbers: Range<Int>, _ partials: SplitPartials?, _ queue: WorkQueue
  ) -> Int? {
    var next = Optional(first)
    func unit() -> CPUPlan.Unit? {
      guard let number = next, numbers.contains(number) else { return nil }
      return plan.unit(number - numbers.lowerBound, operands.ranges)
    }
    switch plan.path {
    case .rows, .pairRows:
      let worker = RowWorker(plan)
      while let unit = unit() {
        let destination = RowDestination(call: self, partials: partials, split: unit.split)
        worker.compute(unit, operands, to: destination)
        next = queue.next()
      }
    case .panels, .pairPanels:
      let worker = PanelWorker(plan)
      while let unit = unit() {
        let destination = RowDestination(call: self, partials: partials, split: unit.split)
        worker.compute(unit.rows, split: unit.split, operands, to: destination)
        next = queue.next()
      }
    }
    return next
  }
}
