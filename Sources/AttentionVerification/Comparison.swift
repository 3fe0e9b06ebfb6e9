package import Attention

/// How far a result is from the truth, and how far it may be.
///
/// The largest and the mean error may each be at most twice the error that `PlainAttention` makes on the same inputs,
/// plus half an ulp of the largest reference value in the type of the result. So the bound follows the inputs, and no
/// constant has to be chosen for large, shifted or one-hot-like ones.
package struct Comparison: Sendable {
  /// The largest absolute error.
  package private(set) var maximumError = 0.0
  /// The mean absolute error.
  package private(set) var meanError = 0.0
  /// Bounds of the two.
  package private(set) var maximumAllowed = 0.0
  /// The bound of the mean error.
  package private(set) var meanAllowed = 0.0

  /// Compares values, all in the same order. An infinite value is met only by the same; a NaN where a number is
  /// expected never passes.
  ///
  /// - Parameters:
  ///   - actual: the result in question.
  ///   - expected: what it should be, where that comes from elsewhere; nil for the reference. The allowance does not
  ///     depend on it: a wrong expectation is not excused by being far from the plain computation too.
  ///   - plain: the plain computation in `type`.
  ///   - other: another plain computation, with its sums made in another way; the worse of the two is the yardstick, so
  ///     that it depends less on luck where there are few values.
  ///   - reference: the 64-bit computation.
  ///   - slack: what is allowed beside.
  package init(
    actual: [Double], expected: [Double]? = nil, plain: [Double], other: [Double]? = nil, reference: [Double],
    type: ScalarType, slack: Double = 0
  ) {
    let expected = expected ?? reference
    precondition([expected.count, plain.count, reference.count].allSatisfy { $0 == actual.count })
    var largest = 0.0
    for i in reference.indices {
      let error = Self.distance(actual[i], expected[i])
      maximumError = max(maximumError, error)
      meanError += error
      if reference[i].isFinite { largest = max(largest, reference[i].magnitude) }
    }
    let count = Double(max(reference.count, 1))
    meanError /= count
    let halfUlp = type.ulp(of: largest) / 2 + slack
    let yardsticks = [plain, other ?? plain].map { values in
      // Where the plain computation itself breaks down, it is no excuse for the result.
      let errors = zip(values, reference).map { Self.distance($0, $1) }.filter(\.isFinite)
      return (maximum: errors.max() ?? 0, mean: errors.reduce(0, +) / count)
    }
    maximumAllowed = 2 * max(yardsticks[0].maximum, yardsticks[1].maximum) + halfUlp
    meanAllowed = 2 * max(yardsticks[0].mean, yardsticks[1].mean) + halfUlp
  }

  private static func distance(_ a: Double, _ b: Double) -> Double {
    if a == b || (a.isNaN && b.isNaN) { return 0 }
    let difference = (a - b).magnitude
    return difference.isNaN ? .infinity : difference
  }

  /// The worse of the two errors as a part of what is allowed: at most 1 passes.
  package var ratio: Double { max(maximumError / maximumAllowed, meanError / meanAllowed) }

  /// Whether both errors are within their bounds.
  package var passes: Bool { maximumError <= maximumAllowed && meanError <= meanAllowed }
}

extension Comparison: CustomStringConvertible {
  /// Both errors and their bounds.
  package var description: String {
    "maximum error \(scientific(maximumError)) (allowed \(scientific(maximumAllowed))), "
      + "mean error \(scientific(meanError)) (allowed \(scientific(meanAllowed)))"
  }
}

/// A number with three significant digits, as `1.23e-05`; without Foundation's formatters.
func scientific(_ value: Double) -> String {
  guard value.isFinite else { return "\(value)" }
  guard value != 0 else { return "0" }
  var exponent = 0
  var mantissa = value.magnitude
  while mantissa >= 9.995 { (mantissa, exponent) = (mantissa / 10, exponent + 1) }
  while mantissa < 0.9995 { (mantissa, exponent) = (mantissa * 10, exponent - 1) }
  let hundredths = Int((mantissa * 100).rounded())
  let digits = "\(hundredths / 100).\(hundredths % 100 < 10 ? "0" : "")\(hundredths % 100)"
  let power = "\(exponent.magnitude < 10 ? "0" : "")\(exponent.magnitude)"
  return "\(value < 0 ? "-" : "")\(digits)e\(exponent < 0 ? "-" : "+")\(power)"
}
