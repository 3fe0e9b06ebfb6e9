internal import PTX

/// What a thread knows of 4 columns of a row, over parts of the keys that were computed apart: O = sum of w_i O_i, with
/// w_i = exp(LSE_i - LSE).
struct PartialSum {
  private let k: KernelBuilder
  /// The largest log-sum-exp so far, and the sum of the weights relative to it.
  let maximum, sum: Register<F32>
  let values: [Register<F32>]

  private static let log2e: Float = 1.4426950408889634

  /// No part yet.
  init(_ k: KernelBuilder) {
    self.k = k
    maximum = k.variable(k.constant(-.infinity))
    sum = k.variable(k.constant(0))
    values = (0..<4).map { _ in k.variable(k.constant(0)) }
  }

  /// Adds sums with maxima of their own; a part of which only the log-sum-exp is known has that and the sum 1.
  func add(_ others: [(maximum: Register<F32>, sum: Register<F32>, values: [Register<F32>])]) {
    let largest = others.reduce(maximum) { k.maximum($0, $1.maximum) }
    let top = k.select(largest .!= -.infinity, largest, 0)
    let old = k.exp2((maximum - top) * Self.log2e)
    k.set(maximum, to: largest)
    k.set(sum, to: sum * old)
    for value in values { k.set(value, to: value * old) }
    for other in others {
      let weight = k.exp2((other.maximum - top) * Self.log2e)
      k.set(sum, to: k.multiplyAdd(weight, other.sum, sum))
      for (value, element) in zip(values, other.values) {
        k.set(value, to: k.multiplyAdd(weight, element, value))
      }
    }
  }

  private var hasKeys: Predicate { sum .!= 0 }

  /// The columns of O; 0 in a row without keys.
  var normalized: [Register<F32>] {
    let (hasKeys, factor) = (hasKeys, k.reciprocal(sum))
    return values.map { k.select(hasKeys, $0 * factor, 0) }
  }

  /// The row's log-sum-exp; -inf without keys.
  func logSumExp(ln2: Float) -> Register<F32> {
    k.select(hasKeys, k.multiplyAdd(k.log2(sum), k.constant(ln2), maximum), -.infinity)
  }
}
