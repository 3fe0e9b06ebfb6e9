internal import AttentionKernels
internal import CUDADriver
internal import PTX

/// Sequences with lengths of their own and many queries, on a GPU: by the kernels of whole problems, which read the lengths.
struct GPUSequencesPlan: Sendable {
  let plan: ForwardPlan
  let gpu: GPU
  private let problem: CachedAttentionProblem

  /// What only the decode kernels know, in words; nil where a problem has nothing of it.
  private static func obstacle(_ problem: CachedAttentionProblem) -> String? {
    if case .paged = problem.cache { return "pages" }
    if problem.hasLeftPadding { return "left padding" }
    if problem.newKeys != nil { return "new keys" }
    if problem.keysPerSplit != nil { return "splits of a fixed length" }
    return problem.cacheType == problem.scalarType && problem.queryType == problem.scalarType ? nil : "e4m3 numbers"
  }

  /// Whether these kernels are to be used: they are asked for, or there are so many rows that dividing the keys, too, would gain
  /// nothing.
  /// - Throws: `AttentionError.unsupported` where they are asked for and do not take the problem.
  static func suits(
    _ problem: CachedAttentionProblem, _ packing: QueryPacking, _ limits: GPULimits
  ) throws(AttentionError) -> Bool {
    let obstacle = obstacle(problem)
    switch packing {
    case .always: return false
    case .never:
      guard let obstacle else { return true }
      throw .unsupported(
        "The kernels without packing know no \(obstacle); leave the packing automatic, or leave out the \(obstacle).")
    case .automatic:
      if obstacle != nil { return false }
      if max(problem.dimension, problem.valueDimension) > DecodePlan.dimensionLimit { return true }
      let rows = problem.queries * problem.groupSize
      return rows > 128 && problem.batch * problem.keyValueHeads * (rows / 128) * 2 >= limits.multiprocessors
    }
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
    try gpu.reporting { () throws(CUDAError) in
      let arguments = plan.launch.arguments(
        queries: tensors.queries.place, keys: tensors.keys.place, values: tensors.values.place,
        output: tensors.output.place, logSumExp: tensors.logSumExp, sequences: sequences)
      try gpu.context.use { () throws(CUDAError) in
        try gpu.load(plan).library.launch(plan.shape, arguments: arguments, in: stream)
      }
    }
  }
}
