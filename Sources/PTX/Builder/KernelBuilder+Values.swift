// Where values come from: parameters, constants, special registers, arithmetic without an operator.
extension KernelBuilder {
  /// A number that the host passes.
  public func parameter<T: RegisterType>(
    _ name: String, _: T.Type, file: String = #fileID, line: Int = #line
  ) -> Register<T> {
    at(file, line)
    if ![.u32, .s32, .u64, .f32].contains(T.kind) {
      fail("A parameter cannot be \(T.kind); use U32, S32, U64 or F32.")
    }
    let index = addParameter(name, T.kind, .number)
    let result = make(T.self)
    emit(.memory(.loadParameter(index, d: result.id)))
    return result.named(name)
  }

  /// The address of global memory that the host passes.
  public func pointer(_ name: String, file: String = #fileID, line: Int = #line) -> Register<U64> {
    at(file, line)
    let index = addParameter(name, .u64, .address)
    let generic = make(U64.self)
    emit(.memory(.loadParameter(index, d: generic.id)))
    let result = make(U64.self)
    emit(.conversion(.globalAddress(d: result.id, a: generic.id)))
    return result.named(name)
  }

  /// A whole-number constant in a register.
  public func constant<T: IntegerType>(
    _ value: Int, _: T.Type, file: String = #fileID, line: Int = #line
  ) -> Register<T> {
    at(file, line)
    return moved(.integer(value), T.self)
  }

  /// An f32 constant in a register.
  public func constant(_ value: Float, file: String = #fileID, line: Int = #line) -> Register<F32> {
    at(file, line)
    return moved(.float(value), F32.self)
  }

  /// Two equal 16-bit floats, by their bits.
  public func constant<T: PackedType>(
    bits: UInt16, _: T.Type, file: String = #fileID, line: Int = #line
  ) -> Register<T> {
    at(file, line)
    return moved(.immediate(UInt64(bits) << 16 | UInt64(bits)), T.self)
  }

  private func moved<T: RegisterType>(_ value: Operand, _: T.Type) -> Register<T> {
    let result = make(T.self)
    emit(.arithmetic(.move(T.kind, d: result.id, a: value)))
    return result
  }

  /// A value that the hardware provides: the thread, the block, the lane.
  public func special(_ register: SpecialRegister, file: String = #fileID, line: Int = #line) -> Register<U32> {
    at(file, line)
    let result = make(U32.self)
    emit(.arithmetic(.readSpecial(register, d: result.id)))
    return result.named(String(register.rawValue.dropFirst()))
  }

  /// `a * b + c`; of floats, rounded once.
  public func multiplyAdd<T: RegisterType>(
    _ a: Register<T>, _ b: Register<T>, _ c: Register<T>, file: String = #fileID, line: Int = #line
  ) -> Register<T> {
    at(file, line)
    for register in [a, b, c] { check(register) }
    require(T.kind, isNoneOf: [.predicate, .b16], "multiply-add")
    let result = make(T.self)
    emit(.arithmetic(.multiplyAdd(T.kind, d: result.id, a: a.operand, b: b.operand, c: c.operand)))
    return result
  }

  /// The 64-bit product of 32-bit numbers.
  public func multiplyWide(
    _ a: Register<U32>, _ b: Register<U32>, file: String = #fileID, line: Int = #line
  ) -> Register<U64> {
    at(file, line)
    check(a)
    check(b)
    let result = make(U64.self)
    emit(.arithmetic(.multiplyWide(.u32, d: result.id, a: a.operand, b: b.operand)))
    return result
  }

  /// The 64-bit product with a constant.
  public func multiplyWide(
    _ a: Register<U32>, _ b: Int, file: String = #fileID, line: Int = #line
  ) -> Register<U64> {
    at(file, line)
    check(a)
    let result = make(U64.self)
    emit(.arithmetic(.multiplyWide(.u32, d: result.id, a: a.operand, b: .integer(b))))
    return result
  }

  /// The smaller; of floats, the one that is a number.
  public func minimum<T: RegisterType>(
    _ a: Register<T>, _ b: Register<T>, file: String = #fileID, line: Int = #line
  ) -> Register<T> {
    at(file, line)
    require(T.kind, isNoneOf: [.predicate, .b16], "minimum")
    return binary(.min, a, b.operand, b.builder)
  }

  /// The larger; of floats, the one that is a number.
  public func maximum<T: RegisterType>(
    _ a: Register<T>, _ b: Register<T>, file: String = #fileID, line: Int = #line
  ) -> Register<T> {
    at(file, line)
    require(T.kind, isNoneOf: [.predicate, .b16], "maximum")
    return binary(.max, a, b.operand, b.builder)
  }

  /// 2^x, within 2 ulp; subnormals are zero.
  public func exp2<T: FloatType>(_ x: Register<T>, file: String = #fileID, line: Int = #line) -> Register<T> {
    at(file, line)
    return unary(.exp2, x)
  }

  /// 1/x, within 1 ulp; subnormals are zero.
  public func reciprocal(_ x: Register<F32>, file: String = #fileID, line: Int = #line) -> Register<F32> {
    at(file, line)
    return unary(.reciprocal, x)
  }

  /// Base-2 logarithm, with an absolute error of 2^-22.6 around 1; subnormals are zero.
  public func log2(_ x: Register<F32>, file: String = #fileID, line: Int = #line) -> Register<F32> {
    at(file, line)
    return unary(.log2, x)
  }

  /// How many bits are set.
  public func population(_ bits: Register<U32>, file: String = #fileID, line: Int = #line) -> Register<U32> {
    at(file, line)
    return unary(.popc, bits)
  }

  /// The magnitude.
  public func absolute<T: RegisterType>(
    _ x: Register<T>, file: String = #fileID, line: Int = #line
  ) -> Register<T> {
    at(file, line)
    require(T.kind, isNoneOf: [.predicate, .b16, .u32, .u64], "absolute value")
    return unary(.abs, x)
  }

  /// `a` where the predicate holds, `b` elsewhere.
  public func select<T: RegisterType>(
    _ predicate: Predicate, _ a: Register<T>, _ b: Register<T>, file: String = #fileID, line: Int = #line
  ) -> Register<T> {
    at(file, line)
    check(predicate)
    check(a)
    check(b)
    require(T.kind, isNoneOf: [.predicate], "selection")
    let result = make(T.self)
    emit(.arithmetic(.select(T.kind, d: result.id, a: a.operand, b: b.operand, p: predicate.id)))
    return result
  }

  /// `a` where the predicate holds, a constant elsewhere.
  public func select(
    _ predicate: Predicate, _ a: Register<F32>, _ b: Float, file: String = #fileID, line: Int = #line
  ) -> Register<F32> {
    at(file, line)
    check(predicate)
    check(a)
    let result = make(F32.self)
    emit(.arithmetic(.select(.f32, d: result.id, a: a.operand, b: .float(b), p: predicate.id)))
    return result
  }

  /// One of two constants.
  public func select<T: IntegerType>(
    _ predicate: Predicate, _ a: Int, _ b: Int, _: T.Type, file: String = #fileID, line: Int = #line
  ) -> Register<T> {
    at(file, line)
    check(predicate)
    let result = make(T.self)
    emit(.arithmetic(.select(T.kind, d: result.id, a: .integer(a), b: .integer(b), p: predicate.id)))
    return result
  }

  /// Four bytes picked from the eight of {b, a} by the nibbles of the selector, the lowest first.
  public func permute(
    _ a: Register<U32>, _ b: Register<U32>, selector: UInt16, file: String = #fileID, line: Int = #line
  ) -> Register<U32> {
    at(file, line)
    check(a)
    check(b)
    let result = make(U32.self)
    emit(.arithmetic(.permute(d: result.id, a: a.operand, b: b.operand, selector: .immediate(UInt64(selector)))))
    return result
  }

  /// A boolean function of three words, by its truth table: that of `0xF0, 0xCC, 0xAA`.
  public func logic3(
    _ a: Register<U32>, _ b: Register<U32>, _ c: Register<U32>, table: UInt8, file: String = #fileID,
    line: Int = #line
  ) -> Register<U32> {
    at(file, line)
    for register in [a, b, c] { check(register) }
    let result = make(U32.self)
    emit(.arithmetic(.logic3(d: result.id, a: a.operand, b: b.operand, c: c.operand, table: table)))
    return result
  }

  // MARK: - Conversions

  /// Two f32 as two 16-bit floats, to nearest even.
  public func pack<T: PackedType>(
    _ low: Register<F32>, _ high: Register<F32>, as _: T.Type, file: String = #fileID, line: Int = #line
  ) -> Register<T> {
    at(file, line)
    check(low)
    check(high)
    let result = make(T.self)
    emit(.conversion(.pack16(T.kind, d: result.id, low: low.operand, high: high.operand)))
    return result
  }

  /// The two halves of a packed register as f32, exact.
  public func unpack<T: PackedType>(
    _ pair: Register<T>, file: String = #fileID, line: Int = #line
  ) -> (low: Register<F32>, high: Register<F32>) {
    at(file, line)
    check(pair)
    if T.kind == .bf16x2 {
      // bfloat16 is the upper half of an f32.
      let bits = pair.reinterpreted(as: U32.self, file: file, line: line)
      return (
        (bits << 16).reinterpreted(as: F32.self, file: file, line: line),
        (bits & 0xffff_0000).reinterpreted(as: F32.self, file: file, line: line)
      )
    }
    let (low, high) = (make(B16.self), make(B16.self))
    emit(.arithmetic(.unpack(low: low.id, high: high.id, a: pair.id)))
    return (widened(low), widened(high))
  }

  private func widened(_ half: Register<B16>) -> Register<F32> {
    let result = make(F32.self)
    emit(.conversion(.floatFromF16(d: result.id, a: half.id)))
    return result
  }

  /// A 32-bit integer as f32, to nearest even.
  public func float<T: IntegerType>(_ value: Register<T>, file: String = #fileID, line: Int = #line) -> Register<F32> {
    at(file, line)
    check(value)
    if T.kind.byteCount != 4 { fail("Only 32-bit integers are converted to f32; this one is \(T.kind).") }
    let result = make(F32.self)
    emit(.conversion(.floatFromInteger(T.kind, d: result.id, a: value.operand)))
    return result
  }

  /// A whole number near a float, clamped to the range of the type; NaN gives 0.
  public func integer<T: IntegerType>(
    _ value: Register<F32>, _ rounding: Conversion.IntegerRounding, as _: T.Type, file: String = #fileID,
    line: Int = #line
  ) -> Register<T> {
    at(file, line)
    check(value)
    if T.kind.byteCount != 4 { fail("f32 is converted to 32-bit integers only; \(T.kind) has 64.") }
    let result = make(T.self)
    emit(.conversion(.integerFromFloat(T.kind, rounding, d: result.id, a: value.operand)))
    return result
  }

  /// One f32 as f16, to nearest even.
  public func f16(_ value: Register<F32>, file: String = #fileID, line: Int = #line) -> Register<B16> {
    at(file, line)
    check(value)
    let result = make(B16.self)
    emit(.conversion(.f16FromFloat(d: result.id, a: value.operand)))
    return result
  }

  /// One f32 as bf16, to nearest even.
  public func bf16(_ value: Register<F32>, file: String = #fileID, line: Int = #line) -> Register<B16> {
    at(file, line)
    check(value)
    let result = make(B16.self)
    emit(.conversion(.bf16FromFloat(d: result.id, a: value.operand)))
    return result
  }

  /// Two 16-bit halves as a word.
  public func word(
    low: Register<B16>, high: Register<B16>, file: String = #fileID, line: Int = #line
  ) -> Register<U32> {
    at(file, line)
    check(low)
    check(high)
    let result = make(U32.self)
    emit(.arithmetic(.pack(d: result.id, low: low.id, high: high.id)))
    return result
  }

  /// The upper half of the product.
  public func multiplyHigh<T: IntegerType>(
    _ a: Register<T>, _ b: Register<T>, file: String = #fileID, line: Int = #line
  ) -> Register<T> {
    at(file, line)
    return binary(.mulHigh, a, b.operand, b.builder)
  }

  /// A 32-bit number as 64 bits, by its sign.
  public func wide<T: IntegerType>(_ value: Register<T>, file: String = #fileID, line: Int = #line) -> Register<U64> {
    at(file, line)
    check(value)
    if T.kind.byteCount != 4 { fail("\(T.kind) is 64 bits wide already.") }
    let result = make(U64.self)
    emit(.conversion(.widen(T.kind, d: result.id, a: value.operand)))
    return result
  }

  /// The low 32 bits.
  public func narrow(_ value: Register<U64>, file: String = #fileID, line: Int = #line) -> Register<U32> {
    at(file, line)
    check(value)
    let result = make(U32.self)
    emit(.conversion(.narrow(d: result.id, a: value.operand)))
    return result
  }

  /// Two f32 as two e4m3 in 16 bits, to nearest even; beyond 448, to 448. Needs sm_89.
  public func packE4M3(
    _ low: Register<F32>, _ high: Register<F32>, file: String = #fileID, line: Int = #line
  ) -> Register<B16> {
    at(file, line)
    check(low)
    check(high)
    let result = make(B16.self)
    emit(.conversion(.packE4M3(d: result.id, low: low.operand, high: high.operand)))
    return result
  }

  /// Two e4m3 as two f16, exact. Needs sm_89.
  public func unpackE4M3(
    _ pair: Register<B16>, file: String = #fileID, line: Int = #line
  ) -> Register<F16x2> {
    at(file, line)
    check(pair)
    let result = make(F16x2.self)
    emit(.conversion(.f16x2FromE4M3x2(d: result.id, a: pair.id)))
    return result
  }

  /// A 32-bit word as two 16-bit halves, the low one first.
  public func halves(
    _ word: Register<U32>, file: String = #fileID, line: Int = #line
  ) -> (low: Register<B16>, high: Register<B16>) {
    at(file, line)
    check(word)
    let (low, high) = (make(B16.self), make(B16.self))
    emit(.arithmetic(.unpack(low: low.id, high: high.id, a: word.id)))
    return (low, high)
  }
}
