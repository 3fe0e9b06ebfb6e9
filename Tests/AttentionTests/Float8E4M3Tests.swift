import Attention
import Testing

/// All 256 bytes, by the format's definition; rounding between each two neighbours.
@Suite struct Float8E4M3Tests {
  /// By bits: sign, exponent with bias 7, fraction of eighths; the largest exponent and fraction are NaN.
  private func number(_ byte: Int) -> Float {
    let (exponent, fraction) = (byte >> 3 & 15, byte & 7)
    if exponent == 15 && fraction == 7 { return .nan }
    var power: Float = 1
    for _ in 0..<abs(max(exponent, 1) - 7) { power *= exponent > 7 ? 2 : 0.5 }
    let magnitude = (exponent == 0 ? Float(fraction) / 8 : 1 + Float(fraction) / 8) * power
    return byte & 0x80 == 0 ? magnitude : -magnitude
  }

  @Test func everyByteIsItsNumber() {
    for byte in 0...255 {
      let value = Float(Float8E4M3(bitPattern: UInt8(byte)))
      #expect(value == number(byte) || (value.isNaN && number(byte).isNaN), "\(byte)")
      if !value.isNaN { #expect(Float8E4M3(value).bitPattern == UInt8(byte)) }
    }
    #expect(Float8E4M3(.nan).bitPattern & 0x7f == 0x7f)
  }

  @Test func roundsToTheNearestAndTiesToEven() {
    for byte in 0..<126 {
      let (low, high) = (number(byte), number(byte + 1))
      let middle = (low + high) / 2
      #expect(Float8E4M3(middle).bitPattern == UInt8(byte % 2 == 0 ? byte : byte + 1))
      #expect(
        Float8E4M3(middle.nextDown).bitPattern == UInt8(byte) && Float8E4M3(middle.nextUp).bitPattern == UInt8(byte + 1)
      )
      #expect(Float8E4M3(-middle.nextUp).bitPattern == UInt8(byte + 1) | 0x80)
    }
    for large: Float in [449, 1e9, .infinity] {
      #expect(Float(Float8E4M3(large)) == 448 && Float(Float8E4M3(-large)) == -448)
    }
  }
}
