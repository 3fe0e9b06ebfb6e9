internal import FlashAttention
internal import TensorFiles

/// The gradients of `run --gradients`: of what a file says are the gradients of the output and of the log-sum-exp.
struct RunGradients {
  private let outputGradient: Tensor
  private let logSumExpGradient: [Float]?

  /// - Parameter name: the tensor of the gradient of the output; with `_lse` behind it, of that of the log-sum-exp.
  /// - Throws: where they are not there, or not of the results' shapes.
  init(
    _ container: SafetensorsFile, path: String, _ name: String, _ layout: TensorLayout, _ problem: AttentionProblem
  ) throws {
    let array = try container.array(name)
    guard array.extents == layout.extents(of: problem.outputShape), let tensor = try array.tensor(layout: layout) else {
      throw TensorFileError.rank(
        path: path, name: name, extents: array.extents,
        expected: "the output has \(layout.extents(of: problem.outputShape))")
    }
    outputGradient = try tensor.converted(to: problem.scalarType)
    let beside = name + "_lse"
    guard container.names.contains(beside) else {
      logSumExpGradient = nil
      return
    }
    let ofLogSumExp = try container.array(beside)
    let extents = [problem.batch, problem.queryHeads, problem.queries]
    guard ofLogSumExp.extents == extents else {
      throw TensorFileError.rank(
        path: path, name: beside, extents: ofLogSumExp.extents, expected: "the log-sum-exp has \(extents)")
    }
    logSumExpGradient = ofLogSumExp.floats
  }

  /// On the device of the forward pass.
  func compute(
    of result: AttentionResult, queries: Tensor, keys: Tensor, values: Tensor, sinks: [Float]?, ranges: KeyRanges?,
    _ plan: AttentionPlan
  ) throws -> AttentionGradients {
    try plan.backward().gradients(
      of: result, queries: queries, keys: keys, values: values, outputGradient: outputGradient,
      logSumExpGradient: logSumExpGradient, sinks: sinks, ranges: ranges)
  }
}
