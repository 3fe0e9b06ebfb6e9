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

  /// The launches of a call, in their order.
  private var launches: [any KernelPlan] {
    var list: [any KernelPlan] = []
    if let kernel = plan.preparationKernel(), plan.launch.preparationBlocks > 0 {
      list.append(PreparationPlan(kernel: kernel))
    }
    if plan.launch.blocks > 0 { list.append(plan) }
    if plan.launch.combineBlocks > 0 { list.append(CombinePlan(plan: plan)) }
    return list
  }

  /// Compiles and loads the kernels.
  func prepare() throws(CUDAError) {
    for kernel in launches { _ = try gpu.load(kernel) }
  }

  /// Puts a call into a stream; nothing is waited for.
  func launch(
    _ tensors: DeviceCacheTensors, workspace: UInt64, stream: StreamHandle
  ) throws(AttentionError) {
    try tensors.check(plan.problem, workspace: workspace)
    let places = DecodeLaunch.Places(tensors, workspace: workspace)
    try reportingDeviceErrors { () throws(CUDAError) in
      let arguments = plan.launch.arguments(places)
      try gpu.context.use { () throws(CUDAError) in
        if let kernel = plan.preparationKernel(), plan.launch.preparationBlocks > 0 {
          try gpu.load(PreparationPlan(kernel: kernel)).library.launch(
            LaunchShape(blocks: plan.launch.preparationBlocks, threads: PreparationKernel.threads),
            arguments: plan.launch.preparationArguments(plan.problem, places), in: stream)
        }
        if plan.launch.blocks == 0 { return }
        try gpu.load(plan).library.launch(
          LaunchShape(
            blocks: plan.launch.blocks, threads: plan.specialization.tiling.threads,
            sharedByteCount: plan.launch.sharedByteCount,
            attributes: plan.specialization.waitsForPreparation ? [.programmaticStreamSerialization] : []),
          arguments: arguments, in: stream)
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

extension DecodeLaunch.Places {
  fileprivate init(_ tensors: DeviceCacheTensors, workspace: UInt64) {
    self.init(
      queries: tensors.queries.place, keys: tensors.keys.place, values: tensors.values.place,
      output: tensors.output.place, lengths: tensors.lengths, workspace: workspace)
    logSumExp = tensors.logSumExp
    (batchIndex, leftPadding, pageTable) = (tensors.batchIndex, tensors.leftPadding, tensors.pageTable)
    (queryStarts, queryCounts, keyStarts) = (tensors.queryStarts, tensors.queryCounts, tensors.keyStarts)
    (queryScales, keyScales, valueScales) = (tensors.queryScales, tensors.keyScales, tensors.valueScales)
    newKeys = tensors.newKeys.map { new in
      var places = DecodeLaunch.NewKeyPlaces(keys: new.keys.place, values: new.values.place)
      (places.starts, places.positions) = (new.starts, new.positions)
      (places.cosines, places.sines) = (new.cosines, new.sines)
      return places
    }
  }
}
