internal import Attention
internal import PTX

/// A number that a kernel computes.
struct EmittedNumber: RuleNumber {
  let k: KernelBuilder
  let register: Register<S32>

  private func with(_ register: Register<S32>) -> EmittedNumber { EmittedNumber(k: k, register: register) }
  func constant(_ value: Int) -> EmittedNumber { with(k.constant(value, S32.self)) }
  func adding(_ b: EmittedNumber) -> EmittedNumber { with(register + b.register) }
  func adding(_ b: Int) -> EmittedNumber { b == 0 ? self : with(register + b) }
  func subtracting(_ b: EmittedNumber) -> EmittedNumber { with(register - b.register) }
  func multiplied(by b: EmittedNumber) -> EmittedNumber { with(register * b.register) }
  func multiplied(by b: Int) -> EmittedNumber { b == 1 ? self : with(register * b) }
  // Without a sign, which costs instructions.
  func divided(by b: EmittedNumber) -> EmittedNumber {
    with((register.reinterpreted(as: U32.self) / b.register.reinterpreted(as: U32.self)).reinterpreted(as: S32.self))
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
