package import FlashAttention

/// How a case went.
package struct CaseOutcome: Sendable {
  /// The worst error as a part of what is allowed, of output and log-sum-exp.
  package let ratio: Double
  /// What is wrong, in words; nil where all is well.
  package let failure: String?
}

extension VerificationCase {
  /// No result takes this value: it is what output memory holds before, and what its gaps must hold after.
  private static let untouched: Float = -12544

  /// Computes the case on a device and compares with the 64-bit reference.
  package func run(on device: Device) throws(AttentionError) -> CaseOutcome {
    let q = CaseTensor(problem.queryShape, problem.scalarType, queryPlacement, surroundings: surroundings)
    let k = CaseTensor(problem.keyShape, problem.scalarType, keyPlacement, surroundings: surroundings)
    let v = CaseTensor(problem.valueShape, problem.scalarType, valuePlacement, surroundings: surroundings)
    let output = CaseTensor(
      problem.outputShape, problem.scalarType, outputPlacement, surroundings: Self.untouched)
    fill(q, k, v)

    let plan = try AttentionPlan(problem, device: device)
    var logSumExp = [Float](repeating: .nan, count: problem.logSumExpCount)
    try logSumExp.withUnsafeMutableBufferPointer { (statistics) throws(AttentionError) in
      try plan.run(
        queries: q.view.readOnly, keys: k.view.readOnly, values: v.view.readOnly, output: output.view,
        logSumExp: statistics)
    }

    let reference = AttentionCheck.reference(
      problem, queries: q.view.readOnly, keys: k.view.readOnly, values: v.view.readOnly)
    let plain = AttentionCheck.plain(
      problem, queries: q.view.readOnly, keys: k.view.readOnly, values: v.view.readOnly)
    let outputs = Comparison(
      actual: output.values, plain: plain.output, reference: reference.output, type: problem.scalarType)
    let statistics = Comparison(
      actual: logSumExp.map(Double.init), plain: plain.logSumExp, reference: reference.logSumExp, type: .f32)

    var failures: [String] = []
    if !outputs.passes { failures.append("output: \(outputs)") }
    if !statistics.passes { failures.append("log-sum-exp: \(statistics)") }
    if output.count(of: Self.untouched) != output.gapCount {
      failures.append("the output was written outside its elements, or not all of them were written")
    }
    return CaseOutcome(
      ratio: max(outputs.ratio, statistics.ratio),
      failure: failures.isEmpty ? nil : failures.joined(separator: "; "))
  }

  private var surroundings: Float { isPoisoned ? .nan : 7 }

  private func fill(_ q: CaseTensor, _ k: CaseTensor, _ v: CaseTensor) {
    var random = RandomSource(seed: seed, stream: UInt64(number) | 1 << 40)
    switch inputs {
    case .normal:
      for tensor in [q, k, v] { tensor.fill { _, _, _, _ in random.normal() } }
    case .huge:
      // Not larger: where nearly every row has one winner, the largest error is a single draw, for the yardstick too.
      for tensor in [q, k] { tensor.fill { _, _, _, _ in 6 * random.normal() } }
      v.fill { _, _, _, _ in 300 * random.normal() }
    case .shifted:
      q.fill { _, _, _, _ in 8 + random.normal() }
      k.fill { _, _, _, _ in 8 + random.normal() / 4 }
      v.fill { _, _, _, _ in 100 + random.normal() }
    case .oneHot:
      // Keys are unit directions by their number; a query asks for one of them.
      let d = problem.dimension
      k.fill { _, _, n, c in n % d == c ? 1 : 0 }
      q.fill { _, h, n, c in (n * 7 + h) % d == c ? 60 * Float(d).squareRoot() : 0 }
      v.fill { _, _, _, _ in random.normal() }
    }
  }
}
