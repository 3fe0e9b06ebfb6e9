internal import PTX

/// A number that a kernel divides by and the host knows: a product and a shift instead of the twenty instructions of a division.
///
///     n / d = (2 n m) >> (32 + s),  s = ceil(log2 d),  m = ceil(2^(31 + s) / d),  exact for n below 2^31
///
/// (Granlund and Montgomery, "Division by Invariant Integers using Multiplication", 1994, section 4.)
final class Divisor {
  /// d, m and s.
  let number, multiplier, shift: Register<U32>

  init(number: Register<U32>, multiplier: Register<U32>, shift: Register<U32>) {
    (self.number, self.multiplier, self.shift) = (number, multiplier, shift)
  }

  /// m and s of a number from 1 to 2^31 - 1.
  static func magic(_ number: Int) -> (multiplier: Int, shift: Int) {
    precondition((1..<1 << 31).contains(number))
    let shift = Int.bitWidth - (number - 1).leadingZeroBitCount
    return (((1 << (31 + shift)) - 1) / number + 1, shift)
  }
}

extension ParameterList {
  /// A number that is divided by. Of 0, by which nobody may divide, the others are those of 1.
  func divisor(_ name: String, _ value: @escaping @Sendable (Launch) -> Int) -> Divisor {
    Divisor(
      number: number(name, U32.self, value),
      multiplier: number(name + "_multiplier", U32.self) { Divisor.magic(max(value($0), 1)).multiplier },
      shift: number(name + "_shift", U32.self) { Divisor.magic(max(value($0), 1)).shift })
  }
}

extension KernelBuilder {
  /// The quotient, rounded down, of a number below 2^31.
  func quotient(_ number: Register<U32>, by divisor: Divisor) -> Register<U32> {
    multiplyHigh(number << 1, divisor.multiplier) >> divisor.shift
  }

  /// The same, and what is left.
  func division(
    _ number: Register<U32>, by divisor: Divisor
  ) -> (quotient: Register<U32>, remainder: Register<U32>) {
    let quotient = quotient(number, by: divisor)
    return (quotient, number - quotient * divisor.number)
  }
}
