/// A 16-bit float with the exponent of `Float` and 7 fraction bits; for storage, not for arithmetic.
public struct BFloat16: BitwiseCopyable, Sendable, Hashable {
  /// Sign, 8 bits of exponent, 7 of fraction.
  public var bitPattern: UInt16

  /// Positive zero.
  public init() { bitPattern = 0 }

  /// From the bits.
  public init(bitPattern: UInt16) { self.bitPattern = bitPattern }

  /// Rounds to nearest, ties to even. Values beyond the largest finite number become infinite; a NaN stays a quiet NaN.
  public init(_ value: Float) {
    let bits = value.bitPattern
    if value.isNaN {
      bitPattern = UInt16(bits >> 16) | 0x0040
    } else {
      // Finite values cannot overflow 32 bits here, and infinity has an even, zero lower half: it stays as it is.
      bitPattern = UInt16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)
    }
  }
}

extension BFloat16: ExpressibleByFloatLiteral, ExpressibleByIntegerLiteral {
  /// The literal, rounded twice: to a float, and to nearest.
  public init(floatLiteral value: Float) { self.init(value) }

  /// The literal, rounded twice: to a float, and to nearest.
  public init(integerLiteral value: Float) { self.init(value) }
}

extension Float {
  /// Exact.
  public init(_ value: BFloat16) { self.init(bitPattern: UInt32(value.bitPattern) << 16) }
}

extension BFloat16: CustomStringConvertible {
  /// The value as a float prints it.
  public var description: String { Float(self).description }
}
