/// The type of a tensor's elements in memory. Whatever it is, sums and the softmax are computed in 32-bit floats.
public enum ScalarType: String, Hashable, Sendable, CustomStringConvertible {
  /// IEEE 754 binary32.
  case f32
  /// IEEE 754 binary16.
  case f16
  /// The upper half of binary32: 8 exponent bits, 7 fraction bits.
  case bf16
  /// 4 exponent bits, 3 fraction bits, no infinity: for the keys and values of a cache, and for queries over one.
  case e4m3

  /// The types that attention is computed in.
  public static let computed: [ScalarType] = [.f32, .f16, .bf16]

  /// Bytes of one element.
  public var byteCount: Int {
    switch self {
    case .f32: 4
    case .f16, .bf16: 2
    case .e4m3: 1
    }
  }

  /// Bits of the fraction, the leading one not counted.
  public var fractionBits: Int {
    switch self {
    case .f32: 23
    case .f16: 10
    case .bf16: 7
    case .e4m3: 3
    }
  }

  /// The exponent of the smallest normal number.
  var minimumExponent: Int {
    switch self {
    case .f32, .bf16: -126
    case .f16: -14
    case .e4m3: -6
    }
  }

  /// "f32", "f16", "bf16" or "e4m3".
  public var description: String { rawValue }

  /// The distance between neighbouring numbers of this type around `value`.
  public func ulp(of value: Double) -> Double {
    let exponent = value == 0 ? minimumExponent : max(Int(value.magnitude.exponent), minimumExponent)
    return Double(sign: .plus, exponent: exponent - fractionBits, significand: 1)
  }

  /// Rounds to the nearest number of this type, ties to even.
  public func rounded(_ value: Float) -> Float {
    switch self {
    case .f32: value
    case .f16: Float(Float16(value))
    case .bf16: Float(BFloat16(value))
    case .e4m3: Float(Float8E4M3(value))
    }
  }
}

/// An element type that tensors can be made of: `Float`, `Float16`, `BFloat16` and `Float8E4M3`.
public protocol AttentionScalar: BitwiseCopyable, Sendable {
  static var scalarType: ScalarType { get }
  /// Rounds to nearest, ties to even.
  init(_ value: Float)
  var asFloat: Float { get }
}

extension Float: AttentionScalar {
  /// The type of the elements.
  public static var scalarType: ScalarType { .f32 }
  /// The exact value as a float.
  public var asFloat: Float { self }
}

extension Float16: AttentionScalar {
  /// The type of the elements.
  public static var scalarType: ScalarType { .f16 }
  /// The exact value as a float.
  public var asFloat: Float { Float(self) }
}

extension BFloat16: AttentionScalar {
  /// The type of the elements.
  public static var scalarType: ScalarType { .bf16 }
  /// The exact value as a float.
  public var asFloat: Float { Float(self) }
}
