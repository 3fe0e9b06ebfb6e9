internal import AttentionKernels
internal import CUDADriver
internal import PTX
internal import Synchronization

/// A plan on a GPU: the kernel's specialization, its launch, and the loaded kernel once there is one.
final class GPUPlan: Sendable {
  let plan: ForwardPlan
  let gpu: GPU
  private let kernel = Mutex<LoadedKernel?>(nil)

  init(_ problem: AttentionProblem, on gpu: GPU, changes: String?) throws(AttentionError) {
    self.gpu = gpu
    plan = try ForwardPlan(problem, on: gpu.limits, changes: changes)
  }

  /// Compiles and loads the kernel, unless that was done before.
  func prepare() throws(CUDAError) -> LoadedKernel {
    if let loaded = kernel.withLock({ $0 }) { return loaded }
    let loaded = try gpu.load(plan)
    kernel.withLock { $0 = loaded }
    return loaded
  }

  /// Puts the computation into a stream; nothing is waited for.
  func launch(
    queries: DeviceTensorView, keys: DeviceTensorView, values: DeviceTensorView, output: DeviceTensorView,
    logSumExp: UInt64, stream: StreamHandle
  ) throws(AttentionError) {
    let problem = plan.problem
    try queries.check("queries", isFor: problem.queryShape, problem.scalarType)
    try keys.check("keys", isFor: problem.keyShape, problem.scalarType)
    try values.check("values", isFor: problem.valueShape, problem.scalarType)
    try output.check("output", isFor: problem.outputShape, problem.scalarType, isWritten: true)
    if logSumExp % 4 != 0 {
      throw .alignment(
        tensor: "the log-sum-exp", what: "address", bytes: Int(truncatingIfNeeded: logSumExp), multiple: 4)
    }
    // No rows, nothing to write.
    if plan.launch.blocks == 0 { return }
    try gpu.reporting { () throws(CUDAError) in
      let loaded = try prepare()
      let arguments = plan.launch.arguments(
        queries: queries.place, keys: keys.place, values: values.place, output: output.place, logSumExp: logSumExp)
      try gpu.context.use { () throws(CUDAError) in
        try loaded.library.launch(plan.shape, arguments: arguments, in: stream)
      }
    }
  }

  /// Computes on host memory: copies the inputs to the GPU and the results back.
  func run(
    queries: TensorView, keys: TensorView, values: TensorView, output: MutableTensorView,
    logSumExp: UnsafeMutableBufferPointer<Float>?
  ) throws(AttentionError) {
    let problem = plan.problem
    if problem.logSumExpCount == 0 { return }
    let (q, k, v) = (
      try HostCopy.upload(queries, to: gpu), try HostCopy.upload(keys, to: gpu), try HostCopy.upload(values, to: gpu)
    )
    let o = try GPUBuffer(byteCount: problem.outputShape.elementCount * problem.scalarType.byteCount, on: gpu)
    let statistics = try GPUBuffer(byteCount: problem.logSumExpCount * 4, on: gpu)
    let layout = HostCopy.layout(of: output.readOnly) ?? .bhnd
    // Freed in the stream's order, but not before the work is in it.
    defer { withExtendedLifetime((q, k, v, o, statistics)) {} }
    try launch(
      queries: q.view, keys: k.view, values: v.view,
      output: DeviceTensorView(
        address: o.address, scalarType: problem.scalarType, shape: problem.outputShape, layout: layout),
      logSumExp: statistics.address, stream: gpu.stream.handle)
    try HostCopy.download(o, layout, to: output)
    if let logSumExp { try statistics.copy(to: UnsafeMutableRawBufferPointer(logSumExp)) }
  }

  /// What the driver made of the kernel, where it is loaded.
  var resources: Library.Resources? { gpu.loaded(plan)?.resources }
}

extension GPUPlan: CustomStringConvertible {
  var description: String {
    guard let resources else { return "\(plan)" }
    let spilled =
      resources.localBytes == 0
      ? "nothing spilled" : "\(resources.localBytes) bytes spilled, which the plan did not expect"
    return "\(plan)\ncompiled to \(resources.registers) of \(plan.specialization.tiling.registerBudget) registers a "
      + "thread, \(spilled)"
  }
}

extension ForwardPlan {
  /// The launch's grid.
  var shape: LaunchShape {
    LaunchShape(blocks: launch.blocks, threads: specialization.tiling.threads, sharedByteCount: launch.sharedByteCount)
  }
}

extension DeviceTensorView {
  var place: ForwardLaunch.Place { ForwardLaunch.Place(address: address, strides: steps) }
}

extension Library {
  /// Puts a launch into a stream, with arguments as the kernel's parameters lie: each at a multiple of its size.
  func launch(_ shape: LaunchShape, arguments: [Kernel.Argument], in stream: StreamHandle) throws(CUDAError) {
    // No kernel of ours has more; PTX allows 4096 bytes and more.
    try withUnsafeTemporaryAllocation(byteCount: 8 * arguments.count, alignment: 8) { (buffer) throws(CUDAError) in
      var offset = 0
      func put<T: BitwiseCopyable>(_ value: T) {
        offset = (offset + MemoryLayout<T>.size - 1) & ~(MemoryLayout<T>.size - 1)
        buffer.storeBytes(of: value, toByteOffset: offset, as: T.self)
        offset += MemoryLayout<T>.size
      }
      for argument in arguments {
        switch argument {
        case .u32(let value): put(value)
        case .s32(let value): put(value)
        case .u64(let value), .pointer(let value): put(value)
        case .f32(let value): put(value)
        }
      }
      try launch(shape, arguments: UnsafeMutableRawBufferPointer(rebasing: buffer[..<offset]), in: stream)
    }
  }
}
