internal import Attention
internal import CPUMicrokernels

/// Scale and softcap of a problem in the units that the kernels work in; see `FAScoreTransform`.
struct ScoreTransform {
  private static let log2e = 1.4426950408889634

  private let scale: Double
  private let softcap: Double?

  init(_ problem: AttentionProblem) {
    scale = problem.scale
    softcap = problem.softcap
  }

  /// For the kernels, rounded from 64 bits.
  var kernels: FAScoreTransform {
    FAScoreTransform(
      scale_log2: Float(maximumUnit), scale_log2_rest: Float(maximumUnit - Double(Float(maximumUnit))),
      cap_log2: Float((softcap ?? 0) * Self.log2e),
      scale_over_cap: Float(softcap.map { scale / $0 } ?? 0))
  }

  /// What the running maximum is multiplied by to be in base 2.
  var maximumUnit: Double { softcap == nil ? scale.magnitude * Self.log2e : 1 }

  /// Whether the queries are negated, so that the largest raw score belongs to the largest scaled one.
  var negatesQueries: Bool { softcap == nil && scale < 0 }
}
