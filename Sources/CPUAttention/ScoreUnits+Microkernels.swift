internal import Attention
internal import CPUMicrokernels

extension ScoreUnits {
  /// For the microkernels, rounded from 64 bits; see `FAScoreTransform`.
  var microkernels: FAScoreTransform {
    FAScoreTransform(
      scale_log2: Float(maximumUnit), scale_log2_rest: Float(maximumUnit - Double(Float(maximumUnit))),
      cap_log2: cap == nil ? 0 : Float(base2), scale_over_cap: Float(cap ?? 0))
  }

  /// What the running maximum is multiplied by to be in base 2: capped scores are already.
  var maximumUnit: Double { cap == nil ? base2 : 1 }
}
