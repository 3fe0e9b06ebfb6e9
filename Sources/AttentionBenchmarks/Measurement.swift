internal import AttentionKernels
package import AttentionVerification
package import FlashAttention

/// One case of a benchmark, with all samples.
package struct Measurement: Encodable {
  /// What only a GPU has.
  package struct OnGPU: Encodable {
    package let name: String
    package let kernel: String
    /// Of the plan's `prepare`: compiling, or taking the kernel from the driver's cache.
    package let prepareSeconds: Double
    /// Of the processor, to put one launch into a stream.
    package let hostSeconds: Double
    /// Whether all repeated computations gave the same bits; nil where none were asked for.
    package let areRepeatsEqual: Bool?
  }

  package let problem: String
  package let scalarType: String
  package let batch, queryHeads, keyValueHeads, queries, keys, dimension, valueDimension: Int
  package let mask: String
  package let flops: Double
  package let bytes: Double
  /// Those of them that must be read; what is written may stay in the cache.
  package let readBytes: Double
  package let seconds: [Double]
  package let peakGigaflops: Double
  package let readGigabytesPerSecond: Double
  package let gpu: OnGPU?

  /// Whether the median is above what the probes measured.
  package var exceedsALimit: Bool {
    let seconds = median(self.seconds)
    return flops / seconds / 1e9 > peakGigaflops || readBytes / seconds / 1e9 > readGigabytesPerSecond
  }

  init(
    _ problem: AttentionProblem, seconds: [Double], peakGigaflops: Double, readGigabytesPerSecond: Double,
    gpu: OnGPU? = nil
  ) {
    self.problem = "\(problem)"
    scalarType = problem.scalarType.rawValue
    (batch, queryHeads, keyValueHeads) = (problem.batch, problem.queryHeads, problem.keyValueHeads)
    (queries, keys) = (problem.queries, problem.keys)
    (dimension, valueDimension) = (problem.dimension, problem.valueDimension)
    mask = "\(problem.mask)"
    (flops, bytes) = (problem.flops, problem.bytes)
    readBytes = bytes - Double(problem.outputShape.elementCount * problem.scalarType.byteCount)
    self.seconds = seconds
    self.peakGigaflops = peakGigaflops
    self.readGigabytesPerSecond = readGigabytesPerSecond
    self.gpu = gpu
  }
}

/// Measures on the CPU.
package final class CPUBench {
  private let threads: Int?
  private var peaks: [ScalarType: Double] = [:]

  package init(threads: Int?) { self.threads = threads }

  package func measure(_ plan: AttentionPlan, _ inputs: ProblemInputs, iterations: Int) throws -> Measurement {
    let problem = plan.problem
    let peak = peaks[problem.scalarType] ?? Machine.measuredGigaflops(problem.scalarType, threads: threads)
    peaks[problem.scalarType] = peak
    let probe = MemoryProbe(byteCount: Int(problem.bytes), threads: threads)
    var seconds: [Double] = []
    var reads: [Double] = []
    func run() throws { _ = try plan.run(queries: inputs.queries, keys: inputs.keys, values: inputs.values) }
    try run()
    for _ in 0..<iterations {
      seconds.append(try elapsedSeconds(run))
      reads.append(probe.readGigabytesPerSecond())
    }
    return Measurement(problem, seconds: seconds, peakGigaflops: peak, readGigabytesPerSecond: median(reads))
  }
}

/// Measures on a GPU, on tensors that are there.
package final class GPUBench {
  private let gpu: GPU
  private let probe: GPUProbe
  private let readGigabytesPerSecond: Double
  private var peaks: [Unit: Double] = [:]

  /// What makes the products of a plan.
  private struct Unit: Hashable, Comparable {
    let instruction: String
    let type: ScalarType
    var name: String { "\(instruction) on \(type)" }
    static func < (a: Unit, b: Unit) -> Bool { a.name < b.name }
  }

  package init(_ gpu: GPU) throws {
    self.gpu = gpu
    probe = try GPUProbe(gpu)
    readGigabytesPerSecond = try probe.readGigabytesPerSecond()
  }

  /// What the probes measured.
  package var limits: String {
    let products = peaks.sorted { $0.key < $1.key }.map { "\(fixed($0.value / 1e3, 0)) TFLOPS of \($0.key.name)" }
    return (products + ["\(fixed(readGigabytesPerSecond, 0)) GB/s of reading"]).joined(separator: ", ")
  }

  /// - Parameters:
  ///   - hostCalls: launches whose cost for the processor is measured, as far as the GPU has done them within 20 ms: what it does
  ///     here warms it for the next problem.
  ///   - repeats: computations whose bits are compared.
  package func measure(
    _ plan: AttentionPlan, _ inputs: ProblemInputs, iterations: Int, hostCalls: Int = 0, repeats: Int = 0
  ) throws -> Measurement {
    let problem = plan.problem
    let isHoppers = plan.kernelPlan?.family == HopperForwardFamily.name
    let unit = Unit(instruction: isHoppers ? "wgmma" : "mma.sync", type: problem.scalarType)
    let peak =
      try peaks[unit] ?? 1e3 * (isHoppers ? probe.warpgroupTeraflops() : probe.matrixTeraflops(problem.scalarType))
    peaks[unit] = peak
    let prepareSeconds = try elapsedSeconds { try plan.prepare() }
    let tensors = try DeviceTensors(problem, inputs, on: gpu)
    let seconds = try probe.seconds(iterations: iterations, warmUp: .milliseconds(150)) { () throws(AttentionError) in
      try tensors.launch(plan)
    }
    let hostCalls = min(hostCalls, max(5, Int(0.02 / max(median(seconds), 1e-6))))
    let hostSeconds =
      try elapsedSeconds { for _ in 0..<hostCalls { try tensors.launch(plan) } } / Double(max(hostCalls, 1))
    try gpu.synchronize()
    return Measurement(
      problem, seconds: seconds, peakGigaflops: peak, readGigabytesPerSecond: readGigabytesPerSecond,
      gpu: Measurement.OnGPU(
        name: gpu.name, kernel: "\(plan)", prepareSeconds: prepareSeconds, hostSeconds: hostSeconds,
        areRepeatsEqual: repeats == 0 ? nil : try tensors.areEqual(plan, repeats: repeats)))
  }
}
