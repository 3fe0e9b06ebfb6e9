internal import PTX

extension Machine {
  func execute(_ instruction: Conversion, _ r: Registers, _ mask: UInt32) {
    switch instruction {
    case .pack16(let kind, let d, let low, let high):
      let (d, low, high) = (r.words(d), r.floats(low), r.floats(high))
      forEachLane(mask) { d[$0] = Half.bits(kind, high[$0]) << 16 | Half.bits(kind, low[$0]) }
    case .floatFromF16(let d, let a):
      let (d, a) = (r.floats(d), r.words(a))
      forEachLane(mask) { d[$0] = canonical(Half.float(.f16x2, a[$0])) }
    case .f16FromFloat(let d, let a):
      let (d, a) = (r.words(d), r.floats(a))
      forEachLane(mask) { d[$0] = Half.bits(.f16x2, a[$0]) }
    case .bf16FromFloat(let d, let a):
      let (d, a) = (r.words(d), r.floats(a))
      forEachLane(mask) { d[$0] = Half.bits(.bf16x2, a[$0]) }
    case .packE4M3(let d, let low, let high):
      let (d, low, high) = (r.words(d), r.floats(low), r.floats(high))
      forEachLane(mask) { d[$0] = Half.e4m3Bits(high[$0]) << 8 | Half.e4m3Bits(low[$0]) }
    case .f16x2FromE4M3x2(let d, let a):
      let (d, a) = (r.words(d), r.words(a))
      forEachLane(mask) {
        d[$0] =
          Half.bits(.f16x2, Half.e4m3(a[$0] >> 8 & 0xff)) << 16 | Half.bits(.f16x2, Half.e4m3(a[$0] & 0xff))
      }
    case .floatFromInteger(let kind, let d, let a):
      let (d, a) = (r.floats(d), r.words(a))
      if kind == .s32 {
        forEachLane(mask) { d[$0] = Float(Int32(bitPattern: a[$0])) }
      } else {
        forEachLane(mask) { d[$0] = Float(a[$0]) }
      }
    case .integerFromFloat(let kind, let rounding, let d, let a):
      let (d, a) = (r.words(d), r.floats(a))
      forEachLane(mask) { d[$0] = integer(a[$0], kind, rounding) }
    case .widen(let kind, let d, let a):
      let (d, a) = (r.longs(d), r.words(a))
      if kind == .s32 {
        forEachLane(mask) { d[$0] = UInt64(bitPattern: Int64(Int32(bitPattern: a[$0]))) }
      } else {
        forEachLane(mask) { d[$0] = UInt64(a[$0]) }
      }
    case .narrow(let d, let a):
      let (d, a) = (r.words(d), r.longs(a))
      forEachLane(mask) { d[$0] = UInt32(truncatingIfNeeded: a[$0]) }
    case .globalAddress(let d, let a):
      let (d, a) = (r.longs(d), r.longs(a))
      forEachLane(mask) { d[$0] = a[$0] }
    }
  }

  private func integer(_ value: Float, _ kind: RegisterKind, _ rounding: Conversion.IntegerRounding) -> UInt32 {
    if value.isNaN { return 0 }
    let rule: FloatingPointRoundingRule =
      switch rounding {
      case .nearest: .toNearestOrEven
      case .towardZero: .towardZero
      case .down: .down
      case .up: .up
      }
    let whole = Double(value.rounded(rule))
    return kind == .s32
      ? UInt32(bitPattern: Int32(min(max(whole, -2_147_483_648), 2_147_483_647)))
      : UInt32(min(max(whole, 0), 4_294_967_295))
  }
}
