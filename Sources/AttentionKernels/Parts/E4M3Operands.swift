internal import PTX

/// Makes 16-bit floats of e4m3 bytes: exact, and NaN stays NaN.
struct E4M3Operands: Hashable {
  /// What the bytes become.
  let inputs: Matrix.Inputs
  /// Whether the GPU converts them itself, as from sm_89 on.
  let hasConversion: Bool

  /// Bytes 0 and 1 of a word as one register, bytes 2 and 3 as another.
  func unpack(_ k: KernelBuilder, _ word: Register<U32>) -> (low: Register<U32>, high: Register<U32>) {
    let pair = hasConversion ? converted(k, word) : computed(k, word)
    switch inputs {
    case .f16: return (pair.low.reinterpreted(as: U32.self), pair.high.reinterpreted(as: U32.self))
    case .bf16: return (bf16(k, pair.low), bf16(k, pair.high))
    }
  }

  private func converted(_ k: KernelBuilder, _ word: Register<U32>) -> (low: Register<F16x2>, high: Register<F16x2>) {
    let halves = k.halves(word)
    return (k.unpackE4M3(halves.low), k.unpackE4M3(halves.high))
  }

  /// Exponent and fraction of e4m3, one bit further right than the byte's place in f16, are a number 2^-8 times as
  /// large.
  ///
  /// A product that lets only 480, the NaN, become infinite tells it from the others: 0 times infinity is NaN.
  private func computed(_ k: KernelBuilder, _ word: Register<U32>) -> (low: Register<F16x2>, high: Register<F16x2>) {
    let zero = k.constant(0, U32.self)
    let constants = [0x7880, 0, 0x5c00].map { k.constant(bits: $0, F16x2.self) }
    func expand(_ selector: UInt16) -> Register<F16x2> {
      let bytes = k.permute(word, zero, selector: selector)
      let small = ((bytes & 0x8000_8000) | ((bytes >> 1) & 0x3f80_3f80)).reinterpreted(as: F16x2.self)
      // 1.125 * 2^15: 448 becomes 64512, and 480 more than f16 holds.
      let poison = (small * constants[0]) * constants[1]
      return k.multiplyAdd(small, constants[2], poison)
    }
    return (expand(0x1404), expand(0x3424))
  }

  private func bf16(_ k: KernelBuilder, _ pair: Register<F16x2>) -> Register<U32> {
    let (low, high) = k.unpack(pair)
    return k.pack(low, high, as: BF16x2.self).reinterpreted(as: U32.self)
  }
}
