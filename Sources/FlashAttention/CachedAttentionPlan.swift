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
  let threads: Int

  private enum Path: Sendable {
    case cpu
    case gpu(GPUDecodePlan)
  }

  /// - Parameters:
  ///   - threads: threads at most on the CPU; nil for one per processor.
  ///   - tiling: changes to the GPU's tiling, for experiments: `groups=8,stages=4`; see `bench decode --tiling` of the tool.
  /// - Throws: `AttentionError.deviceUnavailable` for a GPU that cannot be used; `.dimension` for a head dimension that
  ///   the path does not take; `.typeOnDevice` for f32 on a GPU.
  public init(
    _ problem: CachedAttentionProblem, device: Device = .auto, threads: Int? = nil, tiling: String? = nil
  ) throws(AttentionError) {
    self.problem = problem
    self.threads = min(threads ?? .max, WorkerTeam.processors)
    (path, reason) = try device.choose(for: problem.scalarType) { () throws(AttentionError) in
      .gpu(try GPUDecodePlan(problem, on: try GPU.device(), changes: tiling))
    } cpu: { () throws(AttentionError) in
      try Device.refuse(tilingOnCPU: tiling)
      // Refused now if it would be later.
      _ = try CPUPlan(try problem.sequence(queries: 1, length: 1), threads: 1)
      return .cpu
    }
  }

  /// Does what the first call would otherwise do: on a GPU, compiles and loads the kernel.
  /// - Throws: `AttentionError.deviceFailed` where the driver refuses.
  public func prepare() throws(AttentionError) {
    if case .gpu(let plan) = path {
      try reportingDeviceErrors { () throws(CUDAError) in try plan.prepare() }
    }
  }

  /// Bytes of the GPU's memory that a call works in; 0 on the CPU.
  public var workspaceByteCount: Int {
    if case .gpu(let plan) = path { plan.plan.launch.workspaceByteCount } else { 0 }
  }

  /// How many blocks of a GPU divide the keys of each sequence, for lengths such as these; nil on the CPU.
  public func splits(lengths: [Int]) -> [Int]? {
    if case .gpu(let plan) = path { plan.plan.splits(lengths: lengths) } else { nil }
  }

  /// The GPU of the plan; nil where it is for the CPU.
  public var gpu: GPU? {
    if case .gpu(let plan) = path { plan.gpu } else { nil }
  }

  /// What the driver made of the kernel, after `prepare`.
  package var compiled: (registers: Int, spilledBytes: Int)? {
    if case .gpu(let plan) = path, let made = plan.gpu.loaded(plan.plan)?.resources {
      (made.registers, made.localBytes)
    } else {
      nil
    }
  }

  /// A workspace for calls of this plan, ready for the first. Calls that may run at the same time need one each.
  public func makeWorkspace() throws(AttentionError) -> GPUBuffer {
    guard case .gpu(let plan) = path else {
      throw .deviceFailed(device: "GPU", reason: "this plan is for the CPU; make one with device: .gpu.")
    }
    let buffer = try GPUBuffer(byteCount: max(plan.plan.launch.workspaceByteCount, 16), on: plan.gpu)
    try buffer.fill(0)
    return buffer
  }

  /// Puts a call on a GPU's memory into a stream and returns at once; nothing is allocated and nobody waits, so that the call
  /// can be captured.
  ///
  /// - Parameters:
  ///   - tensors: where everything is.
  ///   - workspace: of `makeWorkspace`, or `workspaceByteCount` bytes that were zero before the first call.
  ///   - stream: a `CUstream` or `cudaStream_t`; nil for this library's own.
  /// - Throws: `AttentionError` where a view is not what the plan was made for or not aligned, the plan is for the CPU, or
  ///   the driver refuses the launch.
  public func launch(
    _ tensors: DeviceCacheTensors, workspace: UInt64, stream: OpaquePointer? = nil
  ) throws(AttentionError) {
    guard case .gpu(let plan) = path else {
      throw .deviceFailed(device: "GPU", reason: "this plan is for the CPU; make one with device: .gpu.")
    }
    try plan.launch(
      tensors, workspace: workspace, stream: stream.map { StreamHandle($0) } ?? plan.gpu.stream.handle)
  }
}

extension CachedAttentionPlan: CustomStringConvertible {
  /// Which path runs and why, in a few lines.
  public var description: String {
    switch path {
    case .cpu: "CPU, \(threads) threads, one sequence after the other\n\(reason)"
    case .gpu(let plan): "\(plan.plan)\n\(reason)"
    }
  }
}

/// Where the tensors of a call over a cache are, in the memory of a GPU. Of an address that is 0, the tensor is not there.
public struct DeviceCacheTensors: Hashable, Sendable {
  /// `[B, H_q, s_q, D]`; packed `[1, H_q, total, D]`.
  public var queries: DeviceTensorView
  /// `[sequences, H_kv, capacity, D]`, `[pages, H_kv, page size, D]` or packed `[1, H_kv, total, D]`.
  public var keys: DeviceTensorView
  /// The same with D_v.
  public var values: DeviceTensorView
  /// `[B, H_q, s_q, D_v]`; packed `[1, H_q, total, D_v]`; overwritten.
  public var output: DeviceTensorView
  /// `[B, H_q, s_q]`, packed `[H_q, total]`, contiguous f32.
  public var logSumExp: UInt64
  /// `[B]` int32: the rows of each sequence's cache that hold keys, those that the call brings not counted; from 0 to the
  /// capacity, and read as the capacity where they are more. May be missing where keys are packed.
  public var lengths: UInt64
  /// `[B]` int32: which sequence of the cache; without, the sequence's own number. Not with pages. Nobody checks them, nor the pages.
  public var batchIndex: UInt64
  /// `[B]` int32: the row of each sequence's first key.
  public var leftPadding: UInt64
  /// `[B, pagesPerSequence]` int32.
  public var pageTable: UInt64
  /// `[B + 1]` int32: the first query of each sequence and the end of the last, where queries are packed.
  public var queryStarts: UInt64 = 0
  /// `[B]` int32: the queries of each sequence that count, where they are packed; without, all.
  public var queryCounts: UInt64 = 0
  /// `[B + 1]` int32: the first key of each sequence and the end of the last, where keys are packed.
  public var keyStarts: UInt64 = 0
  /// `[B, H_kv]` f32, above 0: what e4m3 queries are multiplied by; without, 1.
  public var queryScales: UInt64 = 0
  /// `[B, H_kv]` f32, above 0: what e4m3 keys are multiplied by.
  public var keyScales: UInt64 = 0
  /// `[B, H_kv]` f32, above 0: what e4m3 values are multiplied by.
  public var valueScales: UInt64 = 0
  /// What is appended to the cache first.
  public var newKeys: DeviceNewKeys?

  /// The tensors of a call.
  public init(
    queries: DeviceTensorView, keys: DeviceTensorView, values: DeviceTensorView, output: DeviceTensorView,
    lengths: UInt64, logSumExp: UInt64 = 0, batchIndex: UInt64 = 0, leftPadding: UInt64 = 0, pageTable: UInt64 = 0
  ) {
    (self.queries, self.keys, self.values, self.output) = (queries, keys, values, output)
    (self.lengths, self.logSumExp) = (lengths, logSumExp)
    (self.batchIndex, self.leftPadding, self.pageTable) = (batchIndex, leftPadding, pageTable)
  }
}

/// Keys and values that a call appends to the cache before it attends, in the memory of a GPU.
public struct DeviceNewKeys: Hashable, Sendable {
  /// `[B, H_kv, s_new, D]`; packed `[1, H_kv, total, D]`.
  public var keys: DeviceTensorView
  /// The same with D_v.
  public var values: DeviceTensorView
  /// `[B + 1]` int32: the first new key of each sequence and the end of the last, where they are packed.
  public var starts: UInt64 = 0
  /// Tables of the rotary embedding, `[positions, dimension / 2]`, contiguous, in the problem's type.
  public var cosines: UInt64 = 0
  /// The same of the sines.
  public var sines: UInt64 = 0
  /// `[B]` int32: the position of each sequence's first new key; without, its length.
  public var positions: UInt64 = 0

  /// Keys and values alone.
  public init(keys: DeviceTensorView, values: DeviceTensorView) { (self.keys, self.values) = (keys, values) }
}
