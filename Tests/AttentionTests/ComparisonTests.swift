import Attention
import AttentionVerification
import Testing

@Suite struct ComparisonTests {
  private let reference = [1.0, 2.0, -4.0]
  private let plain = [1.001, 2.0, -4.0]

  @Test func allowsTwiceThePlainErrorAndHalfAnUlp() {
    let comparison = Comparison(actual: reference, plain: plain, reference: reference, type: .f16)
    #expect(abs(comparison.maximumAllowed - (0.002 + 0x1p-9)) < 1e-12)
    #expect(comparison.maximumError == 0 && comparison.passes)
    let within = Comparison(actual: [1.0039, 2, -4], plain: plain, reference: reference, type: .f16)
    #expect(within.maximumError < within.maximumAllowed && within.passes == (within.meanError <= within.meanAllowed))
    let beyond = Comparison(actual: [1.01, 2, -4], plain: plain, reference: reference, type: .f16)
    #expect(!beyond.passes && beyond.ratio > 1)
  }

  @Test func aMeanErrorAloneFails() {
    let reference = [Double](repeating: 1, count: 1000)
    var plain = reference
    plain[0] = 1.01
    let actual = reference.map { $0 + 0.005 }
    let comparison = Comparison(actual: actual, plain: plain, reference: reference, type: .f32)
    #expect(comparison.maximumError < comparison.maximumAllowed)
    #expect(!comparison.passes)
  }

  @Test(arguments: [Double.nan, .infinity, -.infinity])
  func neverPassesWhatIsNoNumber(_ value: Double) {
    #expect(!Comparison(actual: [1, value, -4], plain: plain, reference: reference, type: .bf16).passes)
  }

  @Test func infinitiesMustAgree() {
    let infinite = [-Double.infinity, 1]
    #expect(Comparison(actual: infinite, plain: infinite, reference: infinite, type: .f32).passes)
    #expect(!Comparison(actual: [-1e30, 1], plain: infinite, reference: infinite, type: .f32).passes)
  }

  /// A wrong expectation must not widen the allowance, however far the plain computation is from it too.
  @Test func aWrongExpectationFails() {
    let comparison = Comparison(
      actual: reference, expected: [9, 9, 9], plain: plain, reference: reference, type: .f32)
    #expect(!comparison.passes)
  }

  @Test func printsItsNumbers() {
    let comparison = Comparison(actual: [1.25, 2, -4], plain: plain, reference: reference, type: .f32)
    #expect(
      comparison.description.hasPrefix("maximum error 2.50e-01 (allowed 2.00e-03), mean error 8.33e-02 (allowed "))
  }
}
