internal import AttentionKernels
internal import FlashAttention
internal import PTX
internal import PTXEmulator

/// A plan's kernel on the emulator, with contiguous tensors.
struct EmulatedRun {
  let counters: Counters
  let output: [UInt8]
  let logSumExp: [Float]

  /// - Throws: `Hazard`, or `KernelError`.
  init(_ plan: ForwardPlan, _ inputs: BenchInputs) throws {
    let problem = plan.problem
    let memory = GlobalMemory()
    func place(_ tensor: Tensor, _ name: String) -> ForwardLaunch.Place {
      ForwardLaunch.Place(
        address: tensor.withBytes { memory.allocate(name, Array($0), access: .readOnly) },
        strides: tensor.layout.strides(of: tensor.shape))
    }
    let outputBytes = problem.outputShape.elementCount * problem.scalarType.byteCount
    let outputPlace = ForwardLaunch.Place(
      address: memory.allocate("o", byteCount: outputBytes, access: .readWrite),
      strides: inputs.queries.layout.strides(of: problem.outputShape))
    let statistics = memory.allocate("lse", byteCount: problem.logSumExpCount * 4, access: .readWrite)
    counters = try Emulator.run(
      Program(try plan.kernel()),
      Launch(
        blocks: (plan.launch.blocks, 1, 1), dynamicSharedByteCount: plan.launch.sharedByteCount,
        arguments: plan.launch.arguments(
          queries: place(inputs.queries, "q"), keys: place(inputs.keys, "k"), values: place(inputs.values, "v"),
          output: outputPlace, logSumExp: statistics)),
      memory: memory)
    output = memory.read(UInt8.self, count: outputBytes, from: outputPlace.address) ?? []
    logSumExp = memory.read(Float.self, count: problem.logSumExpCount, from: statistics) ?? []
  }
}
