package import FlashAttention

extension VerificationCase {
  /// Computes the case in a GPU's memory, gaps and all: the whole memory of each tensor is copied there, and that of
  /// the output back, so that a write outside the elements shows.
  package func computeOnGPU(_ plan: AttentionPlan, _ gpu: GPU) throws(AttentionError) -> CaseResult {
    let tensors = makeTensors()
    var buffers: [GPUBuffer] = []
    func upload(_ tensor: CaseTensor) throws(AttentionError) -> DeviceTensorView {
      let buffer = try tensor.withBytes { (bytes) throws(AttentionError) in
        let buffer = try GPUBuffer(byteCount: bytes.count, on: gpu)
        try buffer.copy(from: UnsafeRawBufferPointer(bytes))
        return buffer
      }
      buffers.append(buffer)
      return DeviceTensorView(
        address: buffer.address + UInt64(tensor.byteOffset), scalarType: tensor.view.scalarType,
        shape: tensor.view.shape, strides: tensor.view.strides)
    }
    let (q, k) = (try upload(tensors.queries), try upload(tensors.keys))
    let (v, o) = (try upload(tensors.values), try upload(tensors.output))
    var logSumExp = [Float](repeating: .nan, count: problem.logSumExpCount)
    let statistics = try GPUBuffer(byteCount: logSumExp.count * 4, on: gpu)
    try statistics.fill(0xff)
    let sinks = try problem.exampleSinks.map { (sinks) throws(AttentionError) in
      let buffer = try GPUBuffer(byteCount: sinks.count * 4, on: gpu)
      try sinks.withUnsafeBufferPointer { (sinks) throws(AttentionError) in
        try buffer.copy(from: UnsafeRawBufferPointer(sinks))
      }
      return buffer
    }
    defer { withExtendedLifetime(sinks) {} }
    try plan.launch(
      AttentionTensors(
        queries: q, keys: k, values: v, output: o, logSumExp: statistics.address,
        entries: CacheEntries(sinks: sinks?.address)))
    try tensors.output.withBytes { (bytes) throws(AttentionError) in try buffers[3].copy(to: bytes) }
    try logSumExp.withUnsafeMutableBufferPointer { (floats) throws(AttentionError) in
      try statistics.copy(to: UnsafeMutableRawBufferPointer(floats))
    }
    return CaseResult(tensors: tensors, logSumExp: logSumExp)
  }
}
