import Attention
import AttentionVerification
import CPUAttention
import CPUMicrokernels
import Testing

/// Rows of bfloat16 pairs, function by function, where the processor has them: K and V of bf16 and of bytes, at every length that
/// leaves something over, ending where memory does.
@Suite struct PairRowTests {
  private static var functions: CPUMicrokernels? {
    ConversionTests.tables.map(\.pointee).first { $0.pair_row_scores != nil }
  }
  private static let hasPairs = functions != nil
  private static var nothing: FAPrefetch { FAPrefetch(rows: nil, stride: 0, count: 0, is_far: 0) }

  private static func padded(_ dimension: Int) -> Int { (dimension + 31) / 32 * 32 }

  /// Keys and values, one head, and their numbers.
  private static func rows(
    _ count: Int, _ dimension: Int, _ type: ScalarType, _ random: inout RandomSource
  ) -> (GuardedTensor, [[Double]]) {
    let numbers = (0..<count * dimension).map { _ in random.normal() }
    let tensor = GuardedTensor(TensorShape(batch: 1, heads: 1, length: count, dimension: dimension), type) {
      numbers[$0]
    }
    let view = tensor.view.readOnly
    let read = (0..<count).map { n in
      (0..<dimension).map { Double(type.load(from: view.row(batch: 0, head: 0, token: n), at: $0)) }
    }
    return (tensor, read)
  }

  @Test(arguments: hasPairs ? [ScalarType.bf16, .e4m3] : [], [8, 24, 32, 40, 64, 72, 96, 128, 136, 200])
  func agreesWithTheDefinition(type: ScalarType, dimension: Int) throws {
    let functions = try #require(Self.functions)
    var random = RandomSource(seed: 5)
    let (padded, element) = (Self.padded(dimension), type == .e4m3 ? FA_E4M3 : FA_BF16)
    for rows in [1, 2, 4, 8] {
      for count in [1, 2, 3, 7, 16, 33, 128] {
        let (tensor, numbers) = Self.rows(count, dimension, type, &random)
        let stride = dimension * type.byteCount
        let name = "\(rows) rows, \(count) keys"

        var queries = [Float](repeating: 0, count: rows * padded)
        for r in 0..<rows {
          for d in 0..<dimension { queries[r * padded + d] = Float(BFloat16(random.normal())) }
        }
        var pairs = [UInt32](repeating: 0, count: rows * padded / 2)
        functions.pair_pack_rows(queries, Int32(rows * padded), &pairs)
        var scores = [Float](repeating: .nan, count: count * rows + 32)
        functions.pair_row_scores(
          tensor.view.base, stride, element, Int32(count), pairs, Int32(rows), Int32(dimension), Int32(padded), &scores,
          Self.nothing)
        for key in 0..<count {
          for r in 0..<rows {
            let terms = (0..<dimension).map { numbers[key][$0] * Double(queries[r * padded + $0]) }
            let error = (Double(scores[key * rows + r]) - terms.reduce(0, +)).magnitude
            #expect(error <= 1e-6 * terms.reduce(1e-6) { $0 + $1.magnitude }, "\(name): score of key \(key), row \(r)")
          }
        }

        // What lies behind the weights is read, and weighs nothing.
        let weights = (0..<count * rows + 32).map { $0 < count * rows ? random.normal().magnitude : .nan }
        let rescale = (0..<rows).map { Float($0 + 1) / 4 }
        let before = (0..<rows * padded).map { _ in random.normal() }
        var output = before
        functions.pair_row_accumulate(
          tensor.view.base, stride, element, Int32(count), weights, Int32(rows), Int32(dimension), Int32(padded),
          rescale,
          &output, Self.nothing)
        for r in 0..<rows {
          for d in 0..<dimension {
            let terms = (0..<count).map { Double(Float(BFloat16(weights[$0 * rows + r]))) * numbers[$0][d] }
            let first = Double(before[r * padded + d]) * Double(rescale[r])
            let error = (Double(output[r * padded + d]) - first - terms.reduce(0, +)).magnitude
            let size = terms.reduce(first.magnitude + 1e-6) { $0 + $1.magnitude }
            #expect(error <= 1e-6 * size, "\(name): column \(d) of row \(r)")
          }
        }
      }
    }
  }

  /// Every byte is its number: as a value that one weight brings out, and as a key that one query asks for.
  @Test(.enabled(if: hasPairs)) func everyByteIsItsNumber() throws {
    let functions = try #require(Self.functions)
    for row in stride(from: 0, to: 256, by: 64) {
      let bytes = (row..<row + 64).map { UInt8($0) }
      let expected = bytes.map { Float8E4M3(bitPattern: $0).asFloat }
      var output = [Float](repeating: 0, count: 64)
      functions.pair_row_accumulate(
        bytes, 64, FA_E4M3, 1, [1] + [Float](repeating: 0, count: 32), 1, 64, 64, [0], &output, Self.nothing)
      for (made, expected) in zip(output, expected) {
        #expect(expected.isNaN ? made.isNaN : made == expected)
      }
      let numbers = zip(bytes, expected).map { $1.isNaN ? 0 : $0 }
      for column in 0..<64 {
        var query = [Float](repeating: 0, count: 64)
        query[column] = 1
        var pairs = [UInt32](repeating: 0, count: 32)
        functions.pair_pack_rows(query, 64, &pairs)
        var score = [Float](repeating: 0, count: 33)
        functions.pair_row_scores(numbers, 64, FA_E4M3, 1, pairs, 1, 64, 64, &score, Self.nothing)
        #expect(score[0] == (expected[column].isNaN ? 0 : expected[column]))
      }
    }
  }

  /// A value that is no number, behind an odd last key, is not looked at.
  @Test(.enabled(if: hasPairs), arguments: [1, 3]) func whatIsBehindAnOddLastKeyIsNotLookedAt(count: Int) throws {
    let functions = try #require(Self.functions)
    for type in [FA_BF16, FA_E4M3] {
      let row = type == FA_BF16 ? 64 : 32
      let bytes = [UInt8](repeating: 0, count: count * row) + [UInt8](repeating: 0xff, count: 256)
      var output = [Float](repeating: 0, count: 32)
      functions.pair_row_accumulate(
        bytes, row, type, Int32(count), [Float](repeating: 0.5, count: count + 32), 1, 32, 32, [0], &output,
        Self.nothing)
      #expect(output.allSatisfy { $0 == 0 })
    }
  }
}
