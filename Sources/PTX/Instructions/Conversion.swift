/// Conversions between types (section 9.7.9.22, cvt).
public enum Conversion: Hashable, Sendable {
  /// Two f32 to two 16-bit floats, to nearest even.
  case pack16(RegisterKind, d: RegisterID, low: Operand, high: Operand)
  /// f16 to f32, exact.
  case floatFromF16(d: RegisterID, a: RegisterID)
  /// f32 to one f16, to nearest even.
  case f16FromFloat(d: RegisterID, a: Operand)
  /// f32 to one bf16, to nearest even.
  case bf16FromFloat(d: RegisterID, a: Operand)
  /// Two f32 to two e4m3 in 16 bits, to nearest even; beyond 448, to 448.
  case packE4M3(d: RegisterID, low: Operand, high: Operand)
  /// Two e4m3 to two f16, exact.
  case f16x2FromE4M3x2(d: RegisterID, a: RegisterID)
  /// A 32-bit integer to f32, to nearest even.
  case floatFromInteger(RegisterKind, d: RegisterID, a: Operand)
  /// f32 to a 32-bit integer, clamped to its range; NaN gives 0.
  case integerFromFloat(RegisterKind, IntegerRounding, d: RegisterID, a: Operand)
  /// 32-bit to 64-bit integers, by the sign of the source's kind.
  case widen(RegisterKind, d: RegisterID, a: Operand)
  /// The low 32 of 64 bits.
  case narrow(d: RegisterID, a: Operand)
  /// A generic address to one of global memory.
  case globalAddress(d: RegisterID, a: RegisterID)

  /// Which whole number is taken.
  public enum IntegerRounding: String, Hashable, Sendable, CaseIterable {
    case nearest = "rni"
    case towardZero = "rzi"
    case down = "rmi"
    case up = "rpi"
  }

  func text(_ name: TextNames) -> String {
    switch self {
    // The high half comes first in the text.
    case .pack16(let kind, let d, let low, let high):
      return "cvt.rn\(kind.suffix).f32 \(name(d)), \(name(high, .f32)), \(name(low, .f32))"
    case .floatFromF16(let d, let a):
      return "cvt.f32.f16 \(name(d)), \(name(a))"
    case .f16FromFloat(let d, let a):
      return "cvt.rn.f16.f32 \(name(d)), \(name(a, .f32))"
    case .bf16FromFloat(let d, let a):
      return "cvt.rn.bf16.f32 \(name(d)), \(name(a, .f32))"
    case .packE4M3(let d, let low, let high):
      return "cvt.rn.satfinite.e4m3x2.f32 \(name(d)), \(name(high, .f32)), \(name(low, .f32))"
    case .f16x2FromE4M3x2(let d, let a):
      return "cvt.rn.f16x2.e4m3x2 \(name(d)), \(name(a))"
    case .floatFromInteger(let kind, let d, let a):
      return "cvt.rn.f32\(kind.suffix) \(name(d)), \(name(a, kind))"
    case .integerFromFloat(let kind, let rounding, let d, let a):
      return "cvt.\(rounding.rawValue)\(kind.suffix).f32 \(name(d)), \(name(a, .f32))"
    case .widen(let kind, let d, let a):
      return "cvt\(d.kind.suffix)\(kind.suffix) \(name(d)), \(name(a, kind))"
    case .narrow(let d, let a):
      return "cvt\(d.kind.suffix).u64 \(name(d)), \(name(a, .u64))"
    case .globalAddress(let d, let a):
      return "cvta.to.global.u64 \(name(d)), \(name(a))"
    }
  }
}

extension Conversion {
  func mapOperands(_ change: (Operand) -> Operand) -> Conversion {
    switch self {
    case .pack16(let kind, let d, let low, let high): .pack16(kind, d: d, low: change(low), high: change(high))
    case .f16FromFloat(let d, let a): .f16FromFloat(d: d, a: change(a))
    case .bf16FromFloat(let d, let a): .bf16FromFloat(d: d, a: change(a))
    case .packE4M3(let d, let low, let high): .packE4M3(d: d, low: change(low), high: change(high))
    case .floatFromInteger(let kind, let d, let a): .floatFromInteger(kind, d: d, a: change(a))
    case .integerFromFloat(let kind, let rounding, let d, let a):
      .integerFromFloat(kind, rounding, d: d, a: change(a))
    case .widen(let kind, let d, let a): .widen(kind, d: d, a: change(a))
    case .narrow(let d, let a): .narrow(d: d, a: change(a))
    case .floatFromF16, .f16x2FromE4M3x2, .globalAddress: self
    }
  }
}
