import Attention
import CPUAttention
import CPUMicrokernels
import Foundation
import Testing

/// The conversions of every instruction set, held against Swift's own and against BFloat16.
@Suite struct ConversionTests {
  nonisolated(unsafe) static let tables: [UnsafePointer<CPUMicrokernels>] = {
    var list: [UnsafePointer<CPUMicrokernels>] = []
    var entry = fa_cpu_microkernels()!
    while let table = entry.pointee {
      list.append(table)
      entry += 1
    }
    return list
  }()

  @Test(arguments: 0..<ConversionTests.tables.count)
  func widensEvery16BitValue(table: Int) {
    let functions = Self.tables[table].pointee
    let patterns = (0...UInt16.max).map { $0 }
    for (type, value) in [
      (FA_F16, { Float(Float16(bitPattern: $0)) }), (FA_BF16, { Float(BFloat16(bitPattern: $0)) }),
    ] as [(FAScalarType, (UInt16) -> Float)] {
      var widened = [Float](repeating: 0, count: patterns.count)
      functions.widen(patterns, 512, type, 256, 256, &widened)
      let wrong = patterns.indices.filter { i in
        let expected = value(patterns[i])
        return expected.isNaN ? !widened[i].isNaN : widened[i].bitPattern != expected.bitPattern
      }
      #expect(wrong.isEmpty, "\(String(cString: functions.name)): \(wrong.prefix(5))")
    }
  }

  @Test(arguments: 0..<ConversionTests.tables.count)
  func widensEveryByte(table: Int) {
    let functions = Self.tables[table].pointee
    let patterns = (0...UInt8.max).map { $0 }
    var widened = [Float](repeating: 0, count: patterns.count)
    functions.widen(patterns, 64, FA_E4M3, 4, 64, &widened)
    let wrong = patterns.indices.filter { i in
      let expected = Float8E4M3(bitPattern: patterns[i]).asFloat
      return expected.isNaN ? !widened[i].isNaN : widened[i].bitPattern != expected.bitPattern
    }
    #expect(wrong.isEmpty, "\(String(cString: functions.name)): \(wrong.prefix(5))")
    // A NaN among them, of either sign, is found.
    for (byte, isThere) in [(0x7f, true), (0xff, true), (0x7e, false), (0xfe, false), (0x80, false)] as [(UInt8, Bool)]
    {
      let row = (0..<64).map { $0 == 41 ? byte : 0x7e }
      #expect((functions.has_nonfinite(row, 64, FA_E4M3, 1, 64) != 0) == isThere)
    }
  }

  /// As keys and values of rows, of which two vectors are converted at once where there are so many.
  @Test(arguments: 0..<ConversionTests.tables.count, [1, 2, 4, 8])
  func rowsTakeEveryByte(table: Int, rows: Int) {
    let functions = Self.tables[table].pointee
    let (dimension, padded) = (136, 160)
    let next = FAPrefetch(rows: nil, stride: 0, count: 0, is_far: 0)
    for first in [0, 128] {
      let bytes = (first..<first + dimension).map { UInt8(truncatingIfNeeded: $0) }
      let expected = bytes.map { Float8E4M3(bitPattern: $0).asFloat }
      // The last of many keys: what the others leave lies in between, times what it is by.
      var output = [Float](repeating: 0, count: rows * padded)
      let keys = [UInt8](repeating: 0, count: 39 * dimension) + bytes
      functions.row_accumulate(
        keys, dimension, FA_E4M3, 40, [Float](repeating: 1, count: 40 * rows), Int32(rows), Int32(dimension),
        Int32(padded),
        [Float](repeating: 0, count: rows), &output, next)
      var scores = [Float](repeating: 0, count: rows * 32 + 32)
      for column in 0..<dimension {
        let ofRows = (0..<rows).map { output[$0 * padded + column] }
        #expect(ofRows.allSatisfy { expected[column].isNaN ? $0.isNaN : $0 == expected[column] })
        let key = (0..<dimension).map { $0 == column ? bytes[column] : 0 }
        for count in [1, 32] {
          functions.row_scores(
            [[UInt8]](repeating: key, count: count).flatMap { $0 }, dimension, FA_E4M3, Int32(count),
            [Float](repeating: 1, count: rows * padded), Int32(rows), Int32(dimension), Int32(padded), &scores, next)
          #expect(scores[..<(count * rows)].allSatisfy { expected[column].isNaN ? $0.isNaN : $0 == expected[column] })
        }
      }
    }
  }

  @Test(arguments: 0..<ConversionTests.tables.count)
  func narrowsByRoundingToNearestEven(table: Int) {
    let functions = Self.tables[table].pointee
    // All exponents, with fractions around the ties of both types, and what lies beyond the largest.
    var values: [Float] = [.infinity, -.infinity, .greatestFiniteMagnitude, 65504, 65519.99, 65520, 0, -0]
    for exponent in UInt32(1)...254 {
      for fraction: UInt32 in [
        0, 1, 0x0fff, 0x1000, 0x1001, 0x3000, 0x7fff, 0x8000, 0x8001, 0x18000, 0x7fffff, 0x7ff000,
      ] {
        values.append(Float(bitPattern: exponent << 23 | fraction))
        values.append(-Float(bitPattern: exponent << 23 | fraction))
      }
    }
    while values.count % 8 != 0 { values.append(0) }
    let padded = values + [Float](repeating: 0, count: 32)
    var halves = [UInt16](repeating: 0, count: values.count)
    functions.store_row(padded, 1, Int32(values.count), FA_F16, &halves)
    for (value, half) in zip(values, halves) where half != Float16(value).bitPattern {
      Issue.record("f16 of \(value) is \(half), not \(Float16(value).bitPattern)")
    }
    functions.store_row(padded, 1, Int32(values.count), FA_BF16, &halves)
    for (value, half) in zip(values, halves) where half != BFloat16(value).bitPattern {
      Issue.record("bf16 of \(value) is \(half), not \(BFloat16(value).bitPattern)")
    }
  }

  /// Weights of single scores below the maximum 0: 2^x, to about an ulp, and exactly 1 at the maximum.
  @Test(arguments: 0..<ConversionTests.tables.count)
  func theWeightsArePowersOfTwo(table: Int) {
    let functions = Self.tables[table].pointee
    let count = 8192
    let lanes = Int(functions.lanes)
    var scores = (0..<count * lanes).map { -Float($0) * 128 / Float(count * lanes) }
    let inputs = scores
    var state = [Float](repeating: 0, count: 3 * lanes)
    state.withUnsafeMutableBufferPointer { state in
      let base = state.baseAddress!
      functions.softmax(
        &scores, Int32(count), 1, FAScoreTransform(scale_log2: 1, scale_log2_rest: 0, cap_log2: 0, scale_over_cap: 0),
        FAVisibleKeys(first: nil, end: nil), FASoftmaxState(maximum: base, sum: base + lanes, rescale: base + 2 * lanes)
      )
    }
    #expect(scores[0] == 1)
    var worst = 0.0
    for (x, weight) in zip(inputs, scores) where x > -126 {
      worst = max(worst, (Double(weight) / exp2(Double(x)) - 1).magnitude * 0x1p24)
    }
    #expect(worst < 2, "\(String(cString: functions.name)): \(worst) half ulps")
    #expect(zip(inputs, scores).allSatisfy { $0 >= -126 || $1 == 0 })
  }
}
