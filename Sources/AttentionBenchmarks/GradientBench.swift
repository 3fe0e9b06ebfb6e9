internal import AttentionKernels
internal import AttentionVerification
package import FlashAttention

/// Measures gradients, on tensors that are there, after a forward pass.
package struct GradientBench {
  /// One case, with all samples.
  package struct Result: Encodable {
    package let problem: String
    package let scalarType: String
    package let batch, queryHeads, keyValueHeads, queries, keys, dimension: Int
    package let isCausal: Bool
    /// Whether there is nothing else to know of the problem: its mask is causal or none, its scale the usual one.
    package let isPlain: Bool
    package let tiling: String?
    package let flops: Double
    package let seconds: [Double]
    package let predictedSeconds: Double?
    /// Whether all repeated computations gave the same bits; nil where none were asked for.
    package let areRepeatsEqual: Bool?

    /// By the field's convention, of the median.
    package var teraflops: Double { flops / median(seconds) / 1e12 }
  }

  /// The tensors of a problem on a GPU.
  private final class Tensors {
    let problem: AttentionProblem
    private let gpu: GPU
    private var buffers: [GPUBuffer] = []
    private(set) var tensors: GradientTensors<GPUMemory>!

    init(_ problem: AttentionProblem, on gpu: GPU) throws {
      (self.problem, self.gpu) = (problem, gpu)
      let inputs = try ProblemInputs(problem)
      var random = RandomSource(seed: 2)
      let given = try Tensor.normal(problem.outputShape, problem.scalarType, from: &random)
      func view(_ tensor: Tensor) throws -> DeviceTensorView {
        let buffer = try tensor.withBytes { bytes in
          let buffer = try GPUBuffer(byteCount: bytes.count, on: gpu)
          try buffer.copy(from: bytes)
          return buffer
        }
        buffers.append(buffer)
        return DeviceTensorView(
          address: buffer.address, scalarType: tensor.scalarType, shape: tensor.shape, layout: tensor.layout)
      }
      func room(_ shape: TensorShape) throws -> DeviceTensorView {
        let buffer = try GPUBuffer(byteCount: shape.elementCount * problem.scalarType.byteCount, on: gpu)
        buffers.append(buffer)
        return DeviceTensorView(
          address: buffer.address, scalarType: problem.scalarType, shape: shape, layout: inputs.queries.layout)
      }
      let (q, k, v) = (try view(inputs.queries), try view(inputs.keys), try view(inputs.values))
      let output = try room(problem.outputShape)
      let logSumExp = try GPUBuffer(byteCount: problem.logSumExpCount * 4, on: gpu)
      buffers.append(logSumExp)
      try AttentionPlan(problem, device: .gpu(gpu.ordinal)).launch(
        AttentionTensors(queries: q, keys: k, values: v, output: output, logSumExp: logSumExp.address))
      tensors = GradientTensors(
        queries: q, keys: k, values: v, output: output, logSumExp: logSumExp.address, outputGradient: try view(given),
        queryGradient: try room(problem.queryShape), keyGradient: try room(problem.keyShape),
        valueGradient: try room(problem.valueShape))
      try gpu.synchronize()
    }

    /// The bits of all gradients.
    func results(of plan: GradientPlan, _ workspace: GPUBuffer) throws -> [[UInt8]] {
      let written = buffers.suffix(3)
      for buffer in written { try buffer.fill(0xff) }
      try plan.launch(tensors, workspace: workspace.address)
      return try written.map { buffer in
        var bytes = [UInt8](repeating: 0, count: buffer.byteCount)
        try bytes.withUnsafeMutableBytes { try buffer.copy(to: $0) }
        return bytes
      }
    }
  }

  private let gpu: GPU?
  private let probe: GPUProbe?

  /// - Parameter gpu: nil for the CPU.
  package init(_ gpu: GPU?) throws {
    self.gpu = gpu
    probe = try gpu.map { try GPUProbe($0) }
  }

  /// - Parameter repeats: computations whose bits are compared, on a GPU.
  /// - Returns: one result for each plan; all plans are for one problem.
  package func measure(_ plans: [GradientPlan], iterations: Int, repeats: Int = 0) throws -> [Result] {
    guard let problem = plans.first?.problem else { return [] }
    guard let gpu, let probe else { return try plans.map { try measureOnCPU($0, iterations: iterations) } }
    let tensors = try Tensors(problem, on: gpu)
    return try plans.map { plan in
      try plan.prepare()
      let workspace = try GPUBuffer(byteCount: plan.workspaceByteCount, on: gpu)
      let seconds = try probe.seconds(iterations: iterations) { () throws(AttentionError) in
        try plan.launch(tensors.tensors, workspace: workspace.address)
      }
      try gpu.synchronize()
      var areEqual: Bool?
      if repeats > 0 {
        let first = try tensors.results(of: plan, workspace)
        areEqual = try (1..<repeats).allSatisfy { _ in try tensors.results(of: plan, workspace) == first }
      }
      return result(plan, seconds, areEqual)
    }
  }

  private func measureOnCPU(_ plan: GradientPlan, iterations: Int) throws -> Result {
    let problem = plan.problem
    let inputs = try ProblemInputs(problem)
    var random = RandomSource(seed: 2)
    let given = try Tensor.normal(problem.outputShape, problem.scalarType, from: &random)
    let forward = try AttentionPlan(problem, device: .cpu).run(
      queries: inputs.queries, keys: inputs.keys, values: inputs.values)
    func run() throws {
      _ = try plan.gradients(
        of: forward, queries: inputs.queries, keys: inputs.keys, values: inputs.values, outputGradient: given)
    }
    try run()
    return result(plan, try (0..<iterations).map { _ in try elapsedSeconds(run) }, nil)
  }

  private func result(_ plan: GradientPlan, _ seconds: [Double], _ areRepeatsEqual: Bool?) -> Result {
    let problem = plan.problem
    return Result(
      problem: "\(problem)", scalarType: problem.scalarType.rawValue, batch: problem.batch,
      queryHeads: problem.queryHeads, keyValueHeads: problem.keyValueHeads, queries: problem.queries,
      keys: problem.keys, dimension: problem.dimension, isCausal: problem.mask == .causal,
      isPlain: (problem.mask == .none || problem.mask == .causal) && problem.softcap == nil
        && problem.valueDimension == problem.dimension
        && problem.scale == 1 / Double(problem.dimension).squareRoot(),
      tiling: plan.kernelPlan?.tiling.changes, flops: problem.gradientFlops, seconds: seconds,
      predictedSeconds: plan.kernelPlan?.cost.seconds, areRepeatsEqual: areRepeatsEqual)
  }
}
