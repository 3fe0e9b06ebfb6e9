/// Numbers that a rule is written in which both the CPU and a kernel follow: `Int` on the CPU, registers in a kernel. What
/// is divided is never negative. (No operators: more of them would slow down the type checker in every file.)
package protocol RuleNumber {
  /// A number that is known, of the kind of this one.
  func constant(_ value: Int) -> Self
  func adding(_ b: Self) -> Self
  func adding(_ b: Int) -> Self
  func subtracting(_ b: Self) -> Self
  func multiplied(by b: Self) -> Self
  func multiplied(by b: Int) -> Self
  /// The quotient, rounded down.
  func divided(by b: Self) -> Self
  func divided(by b: Int) -> Self
  /// The larger of the two.
  func orAtLeast(_ b: Int) -> Self
  func orAtLeast(_ b: Self) -> Self
  /// The smaller of the two.
  func orAtMost(_ b: Self) -> Self
  /// This, or zero where another number is negative.
  func orZero(whereNegative other: Self) -> Self
  /// One number where this is zero, another where it is not.
  func whereZero(_ a: Self, else b: Self) -> Self
  /// What `other` returns where this is above a limit; this otherwise.
  func refined(above limit: Int, _ other: () -> Self) -> Self
}

extension RuleNumber {
  /// The quotient, rounded up.
  package func dividedUp(by b: Self) -> Self { adding(b).adding(-1).divided(by: b) }
  package func dividedUp(by b: Int) -> Self { adding(b - 1).divided(by: b) }
}

extension Int: RuleNumber {
  package func constant(_ value: Int) -> Int { value }
  package func adding(_ b: Int) -> Int { self + b }
  package func subtracting(_ b: Int) -> Int { self - b }
  package func multiplied(by b: Int) -> Int { self * b }
  package func divided(by b: Int) -> Int { self / b }
  package func orAtLeast(_ b: Int) -> Int { Swift.max(self, b) }
  package func orAtMost(_ b: Int) -> Int { Swift.min(self, b) }
  package func orZero(whereNegative other: Int) -> Int { other < 0 ? 0 : self }
  package func whereZero(_ a: Int, else b: Int) -> Int { self == 0 ? a : b }
  package func refined(above limit: Int, _ other: () -> Int) -> Int { self > limit ? other() : self }
}
