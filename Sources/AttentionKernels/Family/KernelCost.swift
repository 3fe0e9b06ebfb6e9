internal import Attention

/// What a call should take, in seconds, term by term.
package struct KernelCost: Hashable, Sendable {
  /// A part of it.
  package struct Term: Hashable, Sendable {
    /// For tables: products, reading, ...
    package let name: String
    /// By itself.
    package let seconds: Double
  }

  /// In the order of a family's tables.
  package let terms: [Term]
  /// All of it: terms that run beside each other count less than their sum.
  package let seconds: Double

  package init(_ terms: KeyValuePairs<String, Double>, seconds: Double) {
    self.terms = terms.map { Term(name: $0.key, seconds: $0.value) }
    self.seconds = seconds
  }
}

extension KernelCost: CustomStringConvertible {
  /// The sum and its terms, in microseconds.
  package var description: String {
    let parts = terms.map { "\($0.name) \(microseconds($0.seconds))" }
    return "\(microseconds(seconds)) us (\(parts.joined(separator: ", ")))"
  }
}

extension AttentionProblem {
  /// The keys of a sequence that costs are reckoned for: the most that it can have. Small caches count as of 1024 keys,
  /// so that few kernels serve one that grows; there it is the launch that costs.
  var plannedKeys: Int { hasWholeKeys ? keys : max(keys, 1024) }
}

/// Seconds as microseconds with one digit behind the point.
func microseconds(_ seconds: Double) -> String { rounded(seconds * 1e6, digits: 1) }

/// A positive number with so many digits behind the point; what no plan should cost as it is.
func rounded(_ value: Double, digits: Int) -> String {
  var power = 1
  for _ in 0..<digits { power *= 10 }
  let scaled = (value * Double(power)).rounded()
  guard scaled >= 0 && scaled < 1e15 else { return "\(value)" }
  let fraction = "\(Int(scaled) % power)"
  return "\(Int(scaled) / power).\(String(repeating: "0", count: digits - fraction.count))\(fraction)"
}
