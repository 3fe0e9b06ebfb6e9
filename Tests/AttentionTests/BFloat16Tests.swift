import Attention
import Testing

@Suite struct BFloat16Tests {
  @Test func everyValueSurvivesTheWayThroughFloat() {
    for bits in UInt16.min...UInt16.max {
      let value = BFloat16(bitPattern: bits)
      let again = BFloat16(Float(value))
      if Float(value).isNaN {
        #expect(Float(again).isNaN)
      } else if again.bitPattern != bits {
        Issue.record("\(bits) became \(again.bitPattern)")
      }
    }
  }

  /// The nearest of the two neighbours, in 64 bits; ties to the even one.
  @Test func roundsToNearestTiesToEven() {
    var bits: UInt32 = 0
    while bits < 0x7f7f_0000 {
      let value = Float(bitPattern: bits)
      let low = BFloat16(bitPattern: UInt16(bits >> 16))
      let high = BFloat16(bitPattern: UInt16(bits >> 16) + 1)
      let toLow = Double(value) - Double(Float(low))
      let toHigh = Double(Float(high)) - Double(value)
      let expected = toLow < toHigh ? low : toHigh < toLow ? high : low.bitPattern & 1 == 0 ? low : high
      #expect(BFloat16(value) == expected)
      #expect(BFloat16(-value).bitPattern == expected.bitPattern | 0x8000)
      bits += bits & 0x7fff == 0 ? 0x8000 : 0x1357
      if bits % 5 == 0 { bits = (bits | 0xffff) - 0x7fff }  // often, a tie
    }
  }

  @Test func overflowsToInfinityAndKeepsNaN() {
    #expect(Float(BFloat16(Float.greatestFiniteMagnitude)) == .infinity)
    #expect(Float(BFloat16(-Float.infinity)) == -.infinity)
    #expect(Float(BFloat16(Float.nan)).isNaN)
    // A NaN whose payload is only in the lower half must not become infinity.
    #expect(Float(BFloat16(Float(bitPattern: 0x7f80_0001))).isNaN)
  }

  @Test func ulpFollowsTheBinade() {
    #expect(ScalarType.bf16.ulp(of: 1) == 0x1p-7)
    #expect(ScalarType.f16.ulp(of: 1.999) == 0x1p-10)
    #expect(ScalarType.f32.ulp(of: -4) == 0x1p-21)
    #expect(ScalarType.f16.ulp(of: 0) == 0x1p-24)
    #expect(ScalarType.f32.ulp(of: 1) == Double(Float(1).ulp))
  }

  @Test func literals() {
    let numbers: [BFloat16] = [1, -0.5, 3.14159]
    #expect(numbers == [BFloat16(bitPattern: 0x3f80), BFloat16(bitPattern: 0xbf00), BFloat16(Float(3.14159))])
  }
}
