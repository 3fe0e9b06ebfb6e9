import AttentionKernels
import FlashAttention
import PTX
import PTXEmulator
import Testing

/// Parts put together by the kernel, on the emulator, beside the CPU's combination.
@Suite struct PartialResultsTests {
  @Test(arguments: ScalarType.computed, [1, 5]) func combines(type: ScalarType, parts: Int) throws {
    let problem = try PartialResultsProblem(
      parts: parts, batch: 2, heads: 3, queries: 5, dimension: 20, outputType: type)
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
    let launch = PartialResultsKernel.Launch(
      problem, partials: view(source, .f32), partStride: count, logSumExps: statistics, output: view(target, type),
      logSumExp: targetStatistics)
    let counters = try Emulator.run(
      Program(try PartialResultsKernel(output: type).kernel()),
      Launch(
        blocks: (launch.blocks, 1, 1), arguments: launch.arguments.arguments()), memory: memory)
    #expect(counters.traffic["partials"]?.bytesRead == parts * count * 4)

    var expected = [Float](repeating: 0, count: problem.rows)
    let right = try values.withUnsafeBytes { bytes in
      try Tensor(shape: problem.shape, scalarType: type) { (o) throws(AttentionError) in
        try logSumExps.withUnsafeBufferPointer { (own) throws(AttentionError) in
          try expected.withUnsafeMutableBufferPointer { (lse) throws(AttentionError) in
            try PartialResults.combine(
              problem,
              partials: (0..<parts).map {
                TensorView(
                  base: bytes.baseAddress! + $0 * count * 4, scalarType: .f32, shape: problem.shape, layout: .bhnd)
              }, logSumExps: own, output: o, logSumExp: lse)
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
