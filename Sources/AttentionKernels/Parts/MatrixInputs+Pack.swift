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
