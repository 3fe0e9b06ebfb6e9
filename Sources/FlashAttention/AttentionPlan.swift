package import AttentionKernels
internal import CPUAttention
internal import CUDADriver

/// How a problem will be computed, decided once: make it, print it, run it as often as the shape occurs.
///
///     let plan = try AttentionPlan(problem)
///     print(plan)
///     try plan.run(queries: q, keys: k, values: v, output: o)
///
/// Any number of tasks may run a plan at once. On a GPU, the first run compiles a kernel; `prepare` does so beforehand.
public struct AttentionPlan: Sendable {
  /// What is computed.
  public let problem: AttentionProblem
  /// Why this device was chosen, as a sentence.
  public let reason: String
  let path: Path

  enum Path: Sendable {
    case cpu(CPUPlan)
    case gpu(GPUPlan)
  }

  /// - Parameters:
  ///   - ordinal: which GPU, as CUDA counts them.
  ///   - threads: threads at most on the CPU, never more than processors; nil for one per processor.
  ///   - tiling: changes to the GPU's tiling, for experiments: `warps=8,stages=3`; see `emit --tiling` of the tool.
  /// - Throws: `AttentionError.deviceUnavailable` for a GPU that cannot be used; `.dimension` for a head dimension that
  ///   the path does not take; `.typeOnDevice` for f32 on a GPU; `.tiling` for changes that are none or that there is no
  ///   kernel with, and on the CPU.
  public init(
    _ problem: AttentionProblem, device: Device = .auto, ordinal: Int = 0, threads: Int? = nil, tiling: String? = nil
  ) throws(AttentionError) {
    self.problem = problem
    (path, reason) = try device.choose(for: problem.scalarType) { () throws(AttentionError) in
      .gpu(try GPUPlan(problem, on: try GPU.device(ordinal), changes: tiling))
    } cpu: { () throws(AttentionError) in
      try Device.refuse(tilingOnCPU: tiling)
      return .cpu(try CPUPlan(problem, threads: min(threads ?? .max, WorkerTeam.processors)))
    }
  }

  /// Does what the first run would otherwise do: on a GPU, compiles and loads the kernel.
  /// - Throws: `AttentionError.deviceFailed` where the driver refuses.
  public func prepare() throws(AttentionError) {
    if case .gpu(let plan) = path {
      try plan.gpu.reporting { () throws(CUDAError) in _ = try plan.prepare() }
    }
  }

  /// Computes the problem on borrowed memory of the host. The CPU copies nothing; for a GPU, the tensors are copied there
  /// and back.
  ///
  /// - Parameters:
  ///   - queries: `[B, H_q, N_q, D]`; strides of any kind, unit stride along D.
  ///   - keys: `[B, H_kv, N_k, D]`.
  ///   - values: `[B, H_kv, N_k, D_v]`.
  ///   - output: `[B, H_q, N_q, D_v]`; overwritten.
  ///   - logSumExp: `[B, H_q, N_q]` contiguous f32, natural logarithm, scale included; nil where it is not needed.
  /// - Throws: `AttentionError` where a view is not what the plan was made for, or the GPU fails.
  public func run(
    queries: TensorView, keys: TensorView, values: TensorView, output: MutableTensorView,
    logSumExp: UnsafeMutableBufferPointer<Float>? = nil
  ) throws(AttentionError) {
    try problem.check(
      queries: queries, keys: keys, values: values, output: output, logSumExpCount: logSumExp?.count)
    switch path {
    case .cpu(let plan):
      try plan.run(queries: queries, keys: keys, values: values, output: output, logSumExp: logSumExp)
    case .gpu(let plan):
      try plan.run(queries: queries, keys: keys, values: values, output: output, logSumExp: logSumExp)
    }
  }

  /// Puts the computation on a GPU's memory into a stream and returns at once.
  ///
  /// - Parameters:
  ///   - queries: `[B, H_q, N_q, D]`, as the other tensors in memory of the plan's GPU.
  ///   - keys: `[B, H_kv, N_k, D]`.
  ///   - values: `[B, H_kv, N_k, D_v]`.
  ///   - output: `[B, H_q, N_q, D_v]`; overwritten.
  ///   - logSumExp: address of `[B, H_q, N_q]` contiguous f32; 0 where it is not needed.
  ///   - stream: a `CUstream` or `cudaStream_t`; nil for this library's own.
  /// - Throws: `AttentionError` where a view is not what the plan was made for or not aligned, the plan is for the CPU, or
  ///   the driver refuses the launch. Faults of the kernel show when the stream is synchronized.
  public func launch(
    queries: DeviceTensorView, keys: DeviceTensorView, values: DeviceTensorView, output: DeviceTensorView,
    logSumExp: UInt64 = 0, stream: OpaquePointer? = nil
  ) throws(AttentionError) {
    guard case .gpu(let plan) = path else {
      throw .deviceFailed(device: "GPU", reason: "this plan is for the CPU; make one with device: .gpu.")
    }
    try plan.launch(
      queries: queries, keys: keys, values: values, output: output, logSumExp: logSumExp,
      stream: stream.map { StreamHandle($0) } ?? plan.gpu.stream.handle)
  }

  /// The GPU of the plan; nil where it is for the CPU.
  public var gpu: GPU? {
    if case .gpu(let plan) = path { plan.gpu } else { nil }
  }

  /// How the GPU's kernel cuts its work; nil on the CPU.
  package var tiling: ForwardTiling? {
    if case .gpu(let plan) = path { plan.plan.specialization.tiling } else { nil }
  }

  /// What the driver made of the kernel, after `prepare`.
  package var compiled: (registers: Int, spilledBytes: Int)? {
    if case .gpu(let plan) = path, let made = plan.resources { (made.registers, made.localBytes) } else { nil }
  }

  /// Bytes of scratch memory that each thread of the CPU needs; independent of the lengths. 0 on a GPU.
  public var scratchByteCount: Int {
    if case .cpu(let plan) = path { plan.scratchByteCount } else { 0 }
  }
}

extension AttentionPlan: CustomStringConvertible {
  /// Which path runs and why, in a few lines.
  public var description: String {
    switch path {
    case .cpu(let plan): "\(plan)\n\(reason)"
    case .gpu(let plan): "\(plan)\n\(reason)"
    }
  }
}

/// What there is to say of GPUs on this machine.
public enum GPUSupport {
  /// One line about the driver and its devices, or why there is none.
  public static var summary: String {
    do throws(CUDAError) {
      let driver = try CUDADriver.find()
      var names: [String] = []
      for ordinal in 0..<driver.deviceCount {
        let device = try driver.device(ordinal)
        names.append(
          "\(device.name) (sm_\(device.capability), \(device.multiprocessors) multiprocessors"
            + (device.capability < 80 ? "; too old: sm_80 is needed)" : ")"))
      }
      let version = "\(driver.version / 1000).\(driver.version % 1000 / 10)"
      return names.joined(separator: ", ") + "; driver for CUDA \(version)"
    } catch {
      return "none: \(error)"
    }
  }
}
