internal import PTX

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

extension Machine {
  func execute(_ instruction: Arithmetic, _ warp: Warp, _ block: Block, _ mask: UInt32) {
    let r = warp.registers
    switch instruction {
    case .binary(let operation, let kind, let d, let a, let b):
      binary(operation, kind, d, a, b, r, mask)
    case .multiplyAdd(let kind, let d, let a, let b, let c):
      multiplyAdd(kind, d, a, b, c, r, mask)
    case .multiplyWide(let kind, let d, let a, let b):
      let (d, a, b) = (r.longs(d), r.words(a), r.words(b))
      if kind == .s32 {
        forEachLane(mask) {
          d[$0] = UInt64(bitPattern: Int64(Int32(bitPattern: a[$0])) * Int64(Int32(bitPattern: b[$0])))
        }
      } else {
        forEachLane(mask) { d[$0] = UInt64(a[$0]) * UInt64(b[$0]) }
      }
    case .unary(let operation, let kind, let d, let a):
      unary(operation, kind, d, a, r, mask)
    case .compare(let comparison, let kind, let d, let a, let b):
      compare(comparison, kind, d, a, b, r, mask)
    case .select(let kind, let d, let a, let b, let p):
      let p = r.predicate(p)
      if kind.byteCount == 8 {
        let (d, a, b) = (r.longs(d), r.longs(a), r.longs(b))
        forEachLane(mask) { d[$0] = p >> UInt32($0) & 1 == 1 ? a[$0] : b[$0] }
      } else {
        let (d, a, b) = (r.words(d), r.words(a), r.words(b))
        forEachLane(mask) { d[$0] = p >> UInt32($0) & 1 == 1 ? a[$0] : b[$0] }
      }
    case .move(let kind, let d, let a):
      if kind == .predicate {
        r.setPredicate(d, r.words(a)[0], mask: mask)
      } else if kind.byteCount == 8 {
        let (d, a) = (r.longs(d), r.longs(a))
        forEachLane(mask) { d[$0] = a[$0] }
      } else {
        let (d, a) = (r.words(d), r.words(a))
        forEachLane(mask) { d[$0] = a[$0] }
      }
    case .readSpecial(let special, let d):
      let d = r.words(d)
      forEachLane(mask) { d[$0] = value(of: special, warp, block, lane: $0) }
    case .permute(let d, let a, let b, let selector):
      let (d, a, b, selector) = (r.words(d), r.words(a), r.words(b), r.words(selector))
      forEachLane(mask) { d[$0] = permuted(UInt64(b[$0]) << 32 | UInt64(a[$0]), selector[$0]) }
    case .logic3(let d, let a, let b, let c, let table):
      let (d, a, b, c) = (r.words(d), r.words(a), r.words(b), r.words(c))
      forEachLane(mask) { d[$0] = logic(a[$0], b[$0], c[$0], table) }
    case .pack(let d, let low, let high):
      if d.kind.byteCount == 8 {
        let (d, low, high) = (r.longs(d), r.words(low), r.words(high))
        forEachLane(mask) { d[$0] = UInt64(high[$0]) << 32 | UInt64(low[$0]) }
      } else {
        let (d, low, high) = (r.words(d), r.words(low), r.words(high))
        forEachLane(mask) { d[$0] = high[$0] << 16 | low[$0] & 0xffff }
      }
    case .unpack(let low, let high, let a):
      if a.kind.byteCount == 8 {
        let (low, high, a) = (r.words(low), r.words(high), r.longs(a))
        forEachLane(mask) { (low[$0], high[$0]) = (UInt32(truncatingIfNeeded: a[$0]), UInt32(a[$0] >> 32)) }
      } else {
        let (low, high, a) = (r.words(low), r.words(high), r.words(a))
        forEachLane(mask) { (low[$0], high[$0]) = (a[$0] & 0xffff, a[$0] >> 16) }
      }
    }
  }

  private func value(of special: SpecialRegister, _ warp: Warp, _ block: Block, lane: Int) -> UInt32 {
    switch special {
    case .threadX: UInt32(warp.index * 32 + lane)
    case .threadY, .threadZ: 0
    case .blockX: block.coordinates.x
    case .blockY: block.coordinates.y
    case .blockZ: block.coordinates.z
    case .threadsX: UInt32(program.kernel.threadsPerBlock)
    case .threadsY, .threadsZ: 1
    case .blocksX: UInt32(launch.blocks.x)
    case .blocksY: UInt32(launch.blocks.y)
    case .blocksZ: UInt32(launch.blocks.z)
    case .lane: UInt32(lane)
    case .clusterRank: UInt32(block.index % (program.kernel.clusterSize ?? 1))
    }
  }

  // MARK: - Two operands

  private func binary(
    _ operation: Arithmetic.BinaryOperation, _ kind: RegisterKind, _ d: RegisterID, _ a: Operand, _ b: Operand,
    _ r: Registers, _ mask: UInt32
  ) {
    switch kind {
    case .predicate:
      let (a, b) = (r.words(a)[0], r.words(b)[0])
      let result =
        switch operation {
        case .and: a & b
        case .or: a | b
        case .xor: a ^ b
        default: preconditionFailure("Predicates have no \(operation).")
        }
      r.setPredicate(d, result, mask: mask)
    case .f32:
      let (d, a, b) = (r.floats(d), r.floats(a), r.floats(b))
      floating(operation, d, a, b, mask)
    case .f16x2, .bf16x2:
      let (d, a, b) = (r.words(d), r.words(a), r.words(b))
      forEachLane(mask) { lane in
        d[lane] = packed(kind, a[lane], b[lane]) { x, y in
          var result: Float = 0
          withUnsafePointer(to: x) { x in
            withUnsafePointer(to: y) { y in floating(operation, &result, x, y, 1) }
          }
          return result
        }
      }
    case .u64, .s64:
      let (d, a) = (r.longs(d), r.longs(a))
      if operation == .shl || operation == .shr {
        let b = r.words(b)
        forEachLane(mask) { d[$0] = shifted(operation, kind, a[$0], b[$0]) }
        return
      }
      let b = r.longs(b)
      if kind == .s64 {
        forEachLane(mask) {
          d[$0] = UInt64(bitPattern: integer(operation, Int64(bitPattern: a[$0]), Int64(bitPattern: b[$0])))
        }
      } else {
        forEachLane(mask) { d[$0] = integer(operation, a[$0], b[$0]) }
      }
    default:
      let (d, a, b) = (r.words(d), r.words(a), r.words(b))
      switch (operation, kind) {
      // The frequent ones as loops of their own.
      case (.add, _): forEachLane(mask) { d[$0] = a[$0] &+ b[$0] }
      case (.sub, _): forEachLane(mask) { d[$0] = a[$0] &- b[$0] }
      case (.mul, _): forEachLane(mask) { d[$0] = a[$0] &* b[$0] }
      case (.and, _): forEachLane(mask) { d[$0] = a[$0] & b[$0] }
      case (.or, _): forEachLane(mask) { d[$0] = a[$0] | b[$0] }
      case (.xor, _): forEachLane(mask) { d[$0] = a[$0] ^ b[$0] }
      case (.shl, _), (.shr, _):
        forEachLane(mask) { lane in
          let wide = kind == .s32 ? UInt64(bitPattern: Int64(Int32(bitPattern: a[lane]))) : UInt64(a[lane])
          d[lane] = UInt32(
            truncatingIfNeeded: shifted(
              operation, kind == .s32 ? .s64 : .u64, wide,
              min(b[lane], operation == .shl && b[lane] >= 32 ? 64 : b[lane])))
        }
      case (_, .s32):
        forEachLane(mask) {
          d[$0] = UInt32(bitPattern: integer(operation, Int32(bitPattern: a[$0]), Int32(bitPattern: b[$0])))
        }
      default:
        forEachLane(mask) { d[$0] = integer(operation, a[$0], b[$0]) }
      }
    }
  }

  private func shifted(
    _ operation: Arithmetic.BinaryOperation, _ kind: RegisterKind, _ a: UInt64, _ distance: UInt32
  ) -> UInt64 {
    // Swift's smart shifts give what PTX defines for distances beyond the size.
    if operation == .shl { return a << UInt64(distance) }
    return kind == .s64 ? UInt64(bitPattern: Int64(bitPattern: a) >> Int64(distance)) : a >> UInt64(distance)
  }

  private func integer<T: FixedWidthInteger>(_ operation: Arithmetic.BinaryOperation, _ a: T, _ b: T) -> T {
    switch operation {
    case .add: a &+ b
    case .sub: a &- b
    case .mul: a &* b
    case .mulHigh: T(truncatingIfNeeded: a.multipliedFullWidth(by: b).high)
    // Of a division by zero PTX says nothing; the hardware gives all ones (seen on an H200).
    case .div: b == 0 ? ~0 : a.dividedReportingOverflow(by: b).partialValue
    case .rem: b == 0 ? ~0 : a.remainderReportingOverflow(dividingBy: b).partialValue
    case .min: Swift.min(a, b)
    case .max: Swift.max(a, b)
    case .and: a & b
    case .or: a | b
    case .xor: a ^ b
    case .shl, .shr: preconditionFailure("Shifts take a 32-bit distance.")
    }
  }

  private func floating(
    _ operation: Arithmetic.BinaryOperation, _ d: UnsafeMutablePointer<Float>, _ a: UnsafePointer<Float>,
    _ b: UnsafePointer<Float>, _ mask: UInt32
  ) {
    switch operation {
    case .add: forEachLane(mask) { d[$0] = canonical(a[$0] + b[$0]) }
    case .sub: forEachLane(mask) { d[$0] = canonical(a[$0] - b[$0]) }
    case .mul: forEachLane(mask) { d[$0] = canonical(a[$0] * b[$0]) }
    case .div: forEachLane(mask) { d[$0] = canonical(a[$0] / b[$0]) }
    // The one that is a number; -0 is less than 0.
    case .min: forEachLane(mask) { d[$0] = canonical(minimum(a[$0], b[$0])) }
    case .max: forEachLane(mask) { d[$0] = canonical(-minimum(-a[$0], -b[$0])) }
    case .mulHigh, .rem, .and, .or, .xor, .shl, .shr: preconditionFailure("Floats have no \(operation).")
    }
  }

  private func minimum(_ a: Float, _ b: Float) -> Float {
    if a.isNaN { return b }
    if b.isNaN { return a }
    if a == b { return a.sign == .minus ? a : b }
    return a < b ? a : b
  }

  /// Applies `body` to both halves of packed 16-bit floats; exact in f32, then rounded once.
  private func packed(_ kind: RegisterKind, _ a: UInt32, _ b: UInt32, _ body: (Float, Float) -> Float) -> UInt32 {
    let low = Half.bits(kind, body(Half.float(kind, a), Half.float(kind, b)))
    let high = Half.bits(kind, body(Half.float(kind, a >> 16), Half.float(kind, b >> 16)))
    return high << 16 | low
  }

  // MARK: - Others

  private func multiplyAdd(
    _ kind: RegisterKind, _ d: RegisterID, _ a: Operand, _ b: Operand, _ c: Operand, _ r: Registers, _ mask: UInt32
  ) {
    switch kind {
    case .f32:
      let (d, a, b, c) = (r.floats(d), r.floats(a), r.floats(b), r.floats(c))
      forEachLane(mask) { d[$0] = canonical(c[$0].addingProduct(a[$0], b[$0])) }
    case .f16x2, .bf16x2:
      let (d, a, b, c) = (r.words(d), r.words(a), r.words(b), r.words(c))
      forEachLane(mask) { lane in
        var result: UInt32 = 0
        for shift: UInt32 in [0, 16] {
          // The product of two 16-bit floats is exact in 64 bits.
          let product = Double(Half.float(kind, a[lane] >> shift)) * Double(Half.float(kind, b[lane] >> shift))
          let sum = sumToOdd(product, Double(Half.float(kind, c[lane] >> shift)))
          result |= Half.bits(kind, rounding: sum) << shift
        }
        d[lane] = result
      }
    case .u64, .s64:
      let (d, a, b, c) = (r.longs(d), r.longs(a), r.longs(b), r.longs(c))
      forEachLane(mask) { d[$0] = a[$0] &* b[$0] &+ c[$0] }
    default:
      let (d, a, b, c) = (r.words(d), r.words(a), r.words(b), r.words(c))
      forEachLane(mask) { d[$0] = a[$0] &* b[$0] &+ c[$0] }
    }
  }

  /// a + b rounded to odd: a later rounding to fewer digits then gives what one rounding would have (S. Boldo,
  /// G. Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008).
  private func sumToOdd(_ a: Double, _ b: Double) -> Double {
    let sum = a + b
    let shareOfB = sum - a
    let rest = (a - (sum - shareOfB)) + (b - shareOfB)
    if rest == 0 || !rest.isFinite { return sum }
    let isTooLarge = (rest < 0) != (sum < 0)
    return Double(bitPattern: (sum.bitPattern - (isTooLarge ? 1 : 0)) | 1)
  }

  private func unary(
    _ operation: Arithmetic.UnaryOperation, _ kind: RegisterKind, _ d: RegisterID, _ a: Operand, _ r: Registers,
    _ mask: UInt32
  ) {
    if kind == .predicate {
      r.setPredicate(d, ~r.words(a)[0], mask: mask)
      return
    }
    if operation == .exp2 { counters.exponentials += mask.nonzeroBitCount * (kind == .f32 ? 1 : 2) }
    switch kind {
    case .f32:
      let (d, a) = (r.floats(d), r.floats(a))
      forEachLane(mask) { d[$0] = canonical(floating(operation, a[$0])) }
    case .f16x2, .bf16x2:
      let (d, a) = (r.words(d), r.words(a))
      // f16 keeps its subnormals, which are normal in f32.
      forEachLane(mask) { lane in d[lane] = packed(kind, a[lane], 0) { x, _ in floating(operation, x) } }
    case .u64, .s64:
      let (d, a) = (r.longs(d), r.longs(a))
      if operation == .popc {
        let d = UnsafeMutableRawPointer(d).assumingMemoryBound(to: UInt32.self)
        forEachLane(mask) { d[$0] = UInt32(a[$0].nonzeroBitCount) }
      } else {
        forEachLane(mask) { d[$0] = UInt64(bitPattern: integer(operation, Int64(bitPattern: a[$0]))) }
      }
    default:
      let (d, a) = (r.words(d), r.words(a))
      forEachLane(mask) { d[$0] = UInt32(bitPattern: integer(operation, Int32(bitPattern: a[$0]))) }
    }
  }

  private func integer<T: FixedWidthInteger & SignedInteger>(_ operation: Arithmetic.UnaryOperation, _ a: T) -> T {
    switch operation {
    case .neg: 0 &- a
    case .abs: a < 0 ? 0 &- a : a
    case .not: ~a
    case .popc: T(a.nonzeroBitCount)
    case .exp2, .reciprocal, .log2: preconditionFailure("Integers have no \(operation).")
    }
  }

  private func floating(_ operation: Arithmetic.UnaryOperation, _ a: Float) -> Float {
    switch operation {
    case .neg: return -a
    case .abs: return a.magnitude
    case .exp2: return flushed(exp2f(flushed(a)))
    case .reciprocal: return flushed(1 / flushed(a))
    case .log2: return log2f(flushed(a))
    case .not, .popc: preconditionFailure("Floats have no \(operation).")
    }
  }

  private func compare(
    _ comparison: Arithmetic.Comparison, _ kind: RegisterKind, _ d: RegisterID, _ a: Operand, _ b: Operand,
    _ r: Registers, _ mask: UInt32
  ) {
    var result: UInt32 = 0
    switch kind {
    case .f32:
      let (a, b) = (r.floats(a), r.floats(b))
      forEachLane(mask) { if holds(comparison, a[$0], b[$0]) { result |= 1 << UInt32($0) } }
    case .u64:
      let (a, b) = (r.longs(a), r.longs(b))
      forEachLane(mask) { if holds(comparison, a[$0], b[$0]) { result |= 1 << UInt32($0) } }
    case .s64:
      let (a, b) = (r.longs(a), r.longs(b))
      forEachLane(mask) {
        if holds(comparison, Int64(bitPattern: a[$0]), Int64(bitPattern: b[$0])) { result |= 1 << UInt32($0) }
      }
    case .s32:
      let (a, b) = (r.words(a), r.words(b))
      forEachLane(mask) {
        if holds(comparison, Int32(bitPattern: a[$0]), Int32(bitPattern: b[$0])) { result |= 1 << UInt32($0) }
      }
    default:
      let (a, b) = (r.words(a), r.words(b))
      forEachLane(mask) { if holds(comparison, a[$0], b[$0]) { result |= 1 << UInt32($0) } }
    }
    r.setPredicate(d, result, mask: mask)
  }

  @inline(__always)
  private func holds<T: Comparable>(_ comparison: Arithmetic.Comparison, _ a: T, _ b: T) -> Bool {
    switch comparison {
    case .eq: a == b
    case .ne: a != b
    case .lt: a < b
    case .le: a <= b
    case .gt: a > b
    case .ge: a >= b
    }
  }

  /// Each nibble of the selector picks a byte; its top bit asks for the byte's sign in all bits.
  private func permuted(_ bytes: UInt64, _ selector: UInt32) -> UInt32 {
    (0..<4).reduce(UInt32(0)) { result, i in
      let nibble = selector >> UInt32(4 * i) & 0xf
      var byte = UInt32(truncatingIfNeeded: bytes >> UInt64(8 * (nibble & 7))) & 0xff
      if nibble & 8 != 0 { byte = byte & 0x80 != 0 ? 0xff : 0 }
      return result | byte << UInt32(8 * i)
    }
  }

  private func logic(_ a: UInt32, _ b: UInt32, _ c: UInt32, _ table: UInt8) -> UInt32 {
    var result: UInt32 = 0
    for row in 0..<8 where table >> UInt8(row) & 1 == 1 {
      result |= (row & 4 != 0 ? a : ~a) & (row & 2 != 0 ? b : ~b) & (row & 1 != 0 ? c : ~c)
    }
    return result
  }
}

/// What `.ftz` makes of a number: subnormals are zero, going in and coming out.
func flushed(_ x: Float) -> Float { x.isSubnormal ? (x.sign == .minus ? -0.0 : 0.0) : x }
