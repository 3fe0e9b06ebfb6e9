internal import PTX

/// `tanh(x)` of scores, of which the softmax's scale then makes `cap * tanh(scale * s / cap)`.
///
/// `1 - 2 / (1 + exp(2x))`, by `ex2` and `rcp`: `tanh.approx` has errors of 2^-11, more than the tolerance.
struct ScoreCap {
  /// From a product of Q and K to the power of two that is `exp(2x)`.
  let scale: Register<F32>

  func apply(to scores: Accumulators, _ k: KernelBuilder) {
    k.comment("softcap")
    let (one, minusTwo) = (k.constant(1), k.constant(-2))
    scores.forEach { score, _, _ in
      k.set(score, to: k.multiplyAdd(k.reciprocal(k.exp2(score * scale) + one), minusTwo, one))
    }
  }
}
