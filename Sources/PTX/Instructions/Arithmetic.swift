/// Arithmetic, logic, comparison, selection and moves (sections 9.7.1 to 9.7.9).
public enum Arithmetic: Hashable, Sendable {
  /// `d = a op b`.
  case binary(BinaryOperation, RegisterKind, d: RegisterID, a: Operand, b: Operand)
  /// `d = a * b + c`: integers modulo 2^bits, floats rounded once.
  case multiplyAdd(RegisterKind, d: RegisterID, a: Operand, b: Operand, c: Operand)
  /// 64-bit product of 32-bit integers.
  case multiplyWide(RegisterKind, d: RegisterID, a: Operand, b: Operand)
  case unary(UnaryOperation, RegisterKind, d: RegisterID, a: Operand)
  case compare(Comparison, RegisterKind, d: RegisterID, a: Operand, b: Operand)
  /// `d = p ? a : b`.
  case select(RegisterKind, d: RegisterID, a: Operand, b: Operand, p: RegisterID)
  case move(RegisterKind, d: RegisterID, a: Operand)
  case readSpecial(SpecialRegister, d: RegisterID)
  /// Bytes of {b, a} picked by the nibbles of the selector.
  case permute(d: RegisterID, a: Operand, b: Operand, selector: Operand)
  /// Any boolean function of three words; the table is that of `0xF0, 0xCC, 0xAA`.
  case logic3(d: RegisterID, a: Operand, b: Operand, c: Operand, table: UInt8)
  /// `d = low | high << bits`, of two halves.
  case pack(d: RegisterID, low: RegisterID, high: RegisterID)
  case unpack(low: RegisterID, high: RegisterID, a: RegisterID)

  /// Operations on two values; shifts take a 32-bit distance.
  public enum BinaryOperation: String, Hashable, Sendable, CaseIterable {
    case add, sub, mul, mulHigh, div, rem, min, max, and, or, xor, shl, shr
  }

  /// Operations on one value.
  public enum UnaryOperation: String, Hashable, Sendable, CaseIterable {
    case neg, abs, not, popc
    /// 2^x, within 2 ulp; subnormals are taken and given as zero, but not of f16.
    case exp2
    /// 1/x, within 1 ulp; subnormals are taken and given as zero.
    case reciprocal
    /// Base-2 logarithm; subnormals are taken as zero.
    case log2
  }

  /// Comparisons; of floats, all but `ne` are false for NaN.
  public enum Comparison: String, Hashable, Sendable, CaseIterable {
    case eq, ne, lt, le, gt, ge
  }
}

extension Arithmetic {
  func text(_ name: TextNames) -> String {
    switch self {
    case .binary(let operation, let kind, let d, let a, let b):
      // A shift's distance is 32 bits whatever is shifted.
      let isShift = operation == .shl || operation == .shr
      return "\(operation.mnemonic(kind)) \(name(d)), \(name(a, kind)), \(name(b, isShift ? .u32 : kind))"
    case .multiplyAdd(let kind, let d, let a, let b, let c):
      let mnemonic = kind.isFloat ? "fma.rn\(kind.suffix)" : "mad.lo\(kind.suffix)"
      return "\(mnemonic) \(name(d)), \(name(a, kind)), \(name(b, kind)), \(name(c, kind))"
    case .multiplyWide(let kind, let d, let a, let b):
      return "mul.wide\(kind.suffix) \(name(d)), \(name(a, kind)), \(name(b, kind))"
    case .unary(let operation, let kind, let d, let a):
      return "\(operation.mnemonic(kind)) \(name(d)), \(name(a, kind))"
    case .compare(let comparison, let kind, let d, let a, let b):
      return "setp.\(comparison.mnemonic(kind))\(kind.suffix) \(name(d)), \(name(a, kind)), \(name(b, kind))"
    case .select(let kind, let d, let a, let b, let p):
      return "selp\(kind.bitSuffix) \(name(d)), \(name(a, kind)), \(name(b, kind)), \(name(p))"
    case .move(let kind, let d, let a):
      return "mov\(kind.bitSuffix) \(name(d)), \(name(a, kind))"
    case .readSpecial(let register, let d):
      return "mov.u32 \(name(d)), \(register.rawValue)"
    case .permute(let d, let a, let b, let selector):
      return "prmt.b32 \(name(d)), \(name(a, .u32)), \(name(b, .u32)), \(name(selector, .u32))"
    case .logic3(let d, let a, let b, let c, let table):
      return "lop3.b32 \(name(d)), \(name(a, .u32)), \(name(b, .u32)), \(name(c, .u32)), \(table)"
    case .pack(let d, let low, let high):
      return "mov\(d.kind.bitSuffix) \(name(d)), {\(name(low)), \(name(high))}"
    case .unpack(let low, let high, let a):
      return "mov\(a.kind.bitSuffix) {\(name(low)), \(name(high))}, \(name(a))"
    }
  }
}

extension RegisterKind {
  /// Whether arithmetic rounds.
  public var isFloat: Bool { self == .f32 || self == .f16x2 || self == .bf16x2 }
}

extension Arithmetic.BinaryOperation {
  func mnemonic(_ kind: RegisterKind) -> String {
    switch self {
    // The rounding is named, because without it ptxas may contract a product and a sum into one rounding.
    case .add, .sub: kind.isFloat ? "\(rawValue).rn\(kind.suffix)" : "\(rawValue)\(kind.suffix)"
    case .mul: kind.isFloat ? "mul.rn\(kind.suffix)" : "mul.lo\(kind.suffix)"
    case .mulHigh: "mul.hi\(kind.suffix)"
    case .div: kind.isFloat ? "div.rn\(kind.suffix)" : "div\(kind.suffix)"
    case .rem, .min, .max, .shr: "\(rawValue)\(kind.suffix)"
    case .and, .or, .xor, .shl: "\(rawValue)\(kind.bitSuffix)"
    }
  }
}

extension Arithmetic.UnaryOperation {
  func mnemonic(_ kind: RegisterKind) -> String {
    switch self {
    case .neg, .abs: "\(rawValue)\(kind.suffix)"
    case .not, .popc: "\(rawValue)\(kind.bitSuffix)"
    case .exp2: kind == .f16x2 ? "ex2.approx.f16x2" : "ex2.approx.ftz\(kind.suffix)"
    case .reciprocal: "rcp.approx.ftz\(kind.suffix)"
    case .log2: "lg2.approx.ftz\(kind.suffix)"
    }
  }
}

extension Arithmetic.Comparison {
  /// Of floats, `ne` is true for NaN, as in Swift; the others are false.
  func mnemonic(_ kind: RegisterKind) -> String { self == .ne && kind.isFloat ? "neu" : rawValue }
}

extension Arithmetic {
  func mapOperands(_ change: (Operand) -> Operand) -> Arithmetic {
    switch self {
    case .binary(let operation, let kind, let d, let a, let b):
      .binary(operation, kind, d: d, a: change(a), b: change(b))
    case .multiplyAdd(let kind, let d, let a, let b, let c):
      .multiplyAdd(kind, d: d, a: change(a), b: change(b), c: change(c))
    case .multiplyWide(let kind, let d, let a, let b): .multiplyWide(kind, d: d, a: change(a), b: change(b))
    case .unary(let operation, let kind, let d, let a): .unary(operation, kind, d: d, a: change(a))
    case .compare(let comparison, let kind, let d, let a, let b):
      .compare(comparison, kind, d: d, a: change(a), b: change(b))
    case .select(let kind, let d, let a, let b, let p): .select(kind, d: d, a: change(a), b: change(b), p: p)
    case .move(let kind, let d, let a): .move(kind, d: d, a: change(a))
    case .permute(let d, let a, let b, let selector):
      .permute(d: d, a: change(a), b: change(b), selector: change(selector))
    case .logic3(let d, let a, let b, let c, let table):
      .logic3(d: d, a: change(a), b: change(b), c: change(c), table: table)
    case .readSpecial, .pack, .unpack: self
    }
  }
}
