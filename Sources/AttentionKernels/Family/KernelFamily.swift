package import Attention
internal import PTX

/// A kind of kernels that compute attention. A plan asks every family the same: what stands against a problem, which
/// tilings there are for it, what stands against each of these, what the others cost, and what is launched.
package protocol KernelFamily: Sendable {
  /// How its kernels cut their work.
  associatedtype Tiling: KernelTiling

  /// For options, tables and errors: "the NAME kernels".
  static var name: String { get }
  /// The GPUs that have the instructions of its kernels.
  static var architecture: Architecture { get }

  /// What its kernels know nothing of, in words that stand behind "know no"; nil where they are made for such problems.
  static func limitation(for problem: AttentionProblem) -> String?
  /// - Throws: `AttentionError` where a number is beyond what the kernels take, though they are made for such problems.
  static func check(_ problem: AttentionProblem, on gpu: GPULimits) throws(AttentionError)

  /// The tilings that are worth considering.
  static func tilings(for problem: AttentionProblem, on gpu: GPULimits) -> [Tiling]
  /// What stands against a tiling, as the end of a sentence about it; nil where nothing does.
  static func obstacle(to tiling: Tiling, for problem: AttentionProblem, on gpu: GPULimits) -> String?
  /// A tiling that nothing stands against with what follows from the others of its sizes.
  static func completed(_ tiling: Tiling, for problem: AttentionProblem, on gpu: GPULimits) -> Tiling
  /// What stands against a change of a tiling by a user, as the end of a sentence about it.
  static func obstacle(to changes: TilingChanges, for problem: AttentionProblem) -> String?
  /// What a call takes, before any length is known: every sequence counts with the most keys that it can have.
  static func cost(of tiling: Tiling, for problem: AttentionProblem, on gpu: GPULimits) -> KernelCost
  /// What a call launches.
  /// - Throws: `AttentionError` where a number is beyond what this tiling can count.
  static func launches(
    _ tiling: Tiling, for problem: AttentionProblem, on gpu: GPULimits
  ) throws(AttentionError) -> LaunchSequence
}

extension KernelFamily {
  /// As it is.
  package static func completed(_ tiling: Tiling, for problem: AttentionProblem, on gpu: GPULimits) -> Tiling { tiling }
  /// Nothing.
  package static func obstacle(to changes: TilingChanges, for problem: AttentionProblem) -> String? { nil }
}

/// The GPUs that a family's kernels run on.
package enum Architecture: Hashable, Sendable {
  /// This compute capability (major * 10 + minor), and all that are newer.
  case from(Int)
  /// This one alone: its kernels use instructions such as those of `sm_90a`, which no other GPU has.
  case exactly(Int)

  /// Whether a GPU is one of them.
  package func includes(_ gpu: GPULimits) -> Bool {
    switch self {
    case .from(let oldest): gpu.capability >= oldest
    case .exactly(let only): gpu.capability == only
    }
  }

  /// Whether its kernels' texts are for more than one GPU.
  package var isPortable: Bool {
    if case .from = self { true } else { false }
  }

  var description: String {
    switch self {
    case .from(let oldest): "sm_\(oldest) and newer"
    case .exactly(let only): "sm_\(only) alone"
    }
  }
}

/// The families that plans choose from.
package enum KernelFamilies {
  /// All of them: a new one is a line here.
  package static let all: [any KernelFamily.Type] = [
    ForwardFamily.self, DecodeFamily.self, HopperForwardFamily.self, HopperDecodeFamily.self,
  ]

  /// Those that gradients are computed by.
  package static let backward: [any KernelFamily.Type] = [BackwardFamily.self, HopperBackwardFamily.self]
}
