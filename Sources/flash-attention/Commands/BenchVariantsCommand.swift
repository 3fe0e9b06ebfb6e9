internal import ArgumentParser
internal import AttentionBenchmarks
internal import AttentionKernels
internal import AttentionVerification
internal import FlashAttention
internal import PTX
internal import PTXEmulator

struct BenchVariantsCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "variants",
    abstract: "Compare the rungs of the ladder: every way of splitting the work and of sharing memory.",
    discussion: """
      A line for each rung and number of stages, each with the tiling that suits it best: three values of the output (the \
      first two and the last), the median time, TFLOPS by 4 B H N N D (half of it under a causal mask), the part of what \
      mma.sync reached in this run, and the error of the last head's last 64 rows as a part of what is allowed beside the \
      64-bit reference. Without a GPU, or with --emulate, the kernels run on the emulator, for 256 queries and keys at \
      most, and the line says what they did: counts of instructions, bytes that each tensor moved, and bank conflicts. \
      Documentation/Ladder.md explains the rungs. \(DefaultType.ofKernels)
      """)

  @OptionGroup(title: "Shape") var shape: ShapeOptions

  @OptionGroup(title: "Attention") var options: MaskOptions

  @OptionGroup var tiling: TilingOptions

  @Option(help: "Runs of each rung; the median counts.")
  var iterations = 11

  @Option(help: "Also compute this often and compare all bits of the outputs.")
  var repeats = 0

  @Flag(help: "Count on the emulator, even where there is a GPU.")
  var emulate = false

  @Option(help: JSONReport.help)
  var json: JSONReport?

  func validate() throws {
    if iterations < 1 { throw ValidationError("--iterations is \(iterations); it must be at least 1.") }
  }

  func run() throws {
    let problem = try reportingOptionErrors {
      try shape.problem(mask: options.mask, scale: options.scale, softcap: options.softcap, defaultType: .f16)
    }
    try requireMemory(for: problem)
    try reportingFileErrors { try json?.check() }
    let gpu: GPU?
    do throws(AttentionError) {
      gpu = emulate ? nil : try GPU.device()
    } catch {
      printError("\(error) The kernels run on the emulator.")
      gpu = nil
    }
    let lines = try gpu.map { try measure(problem, on: $0) } ?? count(problem)
    try reportingFileErrors { try json?.write(lines) }
    if let differing = lines.first(where: { $0.areRepeatsEqual == false }) {
      printError("Error: \(differing.rung), \(differing.stages) stages: repeated computations differ in some bit.")
      throw ExitCode.comparisonFailed
    }
    if let wrong = lines.first(where: { !(($0.errorRatio ?? 0) <= 1) }) {
      printError(
        "Error: \(wrong.rung), \(wrong.stages) stages: the error is \(fixed(wrong.errorRatio!, 2)) times what is allowed."
      )
      throw ExitCode.comparisonFailed
    }
  }

  /// A line of the table.
  struct Line: Encodable {
    let rung: String
    let stages: Int
    /// Why there is no kernel.
    var refusal: String?
    var tiling: String?
    var sharedBytes: Int?
    var registers: Int?
    var samples: [Double]?
    var seconds: [Double]?
    var teraflops: Double?
    var partOfLimit: Double?
    var errorRatio: Double?
    var areRepeatsEqual: Bool?
    var counters: Counts?

    /// What the emulator counted.
    struct Counts: Encodable {
      let matrixInstructions, exponentials, barriers, sharedPasses, bankConflicts: Int
      let bytes: [String: Int]
    }
  }

  /// The tiling of a rung with so many stages that should be fastest, or why there is none.
  private func tiling(_ problem: AttentionProblem, _ line: Line, _ rung: Rung, on gpu: GPULimits) -> Result {
    let choice = Choice(
      problem, on: gpu, among: ForwardFamily.tilings(of: rung, stages: line.stages, sums: tiling.sumsOfProducts),
      of: ForwardFamily.self)
    guard let best = choice.ranked.first?.tiling as? ForwardTiling else {
      return .refused(choice.refused.last?.reason ?? "has no tiling for this shape")
    }
    guard let changes = tiling.changes else { return .tiling(best) }
    return .tiling(best.changed(by: changes) ?? best)
  }

  private enum Result {
    case tiling(ForwardTiling)
    case refused(String)
  }

  private static var rungs: [(Rung, Int)] {
    Rung.allCases.flatMap { rung in [1, 2, 3].map { (rung, $0) } }
  }

  // MARK: - On a GPU

  private func measure(_ problem: AttentionProblem, on gpu: GPU) throws -> [Line] {
    let inputs = try ProblemInputs(problem)
    let bench = try reportingFileErrors { try GPUBench(gpu) }
    let check = try reportingFileErrors { try SampledCheck(problem, inputs, sums: tiling.sums) }
    var progress = Progress()
    var lines: [Line] = []
    for (rung, stages) in Self.rungs {
      progress.show("bench variants: \(rung), \(stages) stages")
      var line = Line(rung: "\(rung)", stages: stages)
      switch tiling(problem, line, rung, on: gpu.limits) {
      case .refused(let reason): line.refusal = reason
      case .tiling(let tiling):
        let plan: AttentionPlan
        do throws(AttentionError) {
          plan = try AttentionPlan(
            problem, device: .gpu,
            kernels: KernelOptions(family: ForwardFamily.name, tiling: try TilingChanges(tiling.changes)))
        } catch {
          guard case .tiling(_, let reason) = error else { return try reportingFileErrors { throw error } }
          line.refusal = reason
          break
        }
        try reportingFileErrors {
          let measured = try bench.measure(plan, inputs, iterations: iterations, repeats: repeats)
          let (output, logSumExp) = try DeviceTensors(problem, inputs, on: gpu).result(of: plan)
          line.tiling = tiling.changes
          line.registers = plan.compiled?.registers
          line.samples = samples(of: output, problem)
          line.seconds = measured.seconds
          line.teraflops = problem.flops / median(measured.seconds) / 1e12
          line.partOfLimit = line.teraflops! * 1e3 / measured.peakGigaflops
          line.errorRatio = check.ratio(output: output, logSumExp: logSumExp)
          line.areRepeatsEqual = measured.gpu?.areRepeatsEqual
        }
      }
      lines.append(line)
    }
    progress.clear()
    json.say("\(problem), on \(gpu.name)")
    let rows = lines.map { line in
      [title(line)] + (line.samples ?? []).map { fixed($0, 8) }
        + (line.seconds.map {
          [
            "\(fixed(median($0) * 1e3, 4)) ms", fixed(line.teraflops!, 2), percent(line.partOfLimit!),
            fixed(line.errorRatio!, 2),
          ]
        } ?? ["", "", "", "no kernel", "", "", ""])
    }
    json.say(table([["rung", "first", "second", "last", "time", "TFLOPS", "of mma.sync", "error"]] + rows))
    printRefusals(lines)
    json.say("limits: \(bench.limits)")
    if repeats > 0 && lines.allSatisfy({ $0.areRepeatsEqual != false }) {
      json.say("\(repeats) repeats of each gave the same bits.")
    }
    return lines
  }

  // MARK: - On the emulator

  private func count(_ whole: AttentionProblem) throws -> [Line] {
    func short(_ shape: TensorShape, heads: Int) -> TensorShape {
      TensorShape(batch: 1, heads: heads, length: min(shape.length, 256), dimension: shape.dimension)
    }
    let problem = try reportingOptionErrors {
      try AttentionProblem(
        queries: short(whole.queryShape, heads: whole.groupSize), keys: short(whole.keyShape, heads: 1),
        values: short(whole.valueShape, heads: 1), scalarType: whole.scalarType, mask: whole.mask, scale: whole.scale,
        softcap: whole.softcap)
    }
    let limits = GPULimits.typical(of: .sm90)
    let inputs = try ProblemInputs(problem)
    let check = try reportingFileErrors { try SampledCheck(problem, inputs, sums: tiling.sums) }
    let assembler = PTXAssembler.find()
    var progress = Progress()
    var lines: [Line] = []
    for (rung, stages) in Self.rungs {
      progress.show("bench variants: \(rung), \(stages) stages, emulated", isSure: true)
      var line = Line(rung: "\(rung)", stages: stages)
      switch tiling(whole, line, rung, on: limits) {
      case .refused(let reason): line.refusal = reason
      case .tiling(let tiling):
        let plan: KernelPlan
        do throws(AttentionError) {
          plan = try KernelPlan(problem, on: limits, tiling, of: ForwardFamily.self)
        } catch {
          guard case .tiling(_, let reason) = error else { return try reportingOptionErrors { throw error } }
          line.refusal = reason
          break
        }
        let run = try EmulatedRun(plan, inputs)
        line.tiling = tiling.changes
        line.sharedBytes = plan.launches.attention.sharedByteCount
        line.registers = try assembler?.assemble(plan.launches.attention.kernel.kernel().text(), for: limits.target)?
          .registers
        line.samples = samples(of: run.output, problem)
        line.errorRatio = check.ratio(output: run.output, logSumExp: run.logSumExp)
        line.counters = Line.Counts(
          matrixInstructions: run.counters.matrixInstructions, exponentials: run.counters.exponentials,
          barriers: run.counters.barriers, sharedPasses: run.counters.sharedPasses,
          bankConflicts: run.counters.bankConflicts,
          bytes: run.counters.traffic.mapValues { $0.bytesRead + $0.bytesWritten })
      }
      lines.append(line)
    }
    progress.clear()
    json.say("\(problem), on the emulator of \(limits.name)")
    let header = [
      "rung", "mma", "exp", "Q", "K", "V", "O", "barriers", "shared passes", "conflicts", "shared KB", "registers",
      "error",
    ]
    let rows = lines.map { line in
      [title(line)]
        + (line.counters.map { c in
          [
            "\(c.matrixInstructions)", "\(c.exponentials)", kilobytes(c.bytes["q"]), kilobytes(c.bytes["k"]),
            kilobytes(c.bytes["v"]), kilobytes(c.bytes["o"]), "\(c.barriers)", "\(c.sharedPasses)",
            "\(c.bankConflicts)", fixed(Double(line.sharedBytes!) / 1024, 0), line.registers.map { "\($0)" } ?? "?",
            fixed(line.errorRatio!, 2),
          ]
        } ?? ["no kernel"])
    }
    json.say(table([header] + rows))
    json.say(
      "Instructions of warps, exponentials of lanes, bytes of global memory in KB; barriers counted for each warp.")
    if assembler == nil { json.say("registers: ptxas is neither on the PATH nor in .venv.") }
    printRefusals(lines)
    return lines
  }

  private func kilobytes(_ bytes: Int?) -> String { fixed(Double(bytes ?? 0) / 1024, 0) }

  private func title(_ line: Line) -> String {
    "\(line.rung), \(line.stages) \(line.stages == 1 ? "stage" : "stages")"
      + (line.tiling?.includes("sums=f16") == true ? ", f16 sums" : "")
  }

  private func printRefusals(_ lines: [Line]) {
    for line in lines { if let reason = line.refusal { json.say("\(title(line)): \(reason).") } }
  }

  /// The first two and the last element.
  private func samples(of output: [UInt8], _ problem: AttentionProblem) -> [Double] {
    let count = output.count / problem.scalarType.byteCount
    return output.withUnsafeBytes { bytes in
      [0, min(1, count - 1), count - 1].map { Double(problem.scalarType.load(from: bytes.baseAddress!, at: $0)) }
    }
  }
}

extension TilingOptions {
  /// What the tool was given; it was read before.
  fileprivate var changes: TilingChanges? { tiling.flatMap { try? TilingChanges($0) } }
  fileprivate var sumsOfProducts: Matrix.Accumulator {
    changes.flatMap { ForwardTiling().changed(by: $0) }?.sums ?? .f32
  }
  /// The yardstick for what these tilings sum in.
  fileprivate var sums: PlainAttention.Sums { sumsOfProducts == .f16 ? .half : .cut }
}
