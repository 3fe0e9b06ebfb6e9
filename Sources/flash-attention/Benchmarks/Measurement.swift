internal import FlashAttention

/// One case of a benchmark, with all samples.
struct Measurement: Encodable {
  /// What only a GPU has.
  struct OnGPU: Encodable {
    let name: String
    let kernel: String
    /// Of the plan's `prepare`: compiling, or taking the kernel from the driver's cache.
    let prepareSeconds: Double
    /// Of the processor, to put one launch into a stream.
    let hostSeconds: Double
    /// Whether all repeated computations gave the same bits; nil where none were asked for.
    let areRepeatsEqual: Bool?
  }

  let problem: String
  let scalarType: String
  let batch, queryHeads, keyValueHeads, queries, keys, dimension, valueDimension: Int
  let mask: String
  let flops: Double
  let bytes: Double
  /// Those of them that must be read; what is written may stay in the cache.
  let readBytes: Double
  let seconds: [Double]
  let peakGigaflops: Double
  let readGigabytesPerSecond: Double
  let gpu: OnGPU?

  /// Whether the median is above what the probes measured.
  var exceedsALimit: Bool {
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

/// The tensors of a case: standard normal.
struct BenchInputs {
  let queries, keys, values: Tensor

  init(_ problem: AttentionProblem) throws(AttentionError) {
    var random = RandomSource(seed: 1)
    queries = try Tensor.normal(problem.queryShape, problem.scalarType, from: &random)
    keys = try Tensor.normal(problem.keyShape, problem.scalarType, from: &random)
    values = try Tensor.normal(problem.valueShape, problem.scalarType, from: &random)
  }
}

/// Measures on the CPU.
final class CPUBench {
  private let threads: Int?
  private var peaks: [ScalarType: Double] = [:]

  init(threads: Int?) { self.threads = threads }

  func measure(_ plan: AttentionPlan, _ inputs: BenchInputs, iterations: Int) throws -> Measurement {
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
final class GPUBench {
  private let gpu: GPU
  private let probe: GPUProbe
  private let readGigabytesPerSecond: Double
  private var peaks: [ScalarType: Double] = [:]

  init(_ gpu: GPU) throws {
    self.gpu = gpu
    probe = try GPUProbe(gpu)
    readGigabytesPerSecond = try probe.readGigabytesPerSecond()
  }

  /// What the probes measured.
  var limits: String {
    let products = peaks.sorted { $0.key.rawValue < $1.key.rawValue }
      .map { "\(fixed($0.value / 1e3, 0)) TFLOPS of mma.sync on \($0.key)" }
    return (products + ["\(fixed(readGigabytesPerSecond, 0)) GB/s of reading"]).joined(separator: ", ")
  }

  /// - Parameters:
  ///   - hostCalls: launches whose cost for the processor is measured.
  ///   - repeats: computations whose bits are compared.
  func measure(
    _ plan: AttentionPlan, _ inputs: BenchInputs, iterations: Int, hostCalls: Int = 0, repeats: Int = 0
  ) throws -> Measurement {
    let problem = plan.problem
    let peak = try peaks[problem.scalarType] ?? 1e3 * probe.matrixTeraflops(problem.scalarType)
    peaks[problem.scalarType] = peak
    let prepareSeconds = try elapsedSeconds { try plan.prepare() }
    let tensors = try DeviceTensors(problem, inputs, on: gpu)
    let seconds = try probe.seconds(iterations: iterations) { () throws(AttentionError) in try tensors.launch(plan) }
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

/// The tensors of a problem in a GPU's memory.
struct DeviceTensors {
  private let buffers: [GPUBuffer]
  private let queries, keys, values, output: DeviceTensorView
  private let logSumExp: GPUBuffer

  init(_ problem: AttentionProblem, _ inputs: BenchInputs, on gpu: GPU) throws {
    func upload(_ tensor: Tensor) throws -> (GPUBuffer, DeviceTensorView) {
      try tensor.withBytes { bytes in
        let buffer = try GPUBuffer(byteCount: bytes.count, on: gpu)
        try buffer.copy(from: bytes)
        return (
          buffer,
          DeviceTensorView(
            address: buffer.address, scalarType: tensor.scalarType, shape: tensor.shape, layout: tensor.layout)
        )
      }
    }
    let (q, k, v) = (try upload(inputs.queries), try upload(inputs.keys), try upload(inputs.values))
    let o = try GPUBuffer(byteCount: problem.outputShape.elementCount * problem.scalarType.byteCount, on: gpu)
    logSumExp = try GPUBuffer(byteCount: problem.logSumExpCount * 4, on: gpu)
    buffers = [q.0, k.0, v.0, o]
    (queries, keys, values) = (q.1, k.1, v.1)
    output = DeviceTensorView(
      address: o.address, scalarType: problem.scalarType, shape: problem.outputShape, layout: inputs.queries.layout)
  }

  /// The output and the log-sum-exp of one computation.
  func result(of plan: AttentionPlan) throws -> (output: [UInt8], logSumExp: [Float]) {
    try buffers[3].fill(0xff)
    try launch(plan)
    return try download()
  }

  /// What was computed last; the library's stream must know that it is done.
  func download() throws -> (output: [UInt8], logSumExp: [Float]) {
    var output = [UInt8](repeating: 0, count: buffers[3].byteCount)
    try output.withUnsafeMutableBytes { try buffers[3].copy(to: $0) }
    var statistics = [Float](repeating: 0, count: logSumExp.byteCount / 4)
    try statistics.withUnsafeMutableBytes { try logSumExp.copy(to: $0) }
    return (output, statistics)
  }

  /// Whether computing again and again gives the same bits.
  func areEqual(_ plan: AttentionPlan, repeats: Int) throws -> Bool {
    let first = try result(of: plan).output
    return try (1..<max(repeats, 1)).allSatisfy { _ in try result(of: plan).output == first }
  }

  func launch(_ plan: AttentionPlan, stream: OpaquePointer? = nil) throws(AttentionError) {
    try plan.launch(
      queries: queries, keys: keys, values: values, output: output, logSumExp: logSumExp.address, stream: stream)
  }
}
