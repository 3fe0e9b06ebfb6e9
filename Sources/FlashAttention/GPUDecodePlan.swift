internal import AttentionKernels
internal import CUDADriver
internal import PTX

/// A decode plan on a GPU.
struct GPUDecodePlan: Sendable {
  let plan: DecodePlan
  let gpu: GPU

  init(_ problem: CachedAttentionProblem, on gpu: GPU, changes: String?) throws(AttentionError) {
    self.gpu = gpu
    plan = try DecodePlan(problem, on: gpu.limits, changes: changes)
  }

  /// Compiles and loads the kernels.
  func prepare() throws(CUDAError) {
    _ = try gpu.load(plan)
    if plan.launch.combineBlocks > 0 { _ = try gpu.load(CombinePlan(plan: plan)) }
  }

  /// Puts a call into a stream; nothing is waited for.
  func launch(
    _ tensors: DeviceCacheTensors, workspace: UInt64, stream: StreamHandle
  ) throws(AttentionError) {
    let problem = plan.problem
    try tensors.queries.check("queries", isFor: problem.queryShape, problem.scalarType)
    try tensors.keys.check("the cached keys", isFor: problem.keyShape, problem.scalarType)
    try tensors.values.check("the cached values", isFor: problem.valueShape, problem.scalarType)
    try tensors.output.check("output", isFor: problem.outputShape, problem.scalarType, isWritten: true)
    for (name, address, multiple) in [
      ("the log-sum-exp", tensors.logSumExp, 4), ("the lengths", tensors.lengths, 4),
      ("the batch index", tensors.batchIndex, 4), ("the left padding", tensors.leftPadding, 4),
      ("the page table", tensors.pageTable, 4), ("the workspace", workspace, 16),
    ] where address % UInt64(multiple) != 0 {
      throw .alignment(
        tensor: name, what: "address", bytes: Int(truncatingIfNeeded: address), multiple: multiple)
    }
    var isPaged = false
    if case .paged = problem.cache { isPaged = true }
    for (name, address, isNeeded) in [
      ("lengths", tensors.lengths, true), ("page table", tensors.pageTable, isPaged),
      ("left padding", tensors.leftPadding, problem.hasLeftPadding), ("workspace", workspace, true),
    ] where (address != 0) != isNeeded {
      throw .notInThePlan(tensor: name, isMissing: isNeeded)
    }
    if isPaged && tensors.batchIndex != 0 { throw .notInThePlan(tensor: "batch index", isMissing: false) }
    if plan.launch.blocks == 0 { return }
    var places = DecodeLaunch.Places(
      queries: tensors.queries.place, keys: tensors.keys.place, values: tensors.values.place,
      output: tensors.output.place, lengths: tensors.lengths, workspace: workspace)
    places.logSumExp = tensors.logSumExp
    (places.batchIndex, places.leftPadding) = (tensors.batchIndex, tensors.leftPadding)
    places.pageTable = tensors.pageTable
    try reportingDeviceErrors { () throws(CUDAError) in
      let loaded = try gpu.load(plan)
      let arguments = plan.launch.arguments(places)
      try gpu.context.use { () throws(CUDAError) in
        try loaded.library.launch(
          LaunchShape(
            blocks: plan.launch.blocks, threads: plan.specialization.tiling.threads,
            sharedByteCount: plan.launch.sharedByteCount), arguments: arguments, in: stream)
        if plan.launch.combineBlocks > 0 {
          try gpu.load(CombinePlan(plan: plan)).library.launch(
            LaunchShape(
              blocks: plan.launch.combineBlocks, threads: CombineKernel.threads,
              attributes: plan.specialization.combination == .dependentLaunch ? [.programmaticStreamSerialization] : []),
            arguments: arguments, in: stream)
        }
      }
    }
  }
}
