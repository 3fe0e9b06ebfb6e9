internal import Attention
internal import PTX

/// A number that a kernel computes.
final class EmittedNumber: RuleNumber {
  let k: KernelBuilder
  let register: Register<S32>
  /// Where the host knows it, what makes dividing by it cheap.
  private let divisor: Divisor?

  init(k: KernelBuilder, register: Register<S32>) { (self.k, self.register, divisor) = (k, register, nil) }

  /// A number that the host knows.
  init(k: KernelBuilder, _ divisor: Divisor) {
    (self.k, register, self.divisor) = (k, divisor.number.reinterpreted(as: S32.self), divisor)
  }

  private func with(_ register: Register<S32>) -> EmittedNumber { EmittedNumber(k: k, register: register) }
  func constant(_ value: Int) -> EmittedNumber { with(k.constant(value, S32.self)) }
  func adding(_ b: EmittedNumber) -> EmittedNumber { with(register + b.register) }
  func adding(_ b: Int) -> EmittedNumber { b == 0 ? self : with(register + b) }
  func subtracting(_ b: EmittedNumber) -> EmittedNumber { with(register - b.register) }
  func multiplied(by b: EmittedNumber) -> EmittedNumber { with(register * b.register) }
  func multiplied(by b: Int) -> EmittedNumber { b == 1 ? self : with(register * b) }
  // Without a sign, which costs instructions; by numbers that the host knows, of numbers below 2^31.
  func divided(by b: EmittedNumber) -> EmittedNumber {
    let dividend = register.reinterpreted(as: U32.self)
    let quotient = b.divisor.map { k.quotient(dividend, by: $0) } ?? dividend / b.register.reinterpreted(as: U32.self)
    return with(quotient.reinterpreted(as: S32.self))
  }
  func divided(by b: Int) -> EmittedNumber {
    with((register.reinterpreted(as: U32.self) / b).reinterpreted(as: S32.self))
  }
  func orAtLeast(_ b: Int) -> EmittedNumber { with(k.maximum(register, k.constant(b, S32.self))) }
  func orAtLeast(_ b: EmittedNumber) -> EmittedNumber { with(k.maximum(register, b.register)) }
  func orAtMost(_ b: EmittedNumber) -> EmittedNumber { with(k.minimum(register, b.register)) }
  func orZero(whereNegative other: EmittedNumber) -> EmittedNumber {
    with(k.select(other.register .>= 0, register, k.constant(0, S32.self)))
  }
  func whereZero(_ a: EmittedNumber, else b: EmittedNumber) -> EmittedNumber {
    with(k.select(register .== 0, a.register, b.register))
  }
  func refined(above limit: Int, _ other: () -> EmittedNumber) -> EmittedNumber {
    let result = k.variable(register)
    k.if(register .> limit) { k.set(result, to: other().register) }
    return with(result)
  }
}
