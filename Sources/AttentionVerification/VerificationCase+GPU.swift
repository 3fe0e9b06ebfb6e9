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
    func upload<Element: BitwiseCopyable>(_ list: [Element]?) throws(AttentionError) -> GPUBuffer? {
      guard let list else { return nil }
      let buffer = try GPUBuffer(byteCount: max(list.count * MemoryLayout<Element>.stride, 16), on: gpu)
      try list.withUnsafeBufferPointer { (list) throws(AttentionError) in
        try buffer.copy(from: UnsafeRawBufferPointer(list))
      }
      return buffer
    }
    let (sinks, ranges) = (
      try upload(problem.exampleSinks), try upload(problem.exampleRanges?.map { Int32(clamping: $0) })
    )
    defer { withExtendedLifetime((sinks, ranges)) {} }
    try plan.launch(
      AttentionTensors(
        queries: q, keys: k, values: v, output: o, logSumExp: statistics.address,
        entries: CacheEntries(sinks: sinks?.address, ranges: ranges?.address)))
    try tensors.output.withBytes { (bytes) throws(AttentionError) in try buffers[3].copy(to: bytes) }
    try logSumExp.withUnsafeMutableBufferPointer { (floats) throws(AttentionError) in
      try statistics.copy(to: UnsafeMutableRawBufferPointer(floats))
    }
    return CaseResult(tensors: tensors, logSumExp: logSumExp)
  }
}
