import AttentionKernels
import FlashAttention
import PTX
import PTXEmulator
import Testing

/// Parts put together by the kernel, on the emulator, beside the CPU's combination.
@Suite struct PartialResultsTests {
  @Test(arguments: ScalarType.computed, [1, 5]) func combines(type: ScalarType, parts: Int) throws {
    try combines(type, parts, sinkType: nil)
  }

  /// A sink counts once, whatever the parts; where no part has a key for a query, it is the log-sum-exp.
  @Test(arguments: ScalarType.computed) func countsSinksOnce(sinkType: ScalarType) throws {
    try combines(.bf16, 3, sinkType: sinkType)
    try combines(.f32, 1, sinkType: sinkType)
  }

  private func combines(_ type: ScalarType, _ parts: Int, sinkType: ScalarType?) throws {
    var problem = try PartialResultsProblem(
      parts: parts, batch: 2, heads: 3, queries: 5, dimension: 20, outputType: type)
    problem.sinkType = sinkType
    // Exact in all types.
    let sinks: [Float] = [0.5, -.infinity, 6]
    let count = problem.shape.elementCount
    func number(_ i: Int) -> Float { Float(i * 2_654_435_761 % 1009) / 504 - 1 }
    var logSumExps = (0..<parts * problem.rows).map { number($0) * 9 }
    var values = (0..<parts * count).map { number($0 + 7) }
    // A part without keys holds NaN, and is marked by -inf or +inf; a row has no keys at all.
    for part in 0..<parts {
      for row in [3, 3 + part] {
        logSumExps[part * problem.rows + row] = part % 2 == 0 ? -.infinity : .infinity
        for d in 0..<20 { values[part * count + row * 20 + d] = .nan }
      }
    }
    let memory = GlobalMemory()
    let source = memory.allocate("partials", values, access: .readOnly)
    let statistics = memory.allocate("log_sum_exps", logSumExps, access: .readOnly)
    let target = memory.allocate("output", byteCount: count * type.byteCount, access: .readWrite)
    let targetStatistics = memory.allocate("log_sum_exp", byteCount: problem.rows * 4, access: .readWrite)
    func view(_ address: UInt64, _ type: ScalarType) -> DeviceTensorView {
      DeviceTensorView(address: address, scalarType: type, shape: problem.shape, layout: .bhnd)
    }
    let sinkAddress = sinkType.map { type in
      switch type {
      case .f16: memory.allocate("sinks", sinks.map { Float16($0).bitPattern }, access: .readOnly)
      case .bf16: memory.allocate("sinks", sinks.map { BFloat16($0).bitPattern }, access: .readOnly)
      case .f32, .e4m3: memory.allocate("sinks", sinks, access: .readOnly)
      }
    }
    let launch = PartialResultsKernel.Launch(
      problem, partials: view(source, .f32), partStride: count, logSumExps: statistics, output: view(target, type),
      logSumExp: targetStatistics, sinks: sinkAddress ?? 0)
    let counters = try Emulator.run(
      Program(try PartialResultsKernel(output: type, sinkType: sinkType).kernel()),
      Launch(
        blocks: (launch.blocks, 1, 1), arguments: launch.arguments.arguments()), memory: memory)
    #expect(counters.traffic["partials"]?.bytesRead == parts * count * 4)

    var onHost = problem
    onHost.sinkType = sinkType == nil ? nil : .f32
    let hostProblem = onHost
    var expected = [Float](repeating: 0, count: problem.rows)
    let right = try values.withUnsafeBytes { bytes in
      try Tensor(shape: problem.shape, scalarType: type) { (o) throws(AttentionError) in
        try logSumExps.withUnsafeBufferPointer { (own) throws(AttentionError) in
          try expected.withUnsafeMutableBufferPointer { (lse) throws(AttentionError) in
            try PartialResults.combine(
              hostProblem,
              partials: (0..<parts).map {
                TensorView(
                  base: bytes.baseAddress! + $0 * count * 4, scalarType: .f32, shape: problem.shape, layout: .bhnd)
              }, logSumExps: own, output: o, logSumExp: lse,
              sinks: sinkType == nil ? nil : sinks)
          }
        }
      }
    }
    let own = try #require(memory.read(UInt8.self, count: count * type.byteCount, from: target))
    own.withUnsafeBytes { bytes in
      for (i, value) in right.floats.enumerated() {
        let result = type.load(from: bytes.baseAddress!, at: i)
        #expect(abs(result - value) <= Float(type.ulp(of: Double(value))) + 1e-6)
      }
    }
    for (own, right) in zip(
      try #require(memory.read(Float.self, count: problem.rows, from: targetStatistics)), expected)
    {
      #expect(own == right || abs(own - right) < 1e-5)
    }
  }
}
