internal import PTX

/// Sums as the tensor cores make them, bit for bit, by `wgmma` and by `mma.sync` (measured: NVIDIA H100 and H200, driver
/// 580, 2026-11-28, 1 210 880 sums by `wgmma` and 61 440 by `mma.sync`, all equal).
///
/// Of one product with its k, the terms are all products and what D held. The largest exponent counts: of a product
/// that of its factors together, not normalized. Every term is cut off, toward zero, so many bits below it: 25 for
/// 16-bit inputs, 13 for e4m3. Then the sum is exact, and is rounded once: to f32 toward zero, of e4m3 to 13 bits behind
/// the first; to f16 to nearest even.
///
/// One is made for a machine; a product is `begin`, the operands, `d`, and `compute`.
final class TensorCoreSums {
  private var depth = 0
  private var columns = 0
  private var inputs = WarpgroupMatrix.Inputs.f16
  private var accumulator = Matrix.Accumulator.f32
  /// Bits that terms keep below the largest exponent, and bits behind the point of a product of two fractions.
  private var kept = 0
  private var fraction = 0
  /// The exponent of the least normal number, which subnormal ones have.
  private var leastExponent: Int16 = 0
  /// A by 16 rows of k, B by k of N.
  let a, b: UnsafeMutablePointer<Float>
  /// The same, exactly, and their exponents: of zero so small that it never counts.
  private let wideA, wideB: UnsafeMutablePointer<Double>
  private let exponentsOfA, exponentsOfB: UnsafeMutablePointer<Int16>
  /// D by 16 rows of N.
  let d: UnsafeMutablePointer<Float>
  private var isFinite = true

  /// Of zero. What is added to the exponents of other numbers makes their sums positive, and sums with this negative.
  private static let none: Int16 = -8192
  private static let bias: Int16 = 256

  init() {
    let (depth, columns) = (32, 256)
    a = .allocate(capacity: 16 * depth)
    b = .allocate(capacity: depth * columns)
    wideA = .allocate(capacity: 16 * depth)
    wideB = .allocate(capacity: depth * columns)
    exponentsOfA = .allocate(capacity: 16 * depth)
    exponentsOfB = .allocate(capacity: depth * columns)
    d = .allocate(capacity: 16 * columns)
  }

  deinit {
    a.deallocate()
    b.deallocate()
    wideA.deallocate()
    wideB.deallocate()
    exponentsOfA.deallocate()
    exponentsOfB.deallocate()
    d.deallocate()
  }

  /// A product of 16 rows; every element of `a`, `b` and `d` must be set then.
  func begin(_ inputs: WarpgroupMatrix.Inputs, _ accumulator: Matrix.Accumulator, columns: Int) {
    (self.inputs, self.accumulator, self.columns, depth) = (inputs, accumulator, columns, inputs.depth)
    kept = inputs == .e4m3 ? 13 : 25
    (fraction, leastExponent) =
      switch inputs {
      case .f16: (20, -14)
      case .bf16: (14, -126)
      case .e4m3: (6, -6)
      }
    isFinite = true
  }

  /// Numbers as they are added, and their exponents.
  @inline(__always)
  private func widen(
    _ numbers: UnsafeMutablePointer<Float>, _ wide: UnsafeMutablePointer<Double>,
    _ exponents: UnsafeMutablePointer<Int16>, _ count: Int
  ) {
    var largest = SIMD8<UInt16>.zero
    let (least, none) = (SIMD8<Int16>(repeating: leastExponent), SIMD8<Int16>(repeating: Self.none))
    for place in stride(from: 0, to: count, by: 8) {
      let eight = UnsafeRawPointer(numbers + place).loadUnaligned(as: SIMD8<Float>.self)
      let bits = unsafeBitCast(eight, to: SIMD8<UInt32>.self)
      let field = SIMD8<UInt16>(truncatingIfNeeded: (bits &<< 1) &>> 24)
      largest.replace(with: field, where: field .> largest)
      var exponent = SIMD8<Int16>(truncatingIfNeeded: field) &- 127
      exponent.replace(with: least, where: exponent .< least)
      exponent = exponent &+ Self.bias
      // Some bit but the sign.
      let others = (bits &<< 1) | (bits &<< 17)
      exponent.replace(with: none, where: SIMD8<UInt16>(truncatingIfNeeded: others &>> 16) .== SIMD8<UInt16>.zero)
      UnsafeMutableRawPointer(exponents + place).storeBytes(of: exponent, as: SIMD8<Int16>.self)
      for i in 0..<8 { wide[place + i] = Double(numbers[place + i]) }
    }
    if largest.max() == 255 { isFinite = false }
  }

  /// Adds the product to `d`.
  func compute() {
    let (depth, columns, wideB, exponentsOfB) = (depth, columns, wideB, exponentsOfB)
    widen(a, wideA, exponentsOfA, 16 * depth)
    widen(b, wideB, exponentsOfB, depth * columns)
    for row in 0..<16 {
      let (line, exponents) = (wideA + row * depth, exponentsOfA + row * depth)
      for column in stride(from: 0, to: columns, by: 8) {
        // Exact sums, if nothing is cut off, and the largest and the least exponent of the products that are not zero.
        var sum = SIMD8<Double>.zero
        var most = SIMD8<Int16>(repeating: 2 * Self.none)
        var least = SIMD8<UInt16>(repeating: .max)
        for k in 0..<depth {
          let place = k &* columns &+ column
          sum += UnsafeRawPointer(wideB + place).loadUnaligned(as: SIMD8<Double>.self) * line[k]
          let both = UnsafeRawPointer(exponentsOfB + place).loadUnaligned(as: SIMD8<Int16>.self) &+ exponents[k]
          most.replace(with: both, where: both .> most)
          let unsigned = SIMD8<UInt16>(truncatingIfNeeded: both)
          least.replace(with: unsigned, where: unsigned .< least)
        }
        let place = d + row * columns + column
        for i in 0..<8 {
          let before = place[i]
          place[i] = rounded(sum[i], Int(most[i]), Int(least[i]), row, column + i, before: before)
        }
      }
    }
  }

  @inline(__always)
  private func rounded(
    _ sum: Double, _ most: Int, _ least: Int, _ row: Int, _ column: Int, before: Float
  ) -> Float {
    let field = Int((before.bitPattern << 1) >> 24)
    if !isFinite || field == 255 { return Float(sum) + before }
    let bias = 2 * Int(Self.bias)
    let own = before == 0 ? 2 * Int(Self.none) : (field == 0 ? Int(before.exponent) : field - 127) + bias
    let top = max(most, own)
    if top < 0 { return before }
    // 2^(kept - top) and its inverse: in units of the last bit kept, terms are whole numbers of 28 bits at most.
    let scale = Double(bitPattern: UInt64(truncatingIfNeeded: 1023 + kept - top + bias) << 52)
    let unit = Double(bitPattern: UInt64(truncatingIfNeeded: 1023 + top - kept - bias) << 52)
    var total = least < top - kept + fraction ? cut(row, column, scale, unit) : sum
    total += Double(Int(Double(before) * scale)) * unit
    if accumulator == .f16 { return Half.float(.f16x2, Half.bits(.f16x2, rounding: total)) }
    let near = Float(total)
    let bits = near.bitPattern &- (Double(near).magnitude > total.magnitude ? 1 : 0)
    return Float(bitPattern: inputs == .e4m3 ? bits & ~0x3ff : bits)
  }

  /// The sum of an element's products, each cut off.
  @inline(never)
  private func cut(_ row: Int, _ column: Int, _ scale: Double, _ unit: Double) -> Double {
    let (line, b) = (wideA + row * depth, wideB + column)
    var total = 0
    for k in 0..<depth { total += Int(line[k] * b[k &* columns] * scale) }
    return Double(total) * unit
  }
}
