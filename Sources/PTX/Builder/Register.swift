/// A register while a kernel is built: a number, and the kernel that it belongs to.
///
/// A register is never made from a literal; operators take literals on one side and put them into the instruction.
public struct Register<T: RegisterType> {
  let id: RegisterID
  let builder: KernelBuilder

  var operand: Operand { .register(id) }

  /// The same register; in the text it has this name.
  public func named(_ name: String) -> Self {
    builder.rename(id, name)
    return self
  }

  /// The same bits, read as another type of the same size.
  public func reinterpreted<Other: RegisterType>(
    as _: Other.Type, file: String = #fileID, line: Int = #line
  ) -> Register<Other> {
    builder.at(file, line)
    let isSameSize = Other.kind.byteCount == T.kind.byteCount
    if !isSameSize || T.kind == .predicate {
      builder.fail("\(T.kind) cannot be read as \(Other.kind): the sizes differ.")
    }
    let result = builder.make(Other.self)
    builder.emit(.arithmetic(.move(Other.kind, d: result.id, a: operand)))
    return result
  }
}

/// A condition, one bit a lane.
public typealias Predicate = Register<Bool1>

// MARK: - Operators

// An operator has no line of its own; it carries that of the last named call.

extension Register where T: IntegerType {
  /// Sum modulo 2^bits.
  public static func + (a: Self, b: Self) -> Self { a.builder.binary(.add, a, b.operand, b.builder) }
  /// Sum with a constant.
  public static func + (a: Self, b: Int) -> Self { a.builder.binary(.add, a, a.builder.literal(b, T.kind)) }
  /// Difference modulo 2^bits.
  public static func - (a: Self, b: Self) -> Self { a.builder.binary(.sub, a, b.operand, b.builder) }
  /// Difference with a constant.
  public static func - (a: Self, b: Int) -> Self { a.builder.binary(.sub, a, a.builder.literal(b, T.kind)) }
  /// The low bits of the product.
  public static func * (a: Self, b: Self) -> Self { a.builder.binary(.mul, a, b.operand, b.builder) }
  /// The low bits of the product with a constant.
  public static func * (a: Self, b: Int) -> Self { a.builder.binary(.mul, a, a.builder.literal(b, T.kind)) }
  /// Quotient, toward zero.
  public static func / (a: Self, b: Self) -> Self { a.builder.binary(.div, a, b.operand, b.builder) }
  /// Quotient by a constant, toward zero; by a power of two with shifts, because ptxas does not always see it.
  public static func / (a: Self, b: Int) -> Self {
    if b > 0, b & (b - 1) == 0 {
      if b == 1 { return a }
      // A shift rounds down; negative numbers are brought to the other side first.
      let dividend = isUnsigned ? a : a + ((a >> (T.kind.byteCount * 8 - 1)) & (b - 1))
      return dividend >> b.trailingZeroBitCount
    }
    return a.builder.binary(.div, a, a.builder.literal(b, T.kind))
  }
  /// Remainder.
  public static func % (a: Self, b: Self) -> Self { a.builder.binary(.rem, a, b.operand, b.builder) }
  /// Remainder by a constant; a mask of bits where that is the same: negative numbers have negative remainders.
  public static func % (a: Self, b: Int) -> Self {
    if isUnsigned, b > 0, b & (b - 1) == 0 { return a & (b - 1) }
    return a.builder.binary(.rem, a, a.builder.literal(b, T.kind))
  }

  private static var isUnsigned: Bool { T.kind == .u32 || T.kind == .u64 }
  /// Bits in both.
  public static func & (a: Self, b: Self) -> Self { a.builder.binary(.and, a, b.operand, b.builder) }
  /// Bits of a constant.
  public static func & (a: Self, b: Int) -> Self { a.builder.binary(.and, a, a.builder.literal(b, T.kind)) }
  /// Bits in either.
  public static func | (a: Self, b: Self) -> Self { a.builder.binary(.or, a, b.operand, b.builder) }
  /// Bits in either, one a constant.
  public static func | (a: Self, b: Int) -> Self { a.builder.binary(.or, a, a.builder.literal(b, T.kind)) }
  /// Bits in one only.
  public static func ^ (a: Self, b: Self) -> Self { a.builder.binary(.xor, a, b.operand, b.builder) }
  /// Bits in one only, one a constant.
  public static func ^ (a: Self, b: Int) -> Self { a.builder.binary(.xor, a, a.builder.literal(b, T.kind)) }
  /// Shift to the left; distances beyond the size give 0.
  public static func << (a: Self, b: Int) -> Self { a.builder.binary(.shl, a, a.builder.literal(b, T.kind)) }
  /// Shift to the right, by the sign of the type.
  public static func >> (a: Self, b: Int) -> Self { a.builder.binary(.shr, a, a.builder.literal(b, T.kind)) }
  /// Shift to the right by each lane's distance, by the sign of the type; distances beyond the size give 0, or -1.
  public static func >> (a: Self, b: Register<U32>) -> Self { a.builder.binary(.shr, a, b.operand, b.builder) }

  /// Whether each lane's value is equal.
  public static func .== (a: Self, b: Self) -> Predicate { a.builder.compare(.eq, a, b.operand, b.builder) }
  /// Whether it equals a constant.
  public static func .== (a: Self, b: Int) -> Predicate { a.builder.compare(.eq, a, a.builder.literal(b, T.kind)) }
  /// Whether it differs.
  public static func .!= (a: Self, b: Self) -> Predicate { a.builder.compare(.ne, a, b.operand, b.builder) }
  /// Whether it differs from a constant.
  public static func .!= (a: Self, b: Int) -> Predicate { a.builder.compare(.ne, a, a.builder.literal(b, T.kind)) }
  /// Whether it is less.
  public static func .< (a: Self, b: Self) -> Predicate { a.builder.compare(.lt, a, b.operand, b.builder) }
  /// Whether it is less than a constant.
  public static func .< (a: Self, b: Int) -> Predicate { a.builder.compare(.lt, a, a.builder.literal(b, T.kind)) }
  /// Whether it is at most.
  public static func .<= (a: Self, b: Self) -> Predicate { a.builder.compare(.le, a, b.operand, b.builder) }
  /// Whether it is at most a constant.
  public static func .<= (a: Self, b: Int) -> Predicate { a.builder.compare(.le, a, a.builder.literal(b, T.kind)) }
  /// Whether it is greater.
  public static func .> (a: Self, b: Self) -> Predicate { a.builder.compare(.gt, a, b.operand, b.builder) }
  /// Whether it is greater than a constant.
  public static func .> (a: Self, b: Int) -> Predicate { a.builder.compare(.gt, a, a.builder.literal(b, T.kind)) }
  /// Whether it is at least.
  public static func .>= (a: Self, b: Self) -> Predicate { a.builder.compare(.ge, a, b.operand, b.builder) }
  /// Whether it is at least a constant.
  public static func .>= (a: Self, b: Int) -> Predicate { a.builder.compare(.ge, a, a.builder.literal(b, T.kind)) }
}

extension Register where T: FloatType {
  /// Sum, rounded once.
  public static func + (a: Self, b: Self) -> Self { a.builder.binary(.add, a, b.operand, b.builder) }
  /// Difference, rounded once.
  public static func - (a: Self, b: Self) -> Self { a.builder.binary(.sub, a, b.operand, b.builder) }
  /// Product, rounded once.
  public static func * (a: Self, b: Self) -> Self { a.builder.binary(.mul, a, b.operand, b.builder) }
  /// Negation.
  public static prefix func - (a: Self) -> Self { a.builder.unary(.neg, a) }
}

extension Register where T == F32 {
  /// Sum with a constant.
  public static func + (a: Self, b: Float) -> Self { a.builder.binary(.add, a, .float(b)) }
  /// Difference with a constant.
  public static func - (a: Self, b: Float) -> Self { a.builder.binary(.sub, a, .float(b)) }
  /// Product with a constant.
  public static func * (a: Self, b: Float) -> Self { a.builder.binary(.mul, a, .float(b)) }
  /// Whether each lane's value is less; false for NaN.
  public static func .< (a: Self, b: Self) -> Predicate { a.builder.compare(.lt, a, b.operand, b.builder) }
  /// Whether it is less than a constant.
  public static func .< (a: Self, b: Float) -> Predicate { a.builder.compare(.lt, a, .float(b)) }
  /// Whether it is greater; false for NaN.
  public static func .> (a: Self, b: Self) -> Predicate { a.builder.compare(.gt, a, b.operand, b.builder) }
  /// Whether it is greater than a constant.
  public static func .> (a: Self, b: Float) -> Predicate { a.builder.compare(.gt, a, .float(b)) }
  /// Whether it is equal; false for NaN.
  public static func .== (a: Self, b: Float) -> Predicate { a.builder.compare(.eq, a, .float(b)) }
  /// Whether it differs; true for NaN.
  public static func .!= (a: Self, b: Float) -> Predicate { a.builder.compare(.ne, a, .float(b)) }
}

extension Register where T == Bool1 {
  /// Both.
  public static func & (a: Self, b: Self) -> Self { a.builder.binary(.and, a, b.operand, b.builder) }
  /// Either.
  public static func | (a: Self, b: Self) -> Self { a.builder.binary(.or, a, b.operand, b.builder) }
  /// Not.
  public static prefix func ! (a: Self) -> Self { a.builder.unary(.not, a) }
}

extension Operand {
  static func integer(_ value: Int) -> Operand { .immediate(UInt64(bitPattern: Int64(value))) }
  static func float(_ value: Float) -> Operand { .immediate(UInt64(value.bitPattern)) }
}
