import Foundation

/// Draws tokens by their logits.
struct Sampler {
  private var random: SplitMix

  init(seed: UInt64) { random = SplitMix(seed: seed) }

  /// One of the tokens with the `count` largest logits, of probability proportional to exp(logit / temperature).
  mutating func sample(_ logits: [Float], temperature: Float, top count: Int) -> UInt8 {
    let best = logits.indices.sorted { logits[$0] > logits[$1] }.prefix(count)
    let weights = best.map { exp(Double((logits[$0] - logits[best[0]]) / temperature)) }
    var rest = Double(random.next() >> 11) * 0x1p-53 * weights.reduce(0, +)
    for (token, weight) in zip(best, weights) {
      rest -= weight
      if rest < 0 { return UInt8(token) }
    }
    return UInt8(best[0])
  }
}

/// An angle's cosine and sine.
struct Turn {
  let cosine, sine: Double

  init(_ angle: Double) { (cosine, sine) = (cos(angle), sin(angle)) }
}

/// Random numbers that are the same in every run (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
struct SplitMix: RandomNumberGenerator {
  private var state: UInt64

  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }
}
