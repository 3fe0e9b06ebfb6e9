internal import AttentionKernels
internal import CUDADriver
internal import PTX

/// Sequences with lengths of their own and many queries, on a GPU: by the kernels of whole problems, which read the lengths.
struct GPUSequencesPlan: Sendable {
  let plan: ForwardPlan
  let gpu: GPU
  private let problem: CachedAttentionProblem

  /// Whether there are so many rows that dividing the keys, too, would gain nothing, and nothing that only the decode kernels know:
  /// pages, left padding, new keys, bytes, splits of a fixed length.
  static func suits(_ problem: CachedAttentionProblem, _ limits: GPULimits) -> Bool {
    if case .paged = problem.cache { return false }
    let isPlain =
      !problem.hasLeftPadding && problem.newKeys == nil && problem.keysPerSplit == nil
      && problem.cacheType == problem.scalarType && problem.queryType == problem.scalarType
    if !isPlain { return false }
    if max(problem.dimension, problem.valueDimension) > DecodePlan.dimensionLimit { return true }
    let rows = problem.queries * problem.groupSize
    return rows > 128 && problem.batch * problem.keyValueHeads * (rows / 128) * 2 >= limits.multiprocessors
  }

  init(_ problem: CachedAttentionProblem, on gpu: GPU, changes: String?) throws(AttentionError) {
    (self.gpu, self.problem) = (gpu, problem)
    plan = try ForwardPlan(problem, on: gpu.limits, changes: changes)
  }

  /// Compiles and loads the kernel.
  func prepare() throws(CUDAError) { _ = try gpu.load(plan) }

  /// Puts a call into a stream; nothing is waited for.
  func launch(_ tensors: DeviceCacheTensors, stream: StreamHandle) throws(AttentionError) {
    try tensors.check(problem, workspace: nil)
    if plan.launch.blocks == 0 { return }
    let sequences = ForwardLaunch.Sequences(
      queryStarts: tensors.queryStarts, keyStarts: tensors.keyStarts, queryCounts: tensors.queryCounts,
      keyCounts: tensors.lengths, batchIndex: tensors.batchIndex)
    try reportingDeviceErrors { () throws(CUDAError) in
      let arguments = plan.launch.arguments(
        queries: tensors.queries.place, keys: tensors.keys.place, values: tensors.values.place,
        output: tensors.output.place, logSumExp: tensors.logSumExp, sequences: sequences)
      try gpu.context.use { () throws(CUDAError) in
        try gpu.load(plan).library.launch(plan.shape, arguments: arguments, in: stream)
      }
    }
  }
}
