package import PTX

extension Matrix.Inputs {
  /// Two floats rounded to this type, in one register.
  package func pack(_ k: KernelBuilder, _ low: Register<F32>, _ high: Register<F32>) -> Register<U32> {
    switch self {
    case .f16: k.pack(low, high, as: F16x2.self).reinterpreted(as: U32.self)
    case .bf16: k.pack(low, high, as: BF16x2.self).reinterpreted(as: U32.self)
    }
  }
}

extension Matrix.Inputs {
  /// The two numbers of a register of this type, exact.
  package func unpack(_ k: KernelBuilder, _ pair: Register<U32>) -> (low: Register<F32>, high: Register<F32>) {
    switch self {
    case .f16: k.unpack(pair.reinterpreted(as: F16x2.self))
    case .bf16: k.unpack(pair.reinterpreted(as: BF16x2.self))
    }
  }
}
