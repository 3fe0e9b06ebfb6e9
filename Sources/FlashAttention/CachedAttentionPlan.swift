internal import AttentionKernels
internal import CPUAttention
internal import CUDADriver
internal import PTX

/// How attention over a cache will be computed, decided once for all lengths: make it, print it, run it for every token.
///
///     let problem = try CachedAttentionProblem(
///       batch: 4, queries: 1, queryHeads: 32, keyValueHeads: 8, dimension: 128,
///       cache: .contiguous(sequences: 4, capacity: 16384), scalarType: .bf16)
///     let plan = try CachedAttentionPlan(problem)
///     try plan.run(
///       queries: q, keys: cachedKeys, values: cachedValues, entries: CacheEntries(lengths: [7, 16384, 300, 0]), output: o)
///
/// On a GPU the lengths stay there: a call never waits for them, and a captured call runs with whatever lengths it finds.
public struct CachedAttentionPlan: Sendable {
  /// What is computed.
  public let problem: CachedAttentionProblem
  /// Why this device was chosen, as a sentence.
  public let reason: String
  private let path: Path
  private let packing: QueryPacking
  let threads: Int

  private enum Path: Sendable {
    case cpu
    case gpu(GPUDecodePlan)
    case gpuForward(GPUSequencesPlan)
  }

  /// - Parameters:
  ///   - ordinal: which GPU, as CUDA counts them.
  ///   - threads: threads at most on the CPU; nil for one per processor.
  ///   - packing: what a GPU does with the query heads of a group; the CPU packs as it likes.
  ///   - tiling: changes to the GPU's tiling, for experiments: `groups=8,stages=4`; see `bench decode --tiling` of the tool.
  /// - Throws: `AttentionError.deviceUnavailable` for a GPU that cannot be used; `.dimension` for a head dimension that
  ///   the path does not take; `.typeOnDevice` for f32 on a GPU.
  public init(
    _ problem: CachedAttentionProblem, device: Device = .auto, ordinal: Int = 0, threads: Int? = nil,
    packing: QueryPacking = .automatic, tiling: String? = nil
  ) throws(AttentionError) {
    (self.problem, self.packing) = (problem, packing)
    self.threads = min(threads ?? .max, WorkerTeam.processors)
    (path, reason) = try device.choose(for: problem.scalarType) { () throws(AttentionError) in
      let gpu = try GPU.device(ordinal)
      return try GPUSequencesPlan.suits(problem, packing, gpu.limits)
        ? .gpuForward(try GPUSequencesPlan(problem, on: gpu, changes: tiling))
        : .gpu(try GPUDecodePlan(problem, on: gpu, changes: tiling))
    } cpu: { () throws(AttentionError) in
      try Device.refuse(tilingOnCPU: tiling)
      // Refused now if it would be later.
      _ = try CPUPlan(try problem.sequence(queries: 1, length: 1), threads: 1)
      return .cpu
    }
  }

  /// Does what the first call would otherwise do: on a GPU, compiles and loads the kernels.
  /// - Throws: `AttentionError.deviceFailed` where the driver refuses.
  public func prepare() throws(AttentionError) {
    try gpu?.reporting { () throws(CUDAError) in
      switch path {
      case .cpu: break
      case .gpu(let plan): try plan.prepare()
      case .gpuForward(let plan): try plan.prepare()
      }
    }
  }

  /// Bytes of the GPU's memory that a call works in; 0 on the CPU, and where a call needs none.
  public var workspaceByteCount: Int {
    if case .gpu(let plan) = path { plan.plan.launch.workspaceByteCount } else { 0 }
  }

  /// Bytes of the counters of a call, which are zero between calls; 0 where there are none.
  public var counterByteCount: Int {
    if case .gpu(let plan) = path { plan.plan.launch.counterByteCount } else { 0 }
  }

  /// Whether the counters of its workspace are where those of other such plans are.
  var sharesWorkspaces: Bool {
    if case .gpu(let plan) = path { plan.plan.launch.sharesWorkspaces } else { true }
  }

  /// How many parts the keys of each sequence are divided into on a GPU, for lengths such as these; nil on the CPU.
  public func splits(lengths: [Int]) -> [Int]? {
    switch path {
    case .cpu: nil
    case .gpu(let plan): plan.plan.splits(lengths: lengths)
    case .gpuForward: lengths.map { _ in 1 }
    }
  }

  /// The GPU of the plan; nil where it is for the CPU.
  public var gpu: GPU? {
    switch path {
    case .cpu: nil
    case .gpu(let plan): plan.gpu
    case .gpuForward(let plan): plan.gpu
    }
  }

  /// What the driver made of the kernel, after `prepare`.
  package var compiled: (registers: Int, spilledBytes: Int)? {
    let made =
      switch path {
      case .cpu: nil as Library.Resources?
      case .gpu(let plan): plan.gpu.loaded(plan.plan)?.resources
      case .gpuForward(let plan): plan.gpu.loaded(plan.plan)?.resources
      }
    return made.map { ($0.registers, $0.localBytes) }
  }

  /// A workspace for calls of this plan in any stream, ready for the first when this returns. Calls that may run at the same time need one each; plans of up to
  /// 65536 units (batch x key/value heads x blocks of rows) whose calls follow one another may share the largest of theirs.
  public func makeWorkspace() throws(AttentionError) -> GPUBuffer {
    try usedGPU.zeroedBuffer(byteCount: max(workspaceByteCount, 16))
  }

  /// Puts a call on a GPU's memory into a stream and returns at once; nothing is allocated and nobody waits, so that the call
  /// can be captured.
  ///
  /// - Parameters:
  ///   - tensors: where everything is.
  ///   - workspace: of `makeWorkspace`, or `workspaceByteCount` bytes that were zero before the first call; not read where these
  ///     are 0.
  ///   - counters: `counterByteCount` bytes that were zero before the first call, apart from a workspace which then need not be
  ///     zero (`GPU.counters`); 0 where they are the workspace's first.
  ///   - stream: a `CUstream` or `cudaStream_t`; nil for this library's own.
  /// - Throws: `AttentionError` where a view is not what the plan was made for or not aligned, the plan is for the CPU, or
  ///   the driver refuses the launch.
  public func launch(
    _ tensors: DeviceCacheTensors, workspace: UInt64, counters: UInt64 = 0, stream: OpaquePointer? = nil
  ) throws(AttentionError) {
    let gpu = try usedGPU
    let stream = stream.map { StreamHandle($0) } ?? gpu.stream.handle
    switch path {
    case .cpu: break
    case .gpu(let plan): try plan.launch(tensors, workspace: workspace, counters: counters, stream: stream)
    case .gpuForward(let plan): try plan.launch(tensors, stream: stream)
    }
  }

  /// - Throws: where the plan is for the CPU.
  private var usedGPU: GPU {
    get throws(AttentionError) {
      guard let gpu else {
        throw .deviceFailed(device: "GPU", reason: "this plan is for the CPU; make one with device: .gpu.")
      }
      return gpu
    }
  }
}

extension CachedAttentionPlan: CustomStringConvertible {
  /// Which path runs and why, in a few lines.
  public var description: String {
    switch path {
    case .cpu: "CPU, \(threads) threads, one sequence after the other\n\(reason)"
    case .gpu(let plan): "\(plan.plan)\n\(reason)"
    case .gpuForward(let plan):
      "\(plan.plan)\nThe kernels of whole sequences, because "
        + "\(packing == .never ? "no packing was asked for" : "there are enough rows, or D is too large for the others"). \(reason)"
    }
  }
}
