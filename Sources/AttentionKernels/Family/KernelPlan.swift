package import Attention
internal import PTX

/// How a problem is computed on a GPU, every choice made once, before any tensor or length is known.
package struct KernelPlan: Sendable {
  /// What is computed.
  package let problem: AttentionProblem
  /// The GPU that the choices were made for.
  package let gpu: GPULimits
  /// The family of the kernels.
  package let family: String
  /// How they cut their work.
  package let tiling: any KernelTiling
  /// What a call should take.
  package let cost: KernelCost
  /// What a call launches.
  package let launches: LaunchSequence
  /// What came second, and how many times as long it should take; nil where there was nothing else.
  package let second: (name: String, ratio: Double)?

  /// The first of the ranking of all families.
  ///
  /// - Throws: `AttentionError` where no kernel takes the type, a dimension or a length, or there is none with the
  ///   options.
  package init(
    _ problem: AttentionProblem, on gpu: GPULimits, options: KernelOptions = KernelOptions(),
    families: [any KernelFamily.Type] = KernelFamilies.all
  ) throws(AttentionError) {
    let choice = try Choice(problem, on: gpu, options: options, families: families)
    try self.init(problem, gpu, choice)
  }

  /// With a tiling of somebody's own.
  ///
  /// - Throws: `AttentionError` where the family does not take the problem, or there is no kernel with the tiling.
  package init<Family: KernelFamily>(
    _ problem: AttentionProblem, on gpu: GPULimits, _ tiling: Family.Tiling, of family: Family.Type
  ) throws(AttentionError) {
    if let limitation = family.limitation(for: problem) {
      throw .unsupported("The \(family.name) kernels know no \(limitation).")
    }
    try family.check(problem, on: gpu)
    let choice = Choice(problem, on: gpu, among: [tiling], of: family)
    if let refusal = choice.refused.first { throw .tiling("\(tiling)", reason: refusal.reason) }
    try self.init(problem, gpu, choice)
  }

  private init(_ problem: AttentionProblem, _ gpu: GPULimits, _ choice: Choice) throws(AttentionError) {
    (self.problem, self.gpu) = (problem, gpu)
    var failure: AttentionError?
    // A tiling may be found to count too far only where its launches are made.
    for (number, candidate) in choice.ranked.enumerated() {
      do throws(AttentionError) {
        launches = try candidate.launches()
        (family, tiling, cost) = (candidate.family, candidate.tiling, candidate.cost)
        let other =
          choice.ranked.dropFirst(number + 1).first { $0.family != candidate.family }
          ?? choice.ranked.dropFirst(number + 1).first
        second = other.map { ("\($0.family) (\($0.tiling.changes))", $0.cost.seconds / candidate.cost.seconds) }
        return
      } catch {
        failure = failure ?? error
      }
    }
    throw failure ?? .tiling("any", reason: "cannot be had on \(gpu.name)")
  }

  /// How many parts the keys of each sequence are divided into, for lengths such as these.
  package func splits(lengths: [Int]) -> [Int] {
    launches.sharing?.shares(lengths: lengths).sequences.map(\.parts) ?? lengths.map { _ in 1 }
  }

  /// The family whose kernels take calls whose strides no tensor map has: that of decoding where there is a workspace for it,
  /// and of whole keys that of prefill, which needs none; of gradients, those by `mma.sync`.
  package var familyWithoutMaps: String {
    if family == HopperBackwardFamily.name { return BackwardFamily.name }
    return launches.workspaceByteCount > 0 && !problem.hasWholeKeys ? DecodeFamily.name : ForwardFamily.name
  }
}

extension KernelPlan: CustomStringConvertible {
  /// The choices in a few lines.
  package var description: String {
    let launch = launches.attention
    var text =
      "GPU, \(gpu.name): \(launch.kernel.name)\n\(tiling); \(launch.blocks) blocks, "
      + "\(launch.sharedByteCount / 1024) KB of shared memory each"
    if launches.workspaceByteCount > 0 { text += ", \(launches.workspaceByteCount) bytes of workspace" }
    text += "\nThe \(family) kernels, at \(microseconds(cost.seconds)) us by the cost model"
    if let second { text += "; second \(second.name), \(rounded(second.ratio, digits: 1)) times as long" }
    return text + (gpu.isFitted ? "." : "; its constants were not fitted on such a GPU.")
  }
}
