/// An 8-bit float of 4 exponent and 3 fraction bits, without infinities: the type of compressed caches ("e4m3fn").
///
/// Source: Micikevicius et al., "FP8 Formats for Deep Learning" (2022).
public struct Float8E4M3: BitwiseCopyable, Sendable, Hashable {
  /// Sign, 4 bits of exponent (bias 7), 3 of fraction; 0x7f and 0xff are NaN.
  public var bitPattern: UInt8

  /// From the bits.
  public init(bitPattern: UInt8) { self.bitPattern = bitPattern }

  /// Rounds to nearest, ties to even; what is beyond 448 becomes 448, as the hardware's conversions have it.
  public init(_ value: Float) {
    let sign: UInt8 = value.sign == .minus ? 0x80 : 0
    if value.isNaN {
      bitPattern = sign | 0x7f
      return
    }
    let magnitude = min(value.magnitude, 448)
    let exponent = magnitude == 0 ? -6 : max(Int(magnitude.exponent), -6)
    let steps = (magnitude / Float(sign: .plus, exponent: exponent - 3, significand: 1)).rounded(.toNearestOrEven)
    bitPattern = sign | UInt8((exponent + 6) * 8 + Int(steps))
  }
}

extension Float {
  /// Exact.
  public init(_ value: Float8E4M3) {
    let (magnitude, isNegative) = (Int(value.bitPattern & 0x7f), value.bitPattern & 0x80 != 0)
    let exponent = max(magnitude >> 3, 1)
    let fraction = magnitude >> 3 == 0 ? magnitude : 8 + (magnitude & 7)
    let number =
      magnitude == 0x7f ? Float.nan : Float(fraction) * Float(sign: .plus, exponent: exponent - 10, significand: 1)
    self = isNegative ? -number : number
  }
}

extension Float8E4M3: AttentionScalar {
  /// The type of the elements.
  public static var scalarType: ScalarType { .e4m3 }
  /// The exact value as a float.
  public var asFloat: Float { Float(self) }
}

extension Float8E4M3: CustomStringConvertible {
  /// The value as a float prints it.
  public var description: String { Float(self).description }
}
