package import AttentionKernels
package import FlashAttention
internal import PTX
package import PTXEmulator

extension VerificationCase {
  /// The tensors of the case in the memory of an emulated GPU.
  package struct Emulation {
    package let memory: GlobalMemory
    package let call: KernelCall
    fileprivate let tensors: CaseTensors
    fileprivate let outputAddress, logSumExpAddress: UInt64
    fileprivate let problem: AttentionProblem

    /// What the last run wrote, and whether it kept to its elements.
    package var result: CaseResult? {
      let count = tensors.output.withBytes(\.count)
      guard let output = memory.read(UInt8.self, count: count, from: outputAddress),
        let logSumExp = memory.read(Float.self, count: problem.logSumExpCount, from: logSumExpAddress)
      else { return nil }
      tensors.output.withBytes { $0.copyBytes(from: output) }
      return CaseResult(tensors: tensors, logSumExp: logSumExp)
    }
  }

  /// Lays the inputs into an emulated GPU's memory, ready for a plan's launches.
  package func emulation() -> Emulation {
    let tensors = makeTensors()
    let memory = GlobalMemory()
    func view(_ tensor: CaseTensor, _ name: String, _ access: GlobalMemory.Access) -> DeviceTensorView {
      let base = tensor.withBytes { memory.allocate(name, Array($0), access: access) }
      return DeviceTensorView(
        address: base + UInt64(tensor.byteOffset), scalarType: tensor.view.scalarType, shape: tensor.view.shape,
        strides: tensor.view.strides)
    }
    let (q, k) = (view(tensors.queries, "q", .readOnly), view(tensors.keys, "k", .readOnly))
    let (v, o) = (view(tensors.values, "v", .readOnly), view(tensors.output, "o", .readWrite))
    let logSumExp = memory.allocate("lse", byteCount: max(problem.logSumExpCount, 1) * 4, access: .readWrite)
    return Emulation(
      memory: memory,
      call: KernelCall(
        AttentionTensors(
          queries: q, keys: k, values: v, output: o, logSumExp: logSumExp,
          entries: CacheEntries(
            sinks: problem.exampleSinks.map { memory.allocate("sinks", $0, access: .readOnly) },
            ranges: memory.allocate(ranges: problem)))),
      tensors: tensors, outputAddress: o.address - UInt64(tensors.output.byteOffset), logSumExpAddress: logSumExp,
      problem: problem)
  }
}

extension GlobalMemory {
  /// The example ranges of a problem; nil where a call gives none.
  package func allocate(ranges problem: AttentionProblem) -> UInt64? { allocate(ranges: problem.exampleRanges) }

  /// Some ranges; nil of none.
  package func allocate(ranges numbers: [Int]?) -> UInt64? {
    numbers.map { allocate("key_ranges", $0.map { Int32(clamping: $0) }, access: .readOnly) }
  }
}
