public import Attention
package import AttentionKernels
internal import CPUAttention
internal import CUDADriver
public import GPURuntime

/// How the gradients of a problem will be computed, decided once: make it, print it, run it as often as the shape occurs.
///
///     let plan = try AttentionPlan(problem)
///     try plan.run(queries: q, keys: k, values: v, output: o, logSumExp: statistics)
///     try plan.backward().run(GradientTensors(
///       queries: q, keys: k, values: v, output: o.readOnly, logSumExp: statistics, outputGradient: dO,
///       queryGradient: dQ, keyGradient: dK, valueGradient: dV))
///
/// Gradients have the same bits in every run on the same device, unless the problem's `gradientOrder` is `.any`. Caches of keys and values have none, and neither have second
/// derivatives. Any number of tasks may run a plan at once.
public struct GradientPlan: Sendable {
  /// What the gradients are of.
  public let problem: AttentionProblem
  /// Why this device was chosen, as a sentence.
  public fileprivate(set) var reason: String
  private let path: Path
  /// Threads at most on the CPU.
  private let threads: Int

  private enum Path: Sendable {
    case cpu(CPUGradientPlan)
    /// One sequence after the other.
    case cpuSequences
    case gpu(GPUPlan)
  }

  /// - Parameters:
  ///   - problem: the forward pass whose gradients these are.
  ///   - device: where; `.auto` picks.
  ///   - threads: threads at most on the CPU, never more than processors; nil for one per processor.
  ///   - kernels: what an experiment wants of the GPU's kernels; a plan is free without.
  /// - Throws: `AttentionError.unsupported` for problems that have no gradients, such as those over caches; otherwise as
  ///   `AttentionPlan`. The GPU takes head dimensions up to 256 here, and multiples of 64 up to 512.
  public init(
    _ problem: AttentionProblem, device: Device = .auto, threads: Int? = nil, kernels: KernelOptions = KernelOptions()
  ) throws(AttentionError) {
    try problem.checkHasGradients()
    try problem.checkSinksAndRanges()
    self.problem = problem
    let threads = min(threads ?? .max, WorkerTeam.processors)
    self.threads = threads
    (path, reason) = try device.choose(for: problem.scalarType) { (ordinal) throws(AttentionError) in
      .gpu(try GPUPlan(problem, on: try GPU.device(ordinal), kernels, families: KernelFamilies.backward))
    } cpu: { () throws(AttentionError) in
      if let tiling = kernels.tiling {
        throw .tiling("\(tiling)", reason: "is for the kernels of GPUs; leave it out on the CPU")
      }
      if let family = kernels.family {
        throw .unsupported("The \(family) kernels are for GPUs; leave the choice to the plan on the CPU.")
      }
      if problem.hasWholeKeys { return .cpu(try CPUGradientPlan(problem, threads: threads)) }
      // Refused now if it would be later.
      _ = try CPUGradientPlan(try problem.sequence(queries: 1, length: 1), threads: 1)
      return .cpuSequences
    }
  }

  /// Does what the first run would otherwise do: on a GPU, compiles and loads the kernels.
  /// - Throws: `AttentionError.deviceFailed` where the driver refuses.
  public func prepare() throws(AttentionError) {
    if case .gpu(let plan) = path { try plan.gpu.reporting { () throws(CUDAError) in _ = try plan.prepare() } }
  }

  /// Computes the gradients on borrowed memory of the host. For a GPU, everything is copied there and the results back: for
  /// tests and small things.
  ///
  /// - Throws: `AttentionError` where a tensor is not what the plan was made for, a number leads out of the packed rows, or
  ///   the GPU fails.
  public func run(_ tensors: GradientTensors<HostMemory>) throws(AttentionError) {
    try tensors.check(problem)
    switch path {
    case .cpu(let plan): try plan.run(tensors)
    case .cpuSequences: try HostGradients(problem, tensors, threads: threads).run()
    case .gpu(let plan): try plan.run(tensors)
    }
  }

  /// Puts a call on a GPU's memory into a stream and returns at once; once the plan is prepared, nothing is allocated and nobody
  /// waits where the caller brings a workspace, so that the call can be captured.
  ///
  /// - Parameters:
  ///   - tensors: where everything is.
  ///   - workspace: `workspaceByteCount` bytes at a multiple of 16, which may hold anything; nil where the library shall take
  ///     some of its own, of the calling thread and the stream, which stay.
  ///   - stream: a `CUstream` or `cudaStream_t`; nil for this library's own.
  /// - Throws: `AttentionError` where a view is not what the plan was made for or not aligned, the plan is for the CPU, or the
  ///   driver refuses the launch.
  public func launch(
    _ tensors: GradientTensors<GPUMemory>, workspace: UInt64? = nil, stream: OpaquePointer? = nil
  ) throws(AttentionError) {
    guard case .gpu(let plan) = path else {
      throw .unsupported("The plan is for the CPU; make one with device: .gpu to launch it.")
    }
    try plan.launch(tensors, workspace: workspace, stream: plan.gpu.handle(stream))
  }

  /// The GPU of the plan; nil where it is for the CPU.
  public var gpu: GPU? {
    if case .gpu(let plan) = path { plan.gpu } else { nil }
  }

  /// Bytes of the GPU's memory that a call works in: 8 for each query of each head, whose number is rounded up to 128 for each
  /// key/value head of a sequence; in any order, also 4 for each of its numbers in dQ. 0 on the CPU.
  public var workspaceByteCount: Int { kernelPlan?.launches.workspaceByteCount ?? 0 }

  /// What was chosen on a GPU; nil on the CPU.
  package var kernelPlan: KernelPlan? {
    if case .gpu(let plan) = path { plan.plan } else { nil }
  }
}

extension GradientPlan: CustomStringConvertible {
  /// Which path runs and why, in a few lines.
  public var description: String {
    switch path {
    case .cpu(let plan): "\(plan)\(CPUPlan.debugWarning)\n\(reason)"
    case .cpuSequences:
      "\(CPUPlan.ofSequences("one sequence after the other", threads: threads))\n\(reason)"
    case .gpu(let plan): "\(plan)\n\(reason)"
    }
  }
}

extension AttentionPlan {
  /// The plan for the gradients of this one's results, on the same device.
  ///
  /// - Parameter kernels: what an experiment wants of the GPU's kernels.
  /// - Throws: `AttentionError.unsupported` for problems that have no gradients.
  public func backward(kernels: KernelOptions = KernelOptions()) throws(AttentionError) -> GradientPlan {
    var plan = try GradientPlan(
      problem, device: gpu.map { .gpu($0.device.ordinal) } ?? .cpu, threads: threads, kernels: kernels)
    plan.reason = reason
    return plan
  }
}

/// The gradients of an attention's inputs, each of its input's shape and type, in the layout of the queries.
public struct AttentionGradients: Sendable {
  /// dQ, `[B, H_q, N_q, D]`.
  public let queries: Tensor
  /// dK, `[B, H_kv, N_k, D]`, summed over the query heads that read a head.
  public let keys: Tensor
  /// dV, `[B, H_kv, N_k, D_v]`, summed in the same way.
  public let values: Tensor
  /// Of the sinks, `[H_q]`; nil where there are none.
  public let sinks: [Float]?
}

extension GradientPlan {
  /// Computes the gradients of tensors; they are new.
  ///
  /// - Parameters:
  ///   - result: what the forward pass gave for the same inputs.
  ///   - queries: `[B, H_q, N_q, D]`.
  ///   - keys: `[B, H_kv, N_k, D]`.
  ///   - values: `[B, H_kv, N_k, D_v]`.
  ///   - outputGradient: dO, of the output's shape and type.
  ///   - logSumExpGradient: `[B, H_q, N_q]`; nil for zeros.
  ///   - sinks: `[H_q]`, those of the forward pass, where the problem has some.
  ///   - ranges: those of the forward pass, where the problem has some.
  /// - Throws: `AttentionError` where a tensor is not what the plan was made for.
  public func gradients(
    of result: AttentionResult, queries: Tensor, keys: Tensor, values: Tensor, outputGradient: Tensor,
    logSumExpGradient: [Float]? = nil, sinks: [Float]? = nil, ranges: KeyRanges? = nil
  ) throws(AttentionError) -> AttentionGradients {
    try problem.check(ranges)
    var (logSumExp, ofLogSumExp) = (result.logSumExp, logSumExpGradient ?? [])
    var ofSinks = [Float](repeating: 0, count: sinks == nil ? 0 : problem.queryHeads)
    let read = [queries, keys, values, result.output, outputGradient]
    var made: [Tensor] = []
    try logSumExp.withUnsafeMutableBufferPointer { (logSumExp) throws(AttentionError) in
      try ofLogSumExp.withUnsafeMutableBufferPointer { (ofLogSumExp) throws(AttentionError) in
        try withViews(of: read) { (views) throws(AttentionError) in
          made = try tensors(
            [problem.queryShape, problem.keyShape, problem.valueShape], queries.layout
          ) { (written) throws(AttentionError) in
            try ofSinks.withUnsafeMutableBufferPointer { (ofSinks) throws(AttentionError) in
              try run(
                GradientTensors<HostMemory>(
                  queries: views[0], keys: views[1], values: views[2], output: views[3], logSumExp: logSumExp,
                  outputGradient: views[4], logSumExpGradient: logSumExpGradient == nil ? nil : ofLogSumExp,
                  queryGradient: written[0], keyGradient: written[1], valueGradient: written[2],
                  sinkGradient: sinks == nil ? nil : ofSinks,
                  entries: CacheEntries(sinks: sinks, ranges: ranges?.numbers)))
            }
          }
        }
      }
    }
    return AttentionGradients(
      queries: made[0], keys: made[1], values: made[2], sinks: sinks == nil ? nil : ofSinks)
  }

  private func withViews(
    of tensors: [Tensor], _ before: [TensorView] = [], _ body: ([TensorView]) throws(AttentionError) -> Void
  ) throws(AttentionError) {
    guard let next = tensors.first else { return try body(before) }
    try next.withView { (view) throws(AttentionError) in
      try withViews(of: Array(tensors.dropFirst()), before + [view], body)
    }
  }

  /// New tensors, which `body` fills.
  private func tensors(
    _ shapes: [TensorShape], _ layout: TensorLayout, _ before: [MutableTensorView] = [],
    _ body: ([MutableTensorView]) throws(AttentionError) -> Void
  ) throws(AttentionError) -> [Tensor] {
    guard let shape = shapes.first else {
      try body(before)
      return []
    }
    var others: [Tensor] = []
    let own = try Tensor(shape: shape, scalarType: problem.scalarType, layout: layout) {
      (view) throws(AttentionError) in
      others = try tensors(Array(shapes.dropFirst()), layout, before + [view], body)
    }
    return [own] + others
  }
}

/// The gradients of `attentionWithLogSumExp`, from its result.
///
///     let result = try attentionWithLogSumExp(queries: q, keys: k, values: v, mask: .causal)
///     let gradients = try attentionGradients(of: result, queries: q, keys: k, values: v, outputGradient: dO, mask: .causal)
///
/// - Parameters:
///   - result: what the forward pass gave for the same inputs, mask, scale, softcap, sinks and ranges.
///   - queries: `[B, H_q, N_q, D]`.
///   - keys: `[B, H_kv, N_k, D]`.
///   - values: `[B, H_kv, N_k, D_v]`.
///   - outputGradient: dO, of the output's shape and type.
///   - logSumExpGradient: `[B, H_q, N_q]`; nil for zeros.
///   - mask: which keys a query sees, aligned to the last key.
///   - scale: nil for `1/sqrt(D)`.
///   - softcap: nil for none.
///   - sinks: `[H_q]`; nil for none.
///   - ranges: nil for none.
///   - device: where; `.auto` picks.
/// - Throws: `AttentionError` where shapes or types do not fit, or the device cannot be used.
public func attentionGradients(
  of result: AttentionResult, queries: Tensor, keys: Tensor, values: Tensor, outputGradient: Tensor,
  logSumExpGradient: [Float]? = nil, mask: AttentionMask = .none, scale: Double? = nil, softcap: Double? = nil,
  sinks: [Float]? = nil, ranges: KeyRanges? = nil, device: Device = .auto
) throws(AttentionError) -> AttentionGradients {
  var problem = try AttentionProblem(
    queries: queries, keys: keys, values: values, mask: mask, scale: scale, softcap: softcap)
  (problem.sinkType, problem.ranges) = (sinks == nil ? nil : .f32, ranges?.form)
  return try GradientPlan(problem, device: device).gradients(
    of: result, queries: queries, keys: keys, values: values, outputGradient: outputGradient,
    logSumExpGradient: logSumExpGradient, sinks: sinks, ranges: ranges)
}
