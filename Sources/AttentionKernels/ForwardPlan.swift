public import Attention
public import PTX

/// How a problem is computed on a GPU: a kernel and a launch, every choice made once.
public struct ForwardPlan: Hashable, Sendable {
  /// The largest head dimension of these kernels: eight warps can hold no more of O for 32 rows in registers.
  public static let dimensionLimit = 1024

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
    _ problem: AttentionProblem, on gpu: GPULimits,
    tiling change: (ForwardTiling) throws(AttentionError) -> ForwardTiling
  ) throws(AttentionError) {
    let inputs = try Matrix.Inputs(of: problem.scalarType)
    try GPULimits.check(
      dimension: problem.dimension, valueDimension: problem.valueDimension, path: "GPU path", limit: Self.dimensionLimit
    )
    try GPULimits.check(counts: [("queries x group", [problem.queries, problem.groupSize]), ("keys", [problem.keys])])
    guard let best = TilingChoice(problem, inputs: inputs, on: gpu).ranked.first else {
      throw .tiling("any", reason: "needs more shared memory or registers than \(gpu.name) has")
    }
    let tiling = try change(best.tiling)
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

  /// A plan for sequences with lengths of their own: contiguous keys or packed ones, all of one type, nothing appended.
  ///
  /// - Throws: as the others, for the longest that there can be.
  public init(_ sequences: CachedAttentionProblem, on gpu: GPULimits, changes: String? = nil) throws(AttentionError) {
    let longest = try sequences.sequence(length: sequences.capacity, batch: sequences.batch)
    try GPULimits.check(placesOf: sequences)
    let plan = try ForwardPlan(longest, on: gpu, changes: changes)
    (problem, self.gpu) = (plan.problem, plan.gpu)
    var specialization = plan.specialization
    specialization.hasSequences = true
    self.specialization = specialization
    launch = ForwardLaunch(
      problem, specialization, packedQueries: sequences.packedQueries,
      packedKeys: sequences.hasPackedKeys ? sequences.keyShape.length : nil,
      keySequences: sequences.hasPackedKeys ? sequences.batch : sequences.keyShape.batch)
  }

  /// The kernel of the specialization.
  public func kernel() throws(KernelError) -> Kernel { try ForwardKernel(specialization).kernel() }
}

extension ForwardPlan {
  /// Why the plan has this tiling: every candidate, the cheapest first, with what its tiles cost, and the others with what
  /// stands against them.
  public var explanation: String {
    "\(TilingChoice(problem, inputs: specialization.inputs, on: gpu))"
  }
}

extension ForwardPlan: CustomStringConvertible {
  /// The choices in two lines.
  public var description: String {
    "GPU, \(gpu.name): \(specialization.name)\n\(specialization.tiling); \(launch.blocks) blocks, "
      + "\(launch.sharedByteCount / 1024) KB of shared memory each"
  }
}
