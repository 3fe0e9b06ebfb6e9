public import Attention
internal import AttentionKernels
internal import CUDADriver
public import GPURuntime

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// Puts results over parts of the keys together: for keys that are spread over calls, devices or machines.
public enum PartialResults {
  /// On the CPU.
  ///
  /// - Parameters:
  ///   - problem: how many parts there are, and of which shape and type.
  ///   - partials: f32 of `problem.shape`, a view for each part.
  ///   - logSumExps: `[S, B, H, s]`; -inf, or +inf, of parts without keys, whose results may be anything.
  ///   - output: `problem.shape` in the problem's type; overwritten.
  ///   - logSumExp: `[B, H, s]`; nil where it is not needed.
  ///   - sinks: `[H]`, where the problem has some: the parts are without.
  /// - Throws: `AttentionError` where a tensor is not what the problem says.
  public static func combine(
    _ problem: PartialResultsProblem, partials: [TensorView], logSumExps: UnsafeBufferPointer<Float>,
    output: MutableTensorView, logSumExp: UnsafeMutableBufferPointer<Float>? = nil, sinks: [Float]? = nil
  ) throws(AttentionError) {
    try check(problem, hasSinks: sinks != nil)
    if let type = problem.sinkType, type != .f32 {
      throw .unsupported(
        "The sinks of the problem are \(type); in the host's memory they are f32: set sinkType to .f32.")
    }
    try CacheEntries<HostMemory>.check(sinks, heads: problem.heads)
    if partials.count != problem.parts {
      throw .cacheEntries("partial results", count: partials.count, batch: problem.parts)
    }
    if logSumExps.count != problem.parts * problem.rows {
      throw .logSumExpCount(given: logSumExps.count, needed: problem.parts * problem.rows)
    }
    if let logSumExp, logSumExp.count != problem.rows {
      throw .logSumExpCount(given: logSumExp.count, needed: problem.rows)
    }
    for view in partials { try view.check("a partial result", isFor: problem.shape, .f32) }
    try output.readOnly.check("output", isFor: problem.shape, problem.outputType, isWritten: true)
    for row in 0..<problem.rows {
      let (line, query) = (row / problem.queries, row % problem.queries)
      let (b, h) = (line / problem.heads, line % problem.heads)
      // FlashAttention 2 marks parts without keys by +inf.
      let own = (0..<problem.parts).map { part in
        let logSumExp = logSumExps[part * problem.rows + row]
        return logSumExp == .infinity ? -.infinity : logSumExp
      }
      let largest = own.reduce(sinks?[h] ?? -Float.infinity) { $0.isNaN || $1.isNaN ? .nan : max($0, $1) }
      // In double, where the sums of any two floats are as good as exact.
      let top = largest == -.infinity ? 0 : Double(largest)
      let weights = own.map { $0 == -.infinity ? 0 : exp(Double($0) - top) }
      let ofSink = sinks.map { $0[h] == -.infinity ? 0 : exp(Double($0[h]) - top) } ?? 0
      let total = weights.reduce(ofSink, +)
      let target = output.row(batch: b, head: h, token: query)
      for d in 0..<problem.dimension {
        var sum = 0.0
        for (weight, view) in zip(weights, partials) where weight != 0 {
          sum += weight * Double(ScalarType.f32.load(from: view.row(batch: b, head: h, token: query), at: d))
        }
        problem.outputType.store(total == 0 ? 0 : Float(sum / total), to: target, at: d)
      }
      logSumExp?[row] = total == 0 ? -.infinity : Float(top + log(total))
    }
  }

  private static func check(_ problem: PartialResultsProblem, hasSinks: Bool) throws(AttentionError) {
    if hasSinks != (problem.sinkType != nil) { throw .notInThePlan(tensor: "list of sinks", isMissing: !hasSinks) }
    if problem.sinkType == .e4m3 { throw .unsupported("Sinks are e4m3; they must be f32, f16 or bf16.") }
  }

  /// On a GPU; puts the work into a stream and returns at once.
  ///
  /// - Parameters:
  ///   - problem: how many parts there are, and of which shape and type.
  ///   - partials: the first part, f32 of `problem.shape`.
  ///   - partStride: elements from a part to the next.
  ///   - logSumExps: address of `[S, B, H, s]` contiguous f32.
  ///   - output: `problem.shape` in the problem's type; overwritten.
  ///   - logSumExp: address of `[B, H, s]` contiguous f32; nil where it is not needed.
  ///   - sinks: address of `[H]` in the problem's type of them, where it has some: the parts are without.
  ///   - gpu: where they are.
  ///   - stream: a `CUstream` or `cudaStream_t`; nil for this library's own.
  /// - Throws: `AttentionError` where a view is not what the problem says or not aligned, or the driver refuses the
  ///   launch.
  public static func launch(
    _ problem: PartialResultsProblem, partials: DeviceTensorView, partStride: Int, logSumExps: UInt64,
    output: DeviceTensorView, logSumExp: UInt64? = nil, sinks: UInt64? = nil, on gpu: GPU,
    stream: OpaquePointer? = nil
  ) throws(AttentionError) {
    try check(problem, hasSinks: sinks != nil)
    if let sinks, let size = problem.sinkType?.byteCount, sinks % UInt64(size) != 0 {
      throw .alignment(
        tensor: "the list of sinks", what: "address", bytes: Int(truncatingIfNeeded: sinks), multiple: size)
    }
    try partials.check("the partial results", isFor: problem.shape, .f32)
    try output.check("output", isFor: problem.shape, problem.outputType, isWritten: true)
    let (reach, overflow) = partStride.multipliedReportingOverflow(by: problem.parts)
    if overflow || reach.magnitude > 1 << 58 {
      throw .stride(tensor: "the partial results", axis: "part", elements: partStride)
    }
    if partStride % 4 != 0 {
      throw .alignment(tensor: "the partial results", what: "part stride", bytes: partStride * 4)
    }
    for (name, address) in [("the log-sum-exps", logSumExps), ("the log-sum-exp", logSumExp ?? 0)]
    where address % 4 != 0 {
      throw .alignment(tensor: name, what: "address", bytes: Int(truncatingIfNeeded: address), multiple: 4)
    }
    try GPULimits.check(combining: problem)
    if problem.rows == 0 { return }
    let launch = PartialResultsKernel.Launch(
      problem, partials: partials, partStride: partStride, logSumExps: logSumExps, output: output,
      logSumExp: logSumExp ?? 0, sinks: sinks ?? 0)
    try gpu.reporting { () throws(CUDAError) in
      let kernel = try gpu.load(
        PartialResultsKernel(output: problem.outputType, sinkType: problem.sinkType), sharedByteCount: 0)
      let arguments = launch.arguments
      try gpu.context.use { () throws(CUDAError) in
        try withUnsafeTemporaryAllocation(byteCount: arguments.byteCount, alignment: 8) { (buffer) throws(CUDAError) in
          arguments.write(to: buffer)
          try kernel.library.launch(
            LaunchShape(blocks: launch.blocks, threads: PartialResultsKernel.threads), arguments: buffer,
            in: gpu.handle(stream))
        }
      }
    }
  }
}
