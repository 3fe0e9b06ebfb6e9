internal import PTX

/// The GPU has one NaN: every result that is none of the numbers has these bits, whatever went in.
@inline(__always)
func canonical(_ value: Float) -> Float { value.isNaN ? Float(bitPattern: 0x7fff_ffff) : value }

/// 16-bit floats and e4m3, to f32 and back; by a table where the processor of the lowest common kind has no
/// instruction.
enum Half {
  private static let f16Values: [Float] = (0...UInt16.max).map { Float(Float16(bitPattern: $0)) }

  /// The table of all f16 values, for loops that look up many.
  static func withF16Values<Result>(_ body: (UnsafePointer<Float>) -> Result) -> Result {
    f16Values.withUnsafeBufferPointer { body($0.baseAddress!) }
  }

  /// The value of the low 16 bits.
  @inline(__always)
  static func float(_ kind: RegisterKind, _ bits: UInt32) -> Float {
    kind == .bf16x2 ? Float(bitPattern: bits << 16) : f16Values[Int(bits & 0xffff)]
  }

  /// To nearest even; a NaN becomes the canonical one.
  static func bits(_ kind: RegisterKind, _ value: Float) -> UInt32 {
    if value.isNaN { return 0x7fff }
    if kind != .bf16x2 { return UInt32(Float16(value).bitPattern) }
    let bits = value.bitPattern
    return (bits &+ 0x7fff &+ (bits >> 16 & 1)) >> 16
  }

  /// To nearest even from 64 bits, by one rounding: to odd in f32 first, which keeps what the second must know.
  static func bits(_ kind: RegisterKind, rounding value: Double) -> UInt32 {
    var near = Float(value)
    if Double(near) != value && near.isFinite {
      let toward = Double(near).magnitude > value.magnitude ? near.magnitude.nextDown : near.magnitude
      near = Float(bitPattern: toward.bitPattern | 1) * (value < 0 ? -1 : 1)
    }
    return bits(kind, near)
  }

  /// e4m3: 4 exponent bits of bias 7, 3 fraction bits, no infinity; 0x7f and 0xff are NaN. Source: "FP8 Formats for
  /// Deep Learning" (Micikevicius and others, 2022).
  static func e4m3(_ bits: UInt32) -> Float {
    let magnitude = bits & 0x7f
    let sign: Float = bits & 0x80 != 0 ? -1 : 1
    if magnitude == 0x7f { return .nan }
    let exponent = Int(magnitude >> 3)
    let fraction = Float(magnitude & 7)
    let value =
      exponent == 0
      ? fraction * 0x1p-9 : (1 + fraction / 8) * Float(sign: .plus, exponent: exponent - 7, significand: 1)
    return sign * value
  }

  /// To nearest even; beyond 448, to 448; a NaN stays one.
  static func e4m3Bits(_ value: Float) -> UInt32 {
    if value.isNaN { return 0x7f }
    let sign: UInt32 = value.sign == .minus ? 0x80 : 0
    // The candidates are few: the nearest, and of two equally near the even one.
    var best: UInt32 = 0
    var distance = Float.infinity
    for bits: UInt32 in 0...0x7e {
      let candidate = (e4m3(bits) - min(value.magnitude, 448)).magnitude
      if candidate < distance || candidate == distance && bits & 1 == 0 { (best, distance) = (bits, candidate) }
    }
    return sign | best
  }
}
