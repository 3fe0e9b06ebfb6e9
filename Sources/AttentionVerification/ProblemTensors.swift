package import FlashAttention

/// The tensors of a case: standard normal.
package struct ProblemInputs {
  package let queries, keys, values: Tensor

  package init(_ problem: AttentionProblem) throws(AttentionError) {
    var random = RandomSource(seed: 1)
    queries = try Tensor.normal(problem.queryShape, problem.scalarType, from: &random)
    keys = try Tensor.normal(problem.keyShape, problem.scalarType, from: &random)
    values = try Tensor.normal(problem.valueShape, problem.scalarType, from: &random)
  }
}

/// The tensors of a problem in a GPU's memory.
package struct DeviceTensors {
  private let gpu: GPU
  private let buffers: [GPUBuffer]
  private let queries, keys, values, output: DeviceTensorView
  private let logSumExp: GPUBuffer

  package init(_ problem: AttentionProblem, _ inputs: ProblemInputs, on gpu: GPU) throws {
    func upload(_ tensor: Tensor) throws -> (GPUBuffer, DeviceTensorView) {
      try tensor.withBytes { bytes in
        let buffer = try GPUBuffer(byteCount: bytes.count, on: gpu)
        try buffer.copy(from: bytes)
        return (
          buffer,
          DeviceTensorView(
            address: buffer.address, scalarType: tensor.scalarType, shape: tensor.shape, layout: tensor.layout)
        )
      }
    }
    let (q, k, v) = (try upload(inputs.queries), try upload(inputs.keys), try upload(inputs.values))
    self.gpu = gpu
    let o = try GPUBuffer(byteCount: problem.outputShape.elementCount * problem.scalarType.byteCount, on: gpu)
    logSumExp = try GPUBuffer(byteCount: problem.logSumExpCount * 4, on: gpu)
    buffers = [q.0, k.0, v.0, o]
    (queries, keys, values) = (q.1, k.1, v.1)
    output = DeviceTensorView(
      address: o.address, scalarType: problem.scalarType, shape: problem.outputShape, layout: inputs.queries.layout)
  }

  /// The output and the log-sum-exp of one computation.
  package func result(of plan: AttentionPlan) throws -> (output: [UInt8], logSumExp: [Float]) {
    try spoil()
    try launch(plan)
    return try download()
  }

  /// Fills the output with NaN; done when this returns.
  package func spoil() throws {
    try buffers[3].fill(0xff)
    try gpu.synchronize()
  }

  /// What was computed last; the library's stream must know that it is done.
  package func download() throws -> (output: [UInt8], logSumExp: [Float]) {
    var output = [UInt8](repeating: 0, count: buffers[3].byteCount)
    try output.withUnsafeMutableBytes { try buffers[3].copy(to: $0) }
    var statistics = [Float](repeating: 0, count: logSumExp.byteCount / 4)
    try statistics.withUnsafeMutableBytes { try logSumExp.copy(to: $0) }
    return (output, statistics)
  }

  /// Whether computing again and again gives the same bits.
  package func areEqual(_ plan: AttentionPlan, repeats: Int) throws -> Bool {
    let first = try result(of: plan).output
    return try (1..<max(repeats, 1)).allSatisfy { _ in try result(of: plan).output == first }
  }

  package func launch(_ plan: AttentionPlan, stream: OpaquePointer? = nil) throws(AttentionError) {
    try plan.launch(
      AttentionTensors(
        queries: queries, keys: keys, values: values, output: output, logSumExp: logSumExp.address), stream: stream)
  }
}
