package import FlashAttention

/// How a case went.
package struct CaseOutcome: Sendable {
  /// The worst error as a part of what is allowed, of output and log-sum-exp.
  package let ratio: Double
  /// What is wrong, in words; nil where all is well.
  package let failure: String?

  package init(ratio: Double, failure: String?) { (self.ratio, self.failure) = (ratio, failure) }
}

/// The tensors of a case, each in memory of its own.
package struct CaseTensors: Sendable {
  package let queries, keys, values, output: CaseTensor
}

/// What a computation made of a case.
package struct CaseResult: Sendable {
  package let tensors: CaseTensors
  package let logSumExp: [Float]
}

extension VerificationCase {
  /// No result takes this value: it is what output memory holds before, and what its gaps must hold after.
  private static let untouched: Float = -12544

  /// The inputs, and memory for the output that nobody has written.
  package func makeTensors() -> CaseTensors {
    let q = CaseTensor(problem.queryShape, problem.scalarType, queryPlacement, surroundings: surroundings)
    let k = CaseTensor(problem.keyShape, problem.scalarType, keyPlacement, surroundings: surroundings)
    let v = CaseTensor(problem.valueShape, problem.scalarType, valuePlacement, surroundings: surroundings)
    fill(q, k, v)
    return CaseTensors(
      queries: q, keys: k, values: v,
      output: CaseTensor(problem.outputShape, problem.scalarType, outputPlacement, surroundings: Self.untouched))
  }

  /// Computes the case on a device.
  package func compute(on device: Device) throws(AttentionError) -> CaseResult {
    let tensors = makeTensors()
    let plan = try AttentionPlan(problem, device: device)
    var logSumExp = [Float](repeating: .nan, count: problem.logSumExpCount)
    try logSumExp.withUnsafeMutableBufferPointer { (statistics) throws(AttentionError) in
      try plan.run(
        queries: tensors.queries.view.readOnly, keys: tensors.keys.view.readOnly,
        values: tensors.values.view.readOnly, output: tensors.output.view, logSumExp: statistics,
        entries: CacheEntries(sinks: problem.exampleSinks, ranges: problem.exampleRanges))
    }
    return CaseResult(tensors: tensors, logSumExp: logSumExp)
  }

  /// Compares a result with the 64-bit reference, or with another result that it should agree with as well.
  ///
  /// - Parameter sums: how tensor cores made the sums; the worse of plain computations with these and with rounded ones
  ///   is the yardstick.
  package func judge(
    _ result: CaseResult, expected: CaseResult? = nil, sums: PlainAttention.Sums = .cut
  ) -> CaseOutcome {
    let (tensors, output) = (result.tensors, result.tensors.output)
    let (q, k, v) = (tensors.queries.view.readOnly, tensors.keys.view.readOnly, tensors.values.view.readOnly)
    let yardstick = Yardstick(
      problem, queries: q, keys: k, values: v, sums: kernels == nil ? nil : sums, sinks: problem.exampleSinks,
      ranges: problem.exampleRanges)
    let outputs = yardstick.judge(output: output.values, expected: expected?.tensors.output.values)
    let statistics = yardstick.judge(
      logSumExp: result.logSumExp.map(Double.init), expected: expected?.logSumExp.map(Double.init))

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

  /// Computes the case on a device and compares with the 64-bit reference.
  package func run(on device: Device) throws(AttentionError) -> CaseOutcome { judge(try compute(on: device)) }

  private var surroundings: Float { isPoisoned ? .nan : 7 }

  /// - Parameter magnitude: of huge queries and keys. Not larger: where nearly every row has one winner, the largest error is a
  ///   single draw, for the yardstick too; of gradients it is sooner.
  func fill(_ q: CaseTensor, _ k: CaseTensor, _ v: CaseTensor, magnitude: Float = 6) {
    var random = RandomSource(seed: seed, stream: UInt64(number) | 1 << 40)
    switch inputs {
    case .normal:
      for tensor in [q, k, v] { tensor.fill { _, _, _, _ in random.normal() } }
    case .huge:
      for tensor in [q, k] { tensor.fill { _, _, _, _ in magnitude * random.normal() } }
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
