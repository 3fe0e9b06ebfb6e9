internal import Attention
internal import CPUAttention

/// Gradients of packed sequences on the CPU, one after the other, each a problem of its own.
struct HostGradients {
  private let problem: AttentionProblem
  private let threads: Int
  private let tensors: GradientTensors<HostMemory>

  /// The tensors are what the problem needs.
  init(_ problem: AttentionProblem, _ tensors: GradientTensors<HostMemory>, threads: Int) {
    (self.problem, self.tensors, self.threads) = (problem, tensors, threads)
  }

  func run() throws(AttentionError) {
    // Rows of no sequence are written, too.
    if problem.packedQueries != nil { clear(tensors.queryGradient) }
    clear(tensors.keyGradient)
    clear(tensors.valueGradient)
    tensors.sinkGradient?.update(repeating: 0)
    for sequence in 0..<problem.batch { try run(sequence) }
  }

  private func clear(_ gradient: MutableTensorView?) {
    guard let gradient else { return }
    let shape = gradient.shape
    for b in 0..<shape.batch {
      for h in 0..<shape.heads {
        for n in 0..<shape.length {
          gradient.row(batch: b, head: h, token: n).initializeMemory(
            as: UInt8.self, repeating: 0, count: shape.dimension * gradient.scalarType.byteCount)
        }
      }
    }
  }

  private func run(_ sequence: Int) throws(AttentionError) {
    let entries = tensors.entries
    let queries = entries.queries(of: sequence, problem)
    let firstKey = entries.keyStarts?[sequence] ?? 0
    let one = try problem.sequence(queries: queries.count, length: entries.rows(of: sequence))
    // Of a packed tensor, its rows; of another, its batch.
    func queryRows(_ view: TensorView, _ shape: TensorShape) -> TensorView {
      rows(view, shape, batch: problem.packedQueries == nil ? sequence : 0, first: queries.lowerBound)
    }
    func keyRows(_ view: TensorView, _ shape: TensorShape) -> TensorView {
      rows(view, shape, batch: problem.hasPackedKeys ? 0 : sequence, first: firstKey)
    }
    func written(_ view: MutableTensorView?, _ part: (TensorView) -> TensorView) -> MutableTensorView? {
      view.map { MutableTensorView(mutating: part($0.readOnly)) }
    }
    var (logSumExp, ofLogSumExp) = (
      statistics(tensors.logSumExp, sequence, queries),
      tensors.logSumExpGradient.map { statistics($0, sequence, queries) } ?? []
    )
    // Of a sequence; then added to those of the others.
    let ofSinks = tensors.sinkGradient.map { UnsafeMutableBufferPointer<Float>.allocate(capacity: $0.count) }
    defer { ofSinks?.deallocate() }
    try logSumExp.withUnsafeMutableBufferPointer { (logSumExp) throws(AttentionError) in
      try ofLogSumExp.withUnsafeMutableBufferPointer { (ofLogSumExp) throws(AttentionError) in
        try CPUGradientPlan(one, threads: threads).run(
          GradientTensors(
            queries: queryRows(tensors.queries, one.queryShape), keys: keyRows(tensors.keys, one.keyShape),
            values: keyRows(tensors.values, one.valueShape), output: queryRows(tensors.output, one.outputShape),
            logSumExp: logSumExp, outputGradient: queryRows(tensors.outputGradient, one.outputShape),
            logSumExpGradient: tensors.logSumExpGradient == nil ? nil : ofLogSumExp,
            queryGradient: written(tensors.queryGradient) { queryRows($0, one.queryShape) },
            keyGradient: written(tensors.keyGradient) { keyRows($0, one.keyShape) },
            valueGradient: written(tensors.valueGradient) { keyRows($0, one.valueShape) }, sinkGradient: ofSinks,
            entries: CacheEntries(sinks: entries.sinks, ranges: entries.ranges(of: sequence, problem))))
      }
    }
    if let all = tensors.sinkGradient, let ofSinks { for head in all.indices { all[head] += ofSinks[head] } }
  }

  private func rows(_ view: TensorView, _ shape: TensorShape, batch: Int, first: Int) -> TensorView {
    TensorView(
      // Without rows there is none to begin at.
      base: shape.length == 0 ? view.base : view.row(batch: batch, head: 0, token: first),
      scalarType: view.scalarType, shape: shape, strides: view.strides)
  }

  /// A sequence's `[H_q, n_q]` of `[B, H_q, N_q]` or `[H_q, total]`.
  private func statistics(
    _ all: UnsafeMutableBufferPointer<Float>, _ sequence: Int, _ queries: Range<Int>
  ) -> [Float] {
    (0..<problem.queryHeads).flatMap { head in
      let first =
        problem.packedQueries.map { head * $0 } ?? (sequence * problem.queryHeads + head) * problem.queries
      return Array(all[first + queries.lowerBound..<first + queries.upperBound])
    }
  }
}
