internal import ArgumentParser
internal import FlashAttention
internal import FoundationEssentials
internal import TensorFiles

struct BenchCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "bench",
    abstract: "Measure speed, beside what this machine can do.",
    discussion: """
      Without a shape, measures a grid of prefill and decode. GFLOPS count 2 (D + Dv) for each pair of a query and a \
      key that it sees; GB/s count Q, K, V and the output once. The percentages are of what small probes measure in \
      the same run: multiply-adds on registers, and reading a buffer of as many bytes, in turns with the computation.
      """)

  @OptionGroup(title: "Shape") var shape: ShapeOptions

  @OptionGroup(title: "Attention") var options: MaskOptions

  @Option(help: "Where to compute: auto, cpu or gpu.")
  var device = Device.auto

  @Option(help: "Threads on the CPU. (default: all processors)")
  var threads: Int?

  @Option(help: "Runs of each case; the median counts.")
  var iterations = 11

  @Option(help: "Also write all samples to this file, as JSON.")
  var json: String?

  func validate() throws {
    if iterations < 1 { throw ValidationError("--iterations is \(iterations); it must be at least 1.") }
    if let threads, !(1...Machine.processors).contains(threads) {
      throw ValidationError("--threads is \(threads); it must be from 1 to \(Machine.processors), the processors here.")
    }
    if options.isGiven && !shape.isGiven {
      throw ValidationError("Masks, scale and softcap belong to a shape; give --queries or others too.")
    }
  }

  func run() throws {
    let problems = try reportingOptionErrors {
      shape.isGiven
        ? [try shape.problem(mask: options.mask, scale: options.scale, softcap: options.softcap)]
        : try BenchGrid.problems(shape.dtype.map { [$0] } ?? [.f32, .bf16])
    }
    let plans = try reportingOptionErrors {
      try problems.map { try AttentionPlan($0, device: device, threads: threads) }
    }
    if let json { try reportingFileErrors { try OutputFile.check(json) } }
    for problem in problems { try requireMemory(for: problem) }
    var peaks: [ScalarType: Double] = [:]
    var progress = Progress()
    var measurements: [Measurement] = []
    for (index, plan) in plans.enumerated() {
      progress.show("bench: case \(index + 1) of \(plans.count), \(plan.problem)")
      let type = plan.problem.scalarType
      let peak = peaks[type] ?? Machine.measuredGigaflops(type, threads: threads)
      peaks[type] = peak
      measurements.append(try reportingFileErrors { try measure(plan, peak: peak) })
    }
    progress.clear()
    print(Self.report(measurements))
    if plans.count == 1 { print("\n\(plans[0])") }
    if let json { try reportingFileErrors { try write(measurements, to: json) } }
  }

  private func measure(_ plan: AttentionPlan, peak: Double) throws -> Measurement {
    var random = RandomSource(seed: 1)
    let problem = plan.problem
    let queries = Tensor.normal(problem.queryShape, problem.scalarType, from: &random)
    let keys = Tensor.normal(problem.keyShape, problem.scalarType, from: &random)
    let values = Tensor.normal(problem.valueShape, problem.scalarType, from: &random)
    let probe = MemoryProbe(byteCount: Int(problem.bytes), threads: threads)
    var seconds: [Double] = []
    var reads: [Double] = []
    _ = try plan.run(queries: queries, keys: keys, values: values)
    for _ in 0..<iterations {
      seconds.append(try elapsedSeconds { _ = try plan.run(queries: queries, keys: keys, values: values) })
      reads.append(probe.readGigabytesPerSecond())
    }
    return Measurement(problem, seconds: seconds, peakGigaflops: peak, readGigabytesPerSecond: median(reads))
  }

  private static func report(_ measurements: [Measurement]) -> String {
    let rows = measurements.map { m in
      let seconds = median(m.seconds)
      let (gigaflops, gigabytes) = (m.flops / seconds / 1e9, m.bytes / seconds / 1e9)
      return [
        m.problem, duration(seconds), fixed(gigaflops, 1), percent(gigaflops / m.peakGigaflops), fixed(gigabytes, 2),
        percent(gigabytes / m.readGigabytesPerSecond),
      ]
    }
    return table([["problem", "time", "GFLOPS", "of peak", "GB/s", "of reading"]] + rows)
  }

  private func write(_ measurements: [Measurement], to path: String) throws {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
    let report = Report(
      instructionSet: Machine.instructionSets[0], threads: threads ?? Machine.processors, cases: measurements)
    try OutputFile.write([[UInt8](try encoder.encode(report)), [0x0a]], to: path)
  }

  private struct Report: Encodable {
    let instructionSet: String
    let threads: Int
    let cases: [Measurement]
  }
}

/// One case of a benchmark, with all samples.
struct Measurement: Encodable {
  let problem: String
  let scalarType: String
  let batch, queryHeads, keyValueHeads, queries, keys, dimension, valueDimension: Int
  let mask: String
  let flops: Double
  let bytes: Double
  let seconds: [Double]
  let peakGigaflops: Double
  let readGigabytesPerSecond: Double

  init(_ problem: AttentionProblem, seconds: [Double], peakGigaflops: Double, readGigabytesPerSecond: Double) {
    self.problem = "\(problem)"
    scalarType = problem.scalarType.rawValue
    (batch, queryHeads, keyValueHeads) = (problem.batch, problem.queryHeads, problem.keyValueHeads)
    (queries, keys) = (problem.queries, problem.keys)
    (dimension, valueDimension) = (problem.dimension, problem.valueDimension)
    mask = "\(problem.mask)"
    (flops, bytes) = (problem.flops, problem.bytes)
    self.seconds = seconds
    self.peakGigaflops = peakGigaflops
    self.readGigabytesPerSecond = readGigabytesPerSecond
  }
}

/// What `bench` measures without a shape: prefill at three lengths, and one query over long caches.
enum BenchGrid {
  static func problems(_ types: [ScalarType]) throws(AttentionError) -> [AttentionProblem] {
    var problems: [AttentionProblem] = []
    for type in types {
      for (length, dimension) in [(512, 64), (2048, 64), (2048, 128), (4096, 128)] {
        for mask in [AttentionMask.none, .causal] {
          let shape = TensorShape(batch: 1, heads: 8, length: length, dimension: dimension)
          problems.append(
            try AttentionProblem(queries: shape, keys: shape, values: shape, scalarType: type, mask: mask))
        }
      }
      for (batch, keys) in [(1, 1024), (1, 16384), (4, 16384)] {
        let cache = TensorShape(batch: batch, heads: 8, length: keys, dimension: 128)
        problems.append(
          try AttentionProblem(
            queries: TensorShape(batch: batch, heads: 32, length: 1, dimension: 128), keys: cache, values: cache,
            scalarType: type))
      }
    }
    return problems
  }
}
