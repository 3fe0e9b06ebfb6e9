public import Attention
package import AttentionKernels
internal import CPUAttention
internal import CUDADriver
public import GPURuntime

/// How a problem will be computed, decided once, for all lengths: make it, print it, run it as often as the shape
/// occurs.
///
///     let plan = try AttentionPlan(problem)
///     print(plan)
///     try plan.run(queries: q, keys: k, values: v, output: o)
///
/// Over a cache, a call also says how many keys each sequence has:
///
///     try plan.run(
///       queries: q, keys: cachedKeys, values: cachedValues, output: o, entries: CacheEntries(lengths: [7, 16384, 300, 0]))
///
/// Any number of tasks may run a plan at once. On a GPU, the first run compiles kernels; `prepare` does so beforehand.
/// Lengths that are in a GPU's memory stay there: a call never waits for them, and a captured call runs with whatever
/// lengths it finds.
public struct AttentionPlan: Sendable {
  /// What is computed.
  public let problem: AttentionProblem
  /// Why this device was chosen, as a sentence.
  public let reason: String
  private let path: Path
  /// Threads at most on the CPU.
  let threads: Int

  private enum Path: Sendable {
    case cpu(CPUPlan)
    /// One sequence after the other.
    case cpuSequences
    case gpu(GPUPlan)
  }

  /// - Parameters:
  ///   - problem: what is computed.
  ///   - device: where; `.auto` picks.
  ///   - threads: threads at most on the CPU, never more than processors; nil for one per processor.
  ///   - kernels: what an experiment wants of the GPU's kernels; a plan is free without.
  /// - Throws: `AttentionError.deviceUnavailable` for a GPU that cannot be used; `.dimension` for a head dimension that
  ///   the path does not take; `.typeOnDevice` for f32 on a GPU; `.tiling` for changes that are none or that there is
  ///   no kernel with; `.unsupported` for kernels that are not made for the problem, and for options on the CPU.
  public init(
    _ problem: AttentionProblem, device: Device = .auto, threads: Int? = nil, kernels: KernelOptions = KernelOptions()
  ) throws(AttentionError) {
    try problem.checkSinksAndRanges()
    self.problem = problem
    let threads = min(threads ?? .max, WorkerTeam.processors)
    self.threads = threads
    (path, reason) = try device.choose(for: problem.scalarType) { (ordinal) throws(AttentionError) in
      .gpu(try GPUPlan(problem, on: try GPU.device(ordinal), kernels))
    } cpu: { () throws(AttentionError) in
      if let tiling = kernels.tiling {
        throw .tiling("\(tiling)", reason: "is for the kernels of GPUs; leave it out on the CPU")
      }
      if let family = kernels.family {
        throw .unsupported("The \(family) kernels are for GPUs; leave the choice to the plan on the CPU.")
      }
      if problem.hasWholeKeys { return .cpu(try CPUPlan(problem, threads: threads)) }
      // Refused now if it would be later.
      _ = try CPUPlan(try problem.sequence(queries: 1, length: 1), threads: 1)
      return .cpuSequences
    }
  }

  /// Does what the first run would otherwise do: on a GPU, compiles and loads the kernels.
  /// - Throws: `AttentionError.deviceFailed` where the driver refuses.
  public func prepare() throws(AttentionError) {
    if case .gpu(let plan) = path {
      try plan.gpu.reporting { () throws(CUDAError) in _ = try plan.prepare() }
      if plan.plan.launches.hasOwnCounters { try plan.gpu.prepareDrawCounters() }
    }
  }

  // MARK: - In the host's memory

  /// Computes a call on borrowed memory of the host. The CPU copies nothing but queries that rotary embeddings
  /// turn; for a GPU, everything is copied there and the results back: for tests and small things.
  ///
  /// - Throws: `AttentionError` where a tensor is not what the plan was made for, a number leads out of the cache, or
  ///   the GPU fails.
  public func run(_ tensors: AttentionTensors<HostMemory>) throws(AttentionError) {
    try tensors.check(problem)
    if problem.batch == 0 || (problem.logSumExpCount == 0 && problem.newKeys == nil) { return }
    switch path {
    case .cpu(let plan):
      try plan.run(
        queries: tensors.queries, keys: tensors.keys, values: tensors.values, output: tensors.output,
        logSumExp: tensors.logSumExp, sinks: tensors.entries.sinks, ranges: tensors.entries.ranges)
    case .cpuSequences: try HostSequences(problem, tensors, threads: threads).run()
    case .gpu(let plan): try plan.run(tensors)
    }
  }

  /// The same for a call that brings no keys.
  ///
  /// - Parameters:
  ///   - queries: `[B, H_q, N_q, D]`, packed `[1, H_q, total, D]`; strides of any kind, unit stride along D.
  ///   - keys: `problem.keyShape`: `[B, H_kv, N_k, D]`, or as a cache is.
  ///   - values: the same with D_v.
  ///   - output: `problem.outputShape`, such as `[B, H_q, N_q, D_v]`; overwritten.
  ///   - logSumExp: `[B, H_q, N_q]`, packed `[H_q, total]`, contiguous f32, natural logarithm, scale included; nil
  ///     where it is not needed.
  ///   - entries: where the keys of each sequence are, and the sinks, where there are some; nothing of other whole keys.
  public func run(
    queries: TensorView, keys: TensorView, values: TensorView, output: MutableTensorView,
    logSumExp: UnsafeMutableBufferPointer<Float>? = nil, entries: CacheEntries<HostMemory> = CacheEntries()
  ) throws(AttentionError) {
    try run(
      AttentionTensors(
        queries: queries, keys: keys, values: values, output: output, logSumExp: logSumExp, entries: entries))
  }

  // MARK: - In a GPU's memory

  /// Puts a call on a GPU's memory into a stream and returns at once; once the plan is prepared, nothing is allocated and
  /// nobody waits, so that the call can be captured. (But for 64 KB of counters for each 512 streams, threads in them and
  /// captures, of calls that share out their work by one; and for the workspaces of whole keys that are divided over blocks,
  /// where the caller brings none: a few megabytes for each such stream, thread and capture, and again for calls that need twice
  /// as much; they stay.) A captured graph must not run beside itself, by a second
  /// executable of it: both would write the same output, and draw from the same counter.
  ///
  /// - Parameters:
  ///   - tensors: where everything is.
  ///   - workspace: of `makeWorkspace`, or `workspaceByteCount` bytes that were zero before the first call; nil where
  ///     these are 0, and, of whole keys, where the library shall take one of its own.
  ///   - counters: `counterByteCount` bytes that were zero before the first call, apart from a workspace which then
  ///     need not be zero (`GPU.counters`); nil where they are the workspace's first, or, without a workspace, where the
  ///     library shall take its own: those of the calling thread and the stream, or of the graph that is being captured.
  ///   - stream: a `CUstream` or `cudaStream_t`; nil for this library's own.
  /// - Throws: `AttentionError` where a view is not what the plan was made for or not aligned, the plan is for the CPU,
  ///   or the driver refuses the launch. Faults of kernels show when the stream is synchronized.
  public func launch(
    _ tensors: AttentionTensors<GPUMemory>, workspace: UInt64? = nil, counters: UInt64? = nil,
    stream: OpaquePointer? = nil
  ) throws(AttentionError) {
    let plan = try onGPU
    try plan.launch(tensors, workspace: workspace, counters: counters, stream: plan.gpu.handle(stream))
  }

  /// A workspace for calls of this plan in any stream, ready for the first when this returns. Calls that may run at the
  /// same time need one each; plans of which `sharesWorkspaces` is true, and whose calls follow one another, may share the
  /// largest of theirs.
  public func makeWorkspace() throws(AttentionError) -> GPUBuffer {
    try onGPU.gpu.zeroedBuffer(byteCount: max(workspaceByteCount, 16))
  }

  /// - Throws: where the plan is for the CPU.
  private var onGPU: GPUPlan {
    get throws(AttentionError) {
      guard case .gpu(let plan) = path else {
        throw .unsupported("The plan is for the CPU; make one with device: .gpu to launch it.")
      }
      return plan
    }
  }

  /// The GPU of the plan; nil where it is for the CPU.
  public var gpu: GPU? {
    if case .gpu(let plan) = path { plan.gpu } else { nil }
  }

  /// Bytes of the GPU's memory that a call works in; 0 on the CPU, and where a call needs none.
  public var workspaceByteCount: Int { kernelPlan?.launches.workspaceByteCount ?? 0 }

  /// Bytes of the counters of a call, which are zero between calls; 0 where there are none. They are not a part of a
  /// workspace of 0 bytes: the library has them where a call gives none.
  public var counterByteCount: Int { kernelPlan?.launches.counterByteCount ?? 0 }

  /// Whether the counters of its workspace are where those of all other plans are of which this is true.
  public var sharesWorkspaces: Bool { kernelPlan?.launches.sharesWorkspaces ?? true }

  /// How many parts the keys of each sequence are divided into on a GPU, for lengths such as these; nil on the CPU.
  public func splits(lengths: [Int]) -> [Int]? { kernelPlan?.splits(lengths: lengths) }

  /// What was chosen on a GPU; nil on the CPU.
  package var kernelPlan: KernelPlan? {
    if case .gpu(let plan) = path { plan.plan } else { nil }
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
    case .cpuSequences:
      "\(CPUPlan.ofSequences("all sequences at once", threads: threads))\n\(reason)"
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
