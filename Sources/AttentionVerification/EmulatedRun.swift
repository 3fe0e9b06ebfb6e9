package import Attention
package import AttentionKernels
package import PTX
package import PTXEmulator

extension LaunchSequence.Launch {
  /// The launch for the emulator.
  package func emulated(_ call: KernelCall) -> Launch {
    Launch(
      blocks: (blocks, 1, 1), dynamicSharedByteCount: sharedByteCount, arguments: arguments.arguments(call),
      isDependent: overtakes)
  }
}

extension KernelPlan {
  /// The plan that takes a call, as on a GPU: where the copy engine does not take its strides, one without tensor maps.
  package func taking(_ call: KernelCall, on gpu: GPULimits) throws(AttentionError) -> KernelPlan {
    let arguments = launches.attention.arguments
    if arguments.mappedTensors(call).allSatisfy({ arguments.map(of: $0) != nil }) { return self }
    return try KernelPlan(problem, on: gpu, options: KernelOptions(family: familyWithoutMaps))
  }
}

extension LaunchSequence {
  /// Runs a call on the emulator, one launch after the other; one that needs a workspace and brings none gets one.
  ///
  /// - Parameter program: what runs in place of a launch's kernel; nil for its own.
  /// - Returns: the counters of the attention's launch, with the traffic and the bank conflicts of all.
  package func emulate(
    _ call: KernelCall, memory: GlobalMemory, schedule: Schedule = .roundRobin,
    program: (any KernelSource) -> Program? = { _ in nil }
  ) throws(Hazard) -> Counters {
    var call = call
    if call.workspace == 0 && workspaceByteCount > 0 {
      call.workspace = memory.allocate("workspace", byteCount: workspaceByteCount, access: .readWrite)
      memory.write([UInt8](repeating: 0, count: counterByteCount), to: call.workspace)
    }
    var all: [Counters] = []
    var own = 0
    for (number, launch) in launches.enumerated() where launch.blocks > 0 && launch.isNeeded(by: call) {
      if number == main { own = all.count }
      all.append(
        try Emulator.run(
          // Kernels of a plan can be built.
          program(launch.kernel) ?? Program(try! launch.kernel.kernel()), launch.emulated(call), memory: memory,
          schedule: schedule, residentBlocks: number == main && workspaceByteCount > 0 ? launch.blocks : 2))
    }
    guard var sum = own < all.count ? all[own] : nil else { return Counters() }
    for (number, counters) in all.enumerated() where number != own {
      sum.bankConflicts += counters.bankConflicts
      for (name, traffic) in counters.traffic {
        sum.traffic[name, default: .init()].bytesRead += traffic.bytesRead
        sum.traffic[name, default: .init()].sectorsRead += traffic.sectorsRead
        sum.traffic[name, default: .init()].bytesWritten += traffic.bytesWritten
      }
    }
    return sum
  }
}

/// A problem of whole keys on the emulator, with contiguous tensors.
package struct EmulatedRun {
  package let counters: Counters
  package let output: [UInt8]
  package let logSumExp: [Float]

  /// - Throws: `Hazard`.
  package init(_ plan: KernelPlan, _ inputs: ProblemInputs) throws(Hazard) {
    let problem = plan.problem
    let memory = GlobalMemory()
    func view(_ tensor: Tensor, _ name: String) -> DeviceTensorView {
      DeviceTensorView(
        address: tensor.withBytes { memory.allocate(name, Array($0), access: .readOnly) },
        scalarType: tensor.scalarType, shape: tensor.shape, layout: tensor.layout)
    }
    let outputBytes = problem.outputShape.elementCount * problem.scalarType.byteCount
    let output = DeviceTensorView(
      address: memory.allocate("o", byteCount: outputBytes, access: .readWrite), scalarType: problem.scalarType,
      shape: problem.outputShape, layout: inputs.queries.layout)
    let statistics = memory.allocate("lse", byteCount: problem.logSumExpCount * 4, access: .readWrite)
    counters = try plan.launches.emulate(
      KernelCall(
        AttentionTensors(
          queries: view(inputs.queries, "q"), keys: view(inputs.keys, "k"), values: view(inputs.values, "v"),
          output: output, logSumExp: statistics)), memory: memory)
    self.output = memory.read(UInt8.self, count: outputBytes, from: output.address) ?? []
    logSumExp = memory.read(Float.self, count: problem.logSumExpCount, from: statistics) ?? []
  }
}
