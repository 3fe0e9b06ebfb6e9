internal import PTX

/// Sums as `wgmma` makes them, bit for bit (measured: NVIDIA H100, driver 580, 2026-11-28, 102 400 sums of each type, all
/// equal).
///
/// Of one product with its k, the terms are all products and what D held. The largest exponent counts: of a product
/// that of its factors together, not normalized. Every term is cut off, toward zero, so many bits below it: 25 for
/// 16-bit inputs, 13 for e4m3. Then the sum is exact, and is rounded once: to f32 toward zero, of e4m3 to 13 bits behind
/// the first; to f16 to nearest even.
final class WarpgroupSums {
  private let depth, columns: Int
  private let inputs: WarpgroupMatrix.Inputs
  private let accumulator: Matrix.Accumulator
  /// Bits that terms keep below the largest exponent, and bits behind the point of a product of two fractions.
  private let kept: Int
  private let fraction: Int
  /// B by k of N, A by rows of k, with their exponents: of zero so small that it never counts.
  private let b, a: UnsafeMutablePointer<Double>
  private let exponentsOfB, exponentsOfA: UnsafeMutablePointer<Int16>
  /// D by rows of N.
  let d: UnsafeMutablePointer<Float>
  private var isFinite = true

  private static let none: Int16 = -8192
  /// Value and exponent of each of the inputs' bits; of what is no finite number, none.
  private struct Table {
    let values: [Double]
    let exponents: [Int16]

    init(_ inputs: WarpgroupMatrix.Inputs) {
      values = (0..<(inputs == .e4m3 ? 256 : 65536)).map { bits in
        switch inputs {
        case .f16: Double(Float16(bitPattern: UInt16(bits)))
        case .bf16: Double(Float(bitPattern: UInt32(bits) << 16))
        case .e4m3: Double(Half.e4m3(UInt32(bits)))
        }
      }
      // Subnormal numbers have the exponent of the least normal one.
      let least: Int16 = inputs == .f16 ? -14 : inputs == .bf16 ? -126 : -6
      exponents = values.map { $0 == 0 || !$0.isFinite ? WarpgroupSums.none : max(Int16($0.exponent), least) }
    }
  }
  private static let tables: [WarpgroupMatrix.Inputs: Table] = Dictionary(
    uniqueKeysWithValues: WarpgroupMatrix.Inputs.allCases.map { ($0, Table($0)) })
  private let table: Table

  init(_ inputs: WarpgroupMatrix.Inputs, _ accumulator: Matrix.Accumulator, columns: Int) {
    (self.inputs, self.accumulator, self.columns, depth) = (inputs, accumulator, columns, inputs.depth)
    kept = inputs == .e4m3 ? 13 : 25
    fraction = inputs == .f16 ? 20 : inputs == .bf16 ? 14 : 6
    table = Self.tables[inputs]!
    b = .allocate(capacity: depth * columns)
    a = .allocate(capacity: 16 * depth)
    exponentsOfB = .allocate(capacity: depth * columns)
    exponentsOfA = .allocate(capacity: 16 * depth)
    d = .allocate(capacity: 16 * columns)
    d.initialize(repeating: 0, count: 16 * columns)
  }

  deinit {
    b.deallocate()
    a.deallocate()
    exponentsOfB.deallocate()
    exponentsOfA.deallocate()
    d.deallocate()
  }

  @inline(__always)
  func setA(_ row: Int, _ k: Int, _ bits: UInt32) {
    a[row * depth + k] = table.values[Int(bits)]
    exponentsOfA[row * depth + k] = table.exponents[Int(bits)]
    if !a[row * depth + k].isFinite { isFinite = false }
  }

  @inline(__always)
  func setB(_ k: Int, _ column: Int, _ bits: UInt32) {
    b[k * columns + column] = table.values[Int(bits)]
    exponentsOfB[column * depth + k] = table.exponents[Int(bits)]
    if !b[k * columns + column].isFinite { isFinite = false }
  }

  /// Adds the product to `d`.
  func compute() {
    let (a, b, d, depth, columns) = (a, b, d, depth, columns)
    for row in 0..<16 {
      let line = a + row * depth
      for column in stride(from: 0, to: columns, by: 8) {
        // Exact sums, if nothing is cut off.
        var sum = SIMD8<Double>.zero
        for k in 0..<depth {
          sum += UnsafeRawPointer(b + k * columns + column).loadUnaligned(as: SIMD8<Double>.self) * line[k]
        }
        for i in 0..<8 {
          let (most, least) = exponents(row, column + i)
          let place = row * columns + column + i
          d[place] = rounded(sum[i], Int(most), Int(least), row, column + i, before: d[place])
        }
      }
    }
  }

  /// The largest and the least exponent of an element's products; those of zeros do not count.
  @inline(__always)
  private func exponents(_ row: Int, _ column: Int) -> (most: Int16, least: Int16) {
    let (x, y) = (exponentsOfA + row * depth, exponentsOfB + column * depth)
    var (most, least) = (2 * Self.none, Int16.max)
    for k in 0..<depth {
      let sum = x[k] &+ y[k]
      most = max(most, sum)
      least = min(least, sum < Self.none / 2 ? .max : sum)
    }
    return (most, least)
  }

  private func rounded(
    _ sum: Double, _ most: Int, _ least: Int, _ row: Int, _ column: Int, before: Float
  ) -> Float {
    if !isFinite || !before.isFinite { return Float(sum) + before }
    let own = before == 0 ? 2 * Int(Self.none) : Int(before.exponent)
    let top = max(most, own)
    if top < Int(Self.none) / 2 { return before }
    // 2^(kept - top) and its inverse: in units of the last bit kept, terms are whole numbers of 28 bits at most.
    let scale = Double(bitPattern: UInt64(1023 + kept - top) << 52)
    let unit = Double(bitPattern: UInt64(1023 + top - kept) << 52)
    @inline(__always) func cut(_ value: Double) -> Double { Double(Int(value * scale)) * unit }
    var total = sum
    if least < top - kept + fraction {
      total = 0
      let (line, b, columns) = (a + row * depth, b + column, columns)
      for k in 0..<depth { total += cut(line[k] * b[k &* columns]) }
    }
    total += cut(Double(before))
    if accumulator == .f16 { return Half.float(.f16x2, Half.bits(.f16x2, rounding: total)) }
    var result = Float(total)
    if Double(result.magnitude) > total.magnitude { result = result > 0 ? result.nextDown : result.nextUp }
    return inputs == .e4m3 ? Float(bitPattern: result.bitPattern & ~0x3ff) : result
  }
}
