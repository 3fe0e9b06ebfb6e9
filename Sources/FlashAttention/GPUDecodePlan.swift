internal import AttentionKernels
internal import CUDADriver
internal import PTX
internal import Synchronization

/// A decode plan on a GPU: its launches, and their kernels once they are loaded.
final class GPUDecodePlan: Sendable {
  let plan: DecodePlan
  let gpu: GPU
  private let preparation: PreparationKernel?
  private let kernels = Mutex<Kernels?>(nil)

  /// The kernels of a call's launches, in their order; nil where there is no such launch.
  private struct Kernels {
    let preparation, decode, combine: LoadedKernel?
  }

  init(_ problem: CachedAttentionProblem, on gpu: GPU, changes: String?) throws(AttentionError) {
    self.gpu = gpu
    plan = try DecodePlan(problem, on: gpu.limits, changes: changes)
    preparation = plan.launch.preparationBlocks > 0 ? plan.preparationKernel() : nil
  }

  /// Compiles and loads the kernels.
  func prepare() throws(CUDAError) { _ = try loaded() }

  private func loaded() throws(CUDAError) -> Kernels {
    if let kernels = kernels.withLock({ $0 }) { return kernels }
    let made = Kernels(
      preparation: preparation == nil ? nil : try gpu.load(PreparationPlan(kernel: preparation!)),
      decode: plan.launch.blocks == 0 ? nil : try gpu.load(plan),
      combine: plan.launch.combineBlocks == 0 ? nil : try gpu.load(CombinePlan(plan: plan)))
    kernels.withLock { $0 = made }
    return made
  }

  /// Puts a call into a stream; nothing is waited for.
  func launch(
    _ tensors: DeviceCacheTensors, workspace: UInt64, counters: UInt64, stream: StreamHandle
  ) throws(AttentionError) {
    try tensors.check(plan.problem, workspace: workspace)
    if counters % 4 != 0 {
      throw .alignment(tensor: "the counters", what: "address", bytes: Int(truncatingIfNeeded: counters), multiple: 4)
    }
    var places = DecodeLaunch.Places(tensors, workspace: workspace)
    places.counters = counters
    try gpu.reporting { () throws(CUDAError) in
      let kernels = try loaded()
      try gpu.context.use { () throws(CUDAError) in
        if let kernel = kernels.preparation {
          try kernel.library.launch(
            LaunchShape(blocks: plan.launch.preparationBlocks, threads: PreparationKernel.threads),
            arguments: plan.launch.preparationArguments(plan.problem, places), in: stream)
        }
        guard let decode = kernels.decode else { return }
        let arguments = plan.launch.arguments(places)
        try decode.library.launch(
          LaunchShape(
            blocks: plan.launch.blocks, threads: plan.specialization.tiling.threads,
            sharedByteCount: plan.launch.sharedByteCount,
            attributes: plan.specialization.waitsForPreparation ? [.programmaticStreamSerialization] : []),
          arguments: arguments, in: stream)
        try kernels.combine?.library.launch(
          LaunchShape(
            blocks: plan.launch.combineBlocks, threads: CombineKernel.threads,
            attributes: plan.specialization.combination == .dependentLaunch ? [.programmaticStreamSerialization] : []),
          arguments: arguments, in: stream)
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
