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
    if let kernel = plan.preparationKernel(), plan.launch.preparationBlocks > 0 { list.append(PreparationPlan(kernel: kernel)) }
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
    try check(tensors, workspace: workspace)
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

  private func check(_ tensors: DeviceCacheTensors, workspace: UInt64) throws(AttentionError) {
    let problem = plan.problem
    try tensors.queries.check("queries", isFor: problem.queryShape, problem.queryType)
    let appends = problem.newKeys != nil
    try tensors.keys.check("the cached keys", isFor: problem.keyShape, problem.cacheType, isWritten: appends)
    try tensors.values.check("the cached values", isFor: problem.valueShape, problem.cacheType, isWritten: appends)
    try tensors.output.check("output", isFor: problem.outputShape, problem.scalarType, isWritten: true)
    let new = tensors.newKeys
    if let new {
      try new.keys.check("the new keys", isFor: problem.newKeyShape, problem.scalarType)
      try new.values.check("the new values", isFor: problem.newValueShape, problem.scalarType)
    }
    for (name, address, multiple) in [
      ("the log-sum-exp", tensors.logSumExp, 4), ("the lengths", tensors.lengths, 4),
      ("the batch index", tensors.batchIndex, 4), ("the left padding", tensors.leftPadding, 4),
      ("the page table", tensors.pageTable, 4), ("the workspace", workspace, 16),
      ("the query starts", tensors.queryStarts, 4), ("the query counts", tensors.queryCounts, 4),
      ("the key starts", tensors.keyStarts, 4), ("the new key starts", new?.starts ?? 0, 4),
      ("the query scales", tensors.queryScales, 4), ("the key scales", tensors.keyScales, 4),
      ("the value scales", tensors.valueScales, 4), ("the cosines", new?.cosines ?? 0, 16),
      ("the sines", new?.sines ?? 0, 16), ("the positions", new?.positions ?? 0, 4),
    ] where address % UInt64(multiple) != 0 {
      throw .alignment(
        tensor: name, what: "address", bytes: Int(truncatingIfNeeded: address), multiple: multiple)
    }
    var isPaged = false
    if case .paged = problem.cache { isPaged = true }
    let needed = [
      ("list of lengths", tensors.lengths != 0, problem.hasPackedKeys ? nil : true), ("page table", tensors.pageTable != 0, isPaged),
      ("left padding", tensors.leftPadding != 0, problem.hasLeftPadding), ("workspace", workspace != 0, true),
      ("list of query starts", tensors.queryStarts != 0, problem.packedQueries != nil),
      ("list of query counts", tensors.queryCounts != 0, problem.packedQueries != nil ? nil : false),
      ("list of key starts", tensors.keyStarts != 0, problem.hasPackedKeys), ("new key", new != nil, appends),
      ("list of new key starts", new?.starts ?? 0 != 0, problem.newKeys?.packedTotal != nil),
      ("table of cosines", new?.cosines ?? 0 != 0, problem.newKeys?.rotary != nil),
      ("table of sines", new?.sines ?? 0 != 0, problem.newKeys?.rotary != nil),
      ("query scale", tensors.queryScales != 0, problem.queryType == .e4m3 ? nil : false),
      ("key scale", tensors.keyScales != 0, problem.cacheType == .e4m3 ? nil : false),
      ("value scale", tensors.valueScales != 0, problem.cacheType == .e4m3 ? nil : false),
      ("batch index", tensors.batchIndex != 0, isPaged || problem.hasPackedKeys ? false : nil),
    ]
    for case (let name, let isThere, let isNeeded?) in needed where isThere != isNeeded {
      throw .notInThePlan(tensor: name, isMissing: isNeeded)
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
