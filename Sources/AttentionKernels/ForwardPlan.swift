public import Attention
public import PTX

/// How a problem is computed on a GPU: a kernel and a launch, every choice made once.
public struct ForwardPlan: Hashable, Sendable {
  /// The largest head dimension of these kernels: four warps can hold no more of O in registers, nor can shared memory
  /// hold more of Q, K and V.
  public static let dimensionLimit = 1024
  /// Head dimensions are multiples of this: 16 bytes.
  public static let dimensionMultiple = 8
  /// The most queries times group, and the most keys: positions are 32-bit numbers with a sign, and differences of two
  /// must be too.
  public static let lengthLimit = 1 << 30

  /// What is computed.
  public let problem: AttentionProblem
  /// What the kernel's text is made from.
  public let specialization: ForwardSpecialization
  /// Grid and arguments.
  public let launch: ForwardLaunch
  /// The GPU that the choices were made for.
  public let gpu: GPULimits

  /// - Parameter changes: changes the tiling that suits the problem and the GPU, for experiments, as
  ///   `ForwardTiling.changed(by:)` reads it.
  /// - Throws: `AttentionError` where these kernels do not take the type, a dimension or a length, or there is none with the
  ///   changes.
  public init(
    _ problem: AttentionProblem, on gpu: GPULimits, changes: String? = nil
  ) throws(AttentionError) {
    try self.init(problem, on: gpu) { (tiling) throws(AttentionError) in
      guard let changes else { return tiling }
      guard let changed = tiling.changed(by: changes) else {
        throw .tiling(changes, reason: "cannot be read; write any of \(ForwardTiling.changeSyntax), with commas")
      }
      return changed
    }
  }

  /// A plan with a tiling that is made of the one that suits.
  public init(
    _ problem: AttentionProblem, on gpu: GPULimits, tiling change: (ForwardTiling) throws(AttentionError) -> ForwardTiling
  ) throws(AttentionError) {
    let inputs: Matrix.Inputs
    switch problem.scalarType {
    case .f16: inputs = .f16
    case .bf16: inputs = .bf16
    case .f32: throw .typeOnDevice(problem.scalarType, device: "GPU", possible: "f16 and bf16")
    }
    for (tensor, value) in [("queries and keys", problem.dimension), ("values", problem.valueDimension)] {
      guard value % Self.dimensionMultiple == 0 && value <= Self.dimensionLimit else {
        throw .dimension(
          tensor: tensor, value: value, path: "GPU path", multiple: Self.dimensionMultiple,
          limit: Self.dimensionLimit)
      }
    }
    for (tensor, length) in [("queries x group", problem.queries * problem.groupSize), ("keys", problem.keys)] {
      guard length <= Self.lengthLimit else {
        throw .lengthOnDevice(tensor: tensor, length: length, device: "GPU", limit: Self.lengthLimit)
      }
    }
    let tiling = try change(ForwardTiling(problem, on: gpu))
    self.problem = problem
    self.gpu = gpu
    specialization = ForwardSpecialization(problem, inputs: inputs, tiling: tiling)
    launch = ForwardLaunch(problem, specialization)
    guard launch.blocks <= Int32.max else {
      throw .lengthOnDevice(
        tensor: "batch x heads x query tiles", length: launch.blocks, device: "GPU", limit: Int(Int32.max))
    }
    if let obstacle = specialization.obstacle(on: gpu) { throw .tiling("\(tiling)", reason: obstacle) }
  }

  /// The kernel of the specialization.
  public func kernel() throws(KernelError) -> Kernel { try ForwardKernel(specialization).kernel() }
}

extension ForwardTiling {
  /// The tiling for a problem on a GPU.
  ///
  /// Measured on an NVIDIA H200, 2026-11-21, by `bench --device gpu --tiling ...` at N 8192 (Documentation/GPULog.md): two
  /// row tiles a warp up to D 128, Q in registers up to D 64, and as many keys as the registers then hold.
  init(_ problem: AttentionProblem, on gpu: GPULimits) {
    let dimension = max(problem.dimension, problem.valueDimension)
    let isShort = problem.queries * problem.groupSize <= 64
    if dimension <= 64 {
      self.init(rowTilesPerWarp: isShort ? 1 : 2, tileKeys: isShort || problem.needsMoreRegisters ? 64 : 96)
    } else if dimension <= 128 && !(problem.needsMoreRegisters && dimension > 96) {
      let keys = gpu.target < .sm90 || problem.needsMoreRegisters ? 32 : 48
      self.init(rowTilesPerWarp: isShort ? 1 : 2, tileKeys: isShort ? 64 : keys, keepsQueries: isShort)
    } else if dimension > 512, let best = TilingChoice(problem, inputs: .f16, on: gpu).ranked.first {
      self = best.tiling
      return
    } else if dimension > 256 {
      // With little shared memory, fewer rows, and tiles of half as many keys.
      let isSmall = gpu.sharedBytesPerBlock < 210_000
      self.init(
        warps: isSmall ? 4 : 8, warpTiling: .queriesAndKeys(columns: isSmall ? 2 : 4),
        sharing: .keysAndValues, rowTilesPerWarp: isSmall ? 1 : 2, tileKeys: isSmall ? 32 : 64, keepsQueries: false, blocksPerMultiprocessor: 1)
      return
    } else {
      self.init(
        warps: isShort ? 4 : 8, rowTilesPerWarp: 1, tileKeys: 64, keepsQueries: false, blocksPerMultiprocessor: 1)
    }
    func memory() -> Int { SharedMemoryPlan(ForwardSpecialization(problem, inputs: .f16, tiling: self)).byteCount }
    // Older GPUs have less shared memory.
    if memory() > gpu.sharedBytesPerBlock { warps = 4 }
    while memory() > gpu.sharedBytesPerBlock && tileKeys > 16 { tileKeys = tileKeys > 64 ? 64 : tileKeys / 32 * 16 }
    let fitting = gpu.sharedBytesPerMultiprocessor / (memory() + 1024)
    blocksPerMultiprocessor = max(1, min(blocksPerMultiprocessor, fitting))
  }
}

extension AttentionProblem {
  /// Whether scores take more registers on their way: softcaps, and masks with a left edge.
  fileprivate var needsMoreRegisters: Bool {
    if case .window(.some, _) = mask { return true }
    return softcap != nil
  }
}

extension ForwardPlan: CustomStringConvertible {
  /// The choices in two lines.
  public var description: String {
    "GPU, \(gpu.name): \(specialization.name)\n\(specialization.tiling); \(launch.blocks) blocks, "
      + "\(launch.sharedByteCount / 1024) KB of shared memory each"
  }
}
