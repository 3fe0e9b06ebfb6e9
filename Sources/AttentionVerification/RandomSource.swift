package import Attention

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// A small repeatable generator. Source: G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators"
/// (SplitMix64).
package struct RandomSource: RandomNumberGenerator {
  private var state: UInt64

  /// Different streams of one seed have nothing in common.
  package init(seed: UInt64, stream: UInt64 = 0) {
    state = seed
    state = next() ^ (stream &* 0xd1b5_4a32_d192_ed03)
    _ = next()
  }

  package mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }

  /// Uniform in (0, 1].
  private mutating func unit() -> Float { (Float(next() >> 40) + 1) * 0x1p-24 }

  /// A standard normal number (Box and Muller).
  package mutating func normal() -> Float { (-2 * logf(unit())).squareRoot() * cosf(2 * .pi * unit()) }

  /// One of the values.
  package mutating func pick<T>(_ values: [T]) -> T { values.randomElement(using: &self)! }

  package mutating func int(_ range: ClosedRange<Int>) -> Int { Int.random(in: range, using: &self) }
}

extension Tensor {
  /// Standard normal elements.
  package static func normal(
    _ shape: TensorShape, _ type: ScalarType, layout: TensorLayout = .bhnd, from source: inout RandomSource
  ) throws(AttentionError) -> Tensor {
    var random = source
    defer { source = random }
    return try Tensor(shape: shape, scalarType: type, layout: layout) { view in
      for i in 0..<shape.elementCount { type.store(random.normal(), to: view.base, at: i) }
    }
  }
}
