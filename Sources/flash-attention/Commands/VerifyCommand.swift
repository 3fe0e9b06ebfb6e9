internal import ArgumentParser
internal import AttentionBenchmarks
internal import AttentionKernels
internal import AttentionVerification
internal import FlashAttention
internal import PTX
internal import PTXEmulator
internal import Synchronization

struct VerifyCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "verify",
    abstract: "Compare random problems with a 64-bit reference.",
    discussion: """
      The largest and the mean error of output and log-sum-exp may be at most twice that of a plain computation in the \
      same precision, plus half an ulp of the largest value. A ratio of 1 is all that is allowed.

      On a GPU, the cases are spread over a number of kernels, which are compiled first, on all processors; the types are \
      f16 and bf16, and strides multiples of 16 bytes. With --emulate, the same PTX also runs on the emulator, and the \
      two are compared: integers, moves, conversions and f32 arithmetic bit for bit, ex2 within 4 ulp, rcp within 2, mma \
      within its accumulation error, and attention itself within the tolerance. Without a GPU, the emulator is compared \
      with the reference alone.
      """)

  @Option(help: "How many problems.")
  var cases = 200

  @Option(help: "The same seed gives the same problems.")
  var seed: UInt64 = 0

  @Option(help: "Run only the problem of this number, and describe it.")
  var only: Int?

  @Option(help: "Where to compute: auto (the GPU where there is one), cpu, gpu, or gpu:1 for another one.")
  var device = Device.auto

  @Option(help: "On a GPU, how many kernels the problems are spread over.")
  var kernels = 64

  @Flag(help: "Also run the GPU's kernels on the emulator.")
  var emulate = false

  @OptionGroup var vectors: VectorsOption

  @OptionGroup var tiling: TilingOptions

  @Flag(help: "On a GPU, draw the tilings too: every rung of the ladder, every layout, store and accumulator.")
  var variants = false

  @Option(
    help:
      "On a GPU, the kernels of this family for the problems that they take: forward, decode, hopper or hopper-decode; for others the plan's."
  )
  var family: String?

  @Flag(
    help: "Draw problems over caches instead: lengths, pages, places and paddings; everything around the keys is NaN.")
  var cache = false

  @Flag(help: "Draw problems for gradients instead, packed sequences among them; a forward pass comes first.")
  var backward = false

  @Flag(
    help: """
      Let eight threads work at once instead, each with a stream of its own and a sequence in a cache that all share, for as many \
      rounds as --cases; all bits must be those of one thread after the other.
      """)
  var concurrent = false

  @Option(help: JSONReport.helpWithoutSamples)
  var json: JSONReport?

  private static let threads = 8

  func validate() throws {
    if concurrent && (cache || emulate || variants || tiling.tiling != nil || only != nil) {
      throw ValidationError("--concurrent goes with --cases and --device alone.")
    }
    if backward
      && (cache || concurrent || emulate || variants || tiling.tiling != nil || family != nil)
    {
      throw ValidationError("--backward goes with --cases, --seed, --only, --device and --kernels alone.")
    }
    if cache && (emulate || variants || tiling.tiling != nil) {
      throw ValidationError("--cache goes with --cases, --seed, --only, --device, --kernels and --family alone.")
    }
    if variants && device == .cpu {
      throw ValidationError("--variants belongs to --device gpu; the CPU has no tilings.")
    }
    if variants && tiling.tiling != nil {
      throw ValidationError("--variants draws tilings, and --tiling gives one; leave out one of them.")
    }
    if let family {
      guard KernelFamilies.all.contains(where: { $0.name == family }) else {
        throw ValidationError(
          "--family is \(family); it must be one of \(KernelFamilies.all.map { $0.name }.joined(separator: ", ")).")
      }
      if concurrent || variants || device == .cpu {
        throw ValidationError("--family goes with --device gpu, and not with --concurrent or --variants.")
      }
    }
    try vectors.choose(for: device)
    if emulate && device == .cpu { throw ValidationError("--emulate belongs to --device gpu; the CPU runs no PTX.") }
    if kernels < 1 { throw ValidationError("--kernels is \(kernels); it must be at least 1.") }
    if cases < 1 { throw ValidationError("--cases is \(cases); it must be at least 1.") }
    if let only, only < 0 { throw ValidationError("--only is \(only); problems are counted from 0.") }
  }

  func run() throws {
    // Neither says anything of the CPU.
    if (variants || family != nil) && !emulate && !usesGPU {
      try reportingFileErrors { _ = try GPU.device(device.ordinal ?? 0) }
    }
    try reportingFileErrors { try json?.check() }
    let numbers = only.map { $0...$0 } ?? 0...cases - 1
    if cache { return try runOnCaches(numbers) }
    if backward { return try runBackward(numbers) }
    if concurrent { return try runAtOnce() }
    let outcomes =
      emulate ? try runOnEmulator(numbers) : usesGPU ? try runOnGPU(numbers) : try runOnCPU(numbers)
    var tallies = CaseFamily.allCases.map { Tally(family: $0) }
    for (test, outcome) in outcomes {
      tallies[CaseFamily.allCases.firstIndex(of: test.family)!].add(outcome)
      if only != nil { describe(test) }
    }
    let done = tallies.filter { $0.count > 0 }
    try conclude(
      "problems",
      outcomes.map { test, outcome in
        Judged(problem: "\(test.problem)", outcome: outcome, command: command(for: test))
      }, families: done.map(\.report)
    ) { _ in table([["family", "cases", "failed", "worst ratio"]] + done.map(\.row)) }
  }

  // MARK: - What is said at the end

  /// A problem, what became of it, and the command that runs it alone.
  private struct Judged {
    let problem: String
    let outcome: CaseOutcome
    let command: String
  }

  /// Says what failed, then a summary of all, and writes the report.
  /// - Throws: `ExitCode.comparisonFailed` where something failed.
  private func conclude(
    _ kind: String, _ results: [Judged], families: [VerifyReport.Family]? = nil, summary: (String) -> String
  ) throws {
    let failures = results.compactMap { one in
      one.outcome.failure.map { VerifyReport.Failure(problem: one.problem, failure: $0, command: one.command) }
    }
    let worst = results.map(\.outcome.ratio).max() ?? 0
    for one in failures { json.say("FAILED  \(one.problem): \(one.failure)\n        \(one.command ?? "")") }
    json.say(summary("worst ratio \(fixed(worst, 2))"))
    json.say(failures.isEmpty ? "All passed." : "\(failures.count) failed.")
    try reportingFileErrors {
      try json?.write(
        VerifyReport(
          kind: kind, seed: seed, cases: results.count, worstRatio: worst, failures: failures, families: families))
    }
    if !failures.isEmpty { throw ExitCode.comparisonFailed }
  }

  private var usesGPU: Bool { device.ordinal != nil || device == .auto && (try? GPU.device()) != nil }

  private func runOnCPU(_ numbers: ClosedRange<Int>) throws -> [(VerificationCase, CaseOutcome)] {
    var progress = Progress()
    defer { progress.clear() }
    return try numbers.map { number in
      let test = VerificationCase(seed: seed, number: number)
      progress.show("verify: case \(number) of \(cases), \(test.family.rawValue)")
      return (test, try reportingFileErrors { try test.run(on: .cpu) })
    }
  }

  /// Compiles all kernels, then works on as many cases at once as there are processors: while one is compared with its
  /// reference, the GPU computes another.
  private func runOnGPU(_ numbers: ClosedRange<Int>) throws -> [(VerificationCase, CaseOutcome)] {
    let tests = numbers.map { VerificationCase(seed: seed, number: $0, kernels: kernels) }
    return try reportingFileErrors {
      let gpu = try GPU.device(device.ordinal ?? 0)
      let plans = try tests.map {
        try AttentionPlan($0.problem, device: .gpu(gpu.ordinal), kernels: options(for: $0, on: gpu.limits))
      }
      let progress = Mutex(Progress())
      defer { progress.withLock { $0.clear() } }
      let compiling = try elapsedSeconds {
        try eachAtOnce(plans.count) { index throws(AttentionError) in
          progress.withLock { $0.show("verify: compiling, plan \(index) of \(plans.count)") }
          try plans[index].prepare()
        }
      }
      let outcomes = Mutex([CaseOutcome?](repeating: nil, count: tests.count))
      try eachAtOnce(tests.count) { index throws(AttentionError) in
        progress.withLock { $0.show("verify: case \(index) of \(tests.count)") }
        let outcome = tests[index].judge(
          try tests[index].computeOnGPU(plans[index], gpu),
          sums: (plans[index].kernelPlan?.tiling as? ForwardTiling)?.sums == .f16 ? .half : .cut)
        outcomes.withLock { $0[index] = outcome }
      }
      progress.withLock { $0.clear() }
      json.say(
        "\(gpu.name): \(gpu.compiledKernelCount) kernels, compiled or loaded in \(duration(compiling)); "
          + families(plans))
      return zip(tests, outcomes.withLock { $0 }).map { ($0, $1!) }
    }
  }

  /// How many problems each family's kernels take.
  private func families(_ plans: [AttentionPlan]) -> String {
    Dictionary(grouping: plans.compactMap(\.kernelPlan), by: \.family)
      .map { "\($0.value.count) problems by the \($0.key) kernels" }.sorted().joined(separator: ", ")
  }

  private func runAtOnce() throws {
    try reportingFileErrors {
      let gpu = usesGPU ? try GPU.device(device.ordinal ?? 0) : nil
      let differences = try ConcurrentCheck(threads: Self.threads, rounds: cases, gpu: gpu).run()
      json.say("\(Self.threads) threads, \(cases) rounds, \(gpu.map { "streams on \($0.name)" } ?? "CPU")")
      for difference in differences.prefix(10) { json.say("FAILED  \(difference)") }
      json.say(differences.isEmpty ? "All bits agree." : "\(differences.count) rounds differ.")
      try json?.write(
        VerifyReport(
          kind: "threads at once", seed: nil, cases: cases, worstRatio: nil,
          failures: differences.map { VerifyReport.Failure(problem: "a round", failure: "\($0)") }))
      if !differences.isEmpty { throw ExitCode.comparisonFailed }
    }
  }

  private func runOnCaches(_ numbers: ClosedRange<Int>) throws {
    let isForGPU = usesGPU
    let tests = numbers.map { CacheCase(seed: seed, number: $0, kernels: kernels, isForGPU: isForGPU) }
    let outcomes = Mutex([CaseOutcome?](repeating: nil, count: tests.count))
    try reportingFileErrors {
      let limits = isForGPU ? try GPU.device(device.ordinal ?? 0).limits : nil
      let plans = try tests.map { test in
        try AttentionPlan(
          test.problem, device: isForGPU ? .gpu(device.ordinal ?? 0) : .cpu,
          kernels: limits.map { familyOptions(for: test.problem, on: $0) } ?? KernelOptions())
      }
      try eachAtOnce(plans.count) { index throws(AttentionError) in try plans[index].prepare() }
      if isForGPU { json.say(families(plans)) }
      let progress = Mutex(Progress())
      // On the CPU each case has all processors already.
      func one(_ index: Int) throws(AttentionError) {
        progress.withLock { $0.show("verify: case \(index) of \(tests.count), over a cache") }
        let outcome = try tests[index].run(plans[index])
        outcomes.withLock { $0[index] = outcome }
      }
      if isForGPU {
        try eachAtOnce(tests.count) { index throws(AttentionError) in
          let outcome = try tests[index].run(plans[index])
          outcomes.withLock { $0[index] = outcome }
        }
      } else {
        for index in tests.indices { try one(index) }
      }
      progress.withLock { $0.clear() }
    }
    let results = outcomes.withLock { $0 }.map { $0! }
    let judged = zip(tests, results).map { test, outcome in
      if only != nil { json.say("\(test.problem)\n\(test.scenario.entries)") }
      return Judged(
        problem: "\(test.problem)", outcome: outcome,
        command: test.command(device: isForGPU ? .gpu(device.ordinal ?? 0) : .cpu, kernels: kernels)
          + (family.map { " --family \($0)" } ?? ""))
    }
    try conclude("caches", judged) { "\(tests.count) problems over caches, \($0)" }
  }

  private func runBackward(_ numbers: ClosedRange<Int>) throws {
    let isForGPU = usesGPU
    let device = isForGPU ? Device.gpu(device.ordinal ?? 0) : .cpu
    let tests = numbers.map { GradientCase(seed: seed, number: $0, kernels: isForGPU ? kernels : nil) }
    let outcomes = Mutex([CaseOutcome?](repeating: nil, count: tests.count))
    let progress = Mutex(Progress())
    try reportingFileErrors {
      @Sendable func one(_ index: Int) throws(AttentionError) {
        progress.withLock { $0.show("verify: case \(index) of \(tests.count), gradients") }
        let outcome = try tests[index].run(on: device)
        outcomes.withLock { $0[index] = outcome }
      }
      // On the CPU each case has all processors already.
      if isForGPU {
        try eachAtOnce(tests.count) { index throws(AttentionError) in try one(index) }
      } else {
        for index in tests.indices { try one(index) }
      }
    }
    progress.withLock { $0.clear() }
    let results = outcomes.withLock { $0 }.map { $0! }
    let judged = zip(tests, results).map { test, outcome in
      if only != nil { json.say("\(test.problem)\n\(test.sequences.map { "\($0)" } ?? "whole")") }
      return Judged(problem: "\(test.problem)", outcome: outcome, command: test.command(device: device))
    }
    try conclude("gradients", judged) { "gradients of \(tests.count) problems, \($0)" }
  }

  /// Runs the cases on the emulator and, where there is a GPU, there too. Large ones are left out: the emulator needs
  /// about a second for 10^9 operations.
  private func runOnEmulator(_ numbers: ClosedRange<Int>) throws -> [(VerificationCase, CaseOutcome)] {
    let gpu: GPU?
    do throws(AttentionError) {
      gpu = try GPU.device(device.ordinal ?? 0)
    } catch {
      if device.ordinal != nil { try reportingFileErrors { throw error } }
      json.say("Kernels on the emulator alone. \(error)")
      gpu = nil
    }
    if let gpu {
      try compareInstructions(with: gpu)
      json.say("Kernels on the emulator and on \(gpu.name):")
    }
    let limits = gpu?.limits ?? .typical(of: .sm90)
    let tests = numbers.map { VerificationCase(seed: seed, number: $0, kernels: kernels) }
      .filter { $0.problem.flops < 5e8 && $0.problem.logSumExpCount > 0 }
    let outcomes = Mutex([CaseOutcome?](repeating: nil, count: tests.count))
    let progress = Mutex(Progress())
    try reportingFileErrors {
      try eachAtOnce(tests.count) { index throws(AttentionError) in
        progress.withLock { $0.show("verify: case \(index) of \(tests.count), emulated") }
        let test = tests[index]
        let outcome = try emulate(test, limits, gpu)
        outcomes.withLock { $0[index] = outcome }
      }
    }
    progress.withLock { $0.clear() }
    return zip(tests, outcomes.withLock { $0 }).map { ($0, $1!) }
  }

  private func emulate(
    _ test: VerificationCase, _ limits: GPULimits, _ gpu: GPU?
  ) throws(AttentionError) -> CaseOutcome {
    let options = try options(for: test, on: limits)
    let emulation = test.emulation()
    let plan = try KernelPlan(test.problem, on: limits, options: options).taking(emulation.call, on: limits)
    let sums: PlainAttention.Sums = (plan.tiling as? ForwardTiling)?.sums == .f16 ? .half : .cut
    do {
      _ = try plan.launches.emulate(emulation.call, memory: emulation.memory)
    } catch {
      return CaseOutcome(ratio: .infinity, failure: "\(error)")
    }
    guard let emulated = emulation.result else {
      return CaseOutcome(ratio: .infinity, failure: "the emulated kernel left results unwritten")
    }
    guard let gpu else { return test.judge(emulated, sums: sums) }
    let actual = try test.computeOnGPU(
      try AttentionPlan(test.problem, device: .gpu(gpu.ordinal), kernels: options), gpu)
    return test.judge(actual, expected: emulated, sums: sums)
  }

  /// The tiling of a case, where it is not the plan's own.
  private func options(for test: VerificationCase, on gpu: GPULimits) throws(AttentionError) -> KernelOptions {
    if family != nil { return familyOptions(for: test.problem, try tiling.options, on: gpu) }
    guard variants else { return try tiling.options }
    let own = try test.drawTiling(on: gpu).changes
    return KernelOptions(family: ForwardFamily.name, tiling: try TilingChanges(own))
  }

  /// Those of the family that was asked for, where it takes the problem.
  private func familyOptions(
    for problem: AttentionProblem, _ options: KernelOptions = KernelOptions(), on gpu: GPULimits
  ) -> KernelOptions {
    var own = options
    own.family = family
    return (try? KernelPlan(problem, on: gpu, options: own)) == nil ? KernelOptions() : own
  }

  /// Instructions, one by one and in the products and copies that are made of them.
  /// - Throws: `ExitCode.comparisonFailed` where the GPU's results are others than the emulator's; the report says which.
  private func compareInstructions(with gpu: GPU) throws {
    let check = try InstructionCheck()
    let emulated = try check.emulate()
    let actual = try reportingFileErrors { try gpu.run(check.kernel, input: check.input, outputCount: emulated.count) }
    let differences = check.differences(emulated, actual).map { "\($0)" }
    json.say(
      "\(check.names.count) instructions on \(InstructionCheck.threads) lanes, emulator and \(gpu.name): "
        + (differences.isEmpty ? "all agree" : "\(differences.count) differ"))
    say(differences)
    let failures = differences + (Target.sm90a.runs(onCapability: gpu.capability) ? try compareHopper(with: gpu) : [])
    if failures.isEmpty { return }
    try reportingFileErrors {
      try json?.write(
        VerifyReport(
          kind: "instructions", seed: nil, cases: check.names.count, worstRatio: nil,
          failures: failures.map { VerifyReport.Failure(problem: "instructions of \(gpu.name)", failure: $0) }))
    }
    throw ExitCode.comparisonFailed
  }

  /// Says what differs, below the line that counts.
  private func say(_ differences: [String]) {
    for difference in differences { json.say("        \(difference)") }
  }

  /// Copies and products of Hopper's own instructions: layouts by whole numbers, and sums of others bit for bit.
  private func compareHopper(with gpu: GPU) throws -> [String] {
    let boxes = try BulkCopyCheck.all.filter { try $0.emulate() != $0.run(on: gpu) }
      .map { "\($0): the emulator and the GPU differ" }
    json.say(
      "\(BulkCopyCheck.all.count) boxes by the copy engine: "
        + (boxes.isEmpty ? "all agree" : "\(boxes.count) differ"))
    say(boxes)
    var (layouts, others): ([String], [String]) = ([], [])
    var (sums, equal) = (0, 0)
    for check in WarpgroupCheck.all {
      if try check.run(.whole, on: gpu) != check.expected(.whole) {
        layouts.append("\(check): the GPU's product of whole numbers is another")
      }
      let (own, actual) = (try check.emulate(.any(seed: 3)).d, try check.run(.any(seed: 3), on: gpu))
      let same = zip(own, actual).count { $0 == $1 }
      (sums, equal) = (sums + own.count, equal + same)
      if same < own.count { others.append("\(check): \(own.count - same) of \(own.count) sums differ") }
    }
    json.say(
      "\(WarpgroupCheck.all.count) products by wgmma: "
        + "\(layouts.isEmpty ? "all layouts agree" : "\(layouts.count) layouts differ"); of "
        + "\(sums) sums of any numbers \(equal) have the same bits")
    say(layouts + others)
    return boxes + layouts + others + (try compareProducts(with: gpu)) + (try hearWarnings(of: gpu))
  }

  /// Whether the driver's compiler says what is wrong with kernels that are slow by design, and finds nothing in others.
  private func hearWarnings(of gpu: GPU) throws -> [String] {
    let unheard = try SlowProducts.allCases.compactMap { kernel in
      let warnings = try reportingFileErrors { try kernel.warnings(from: gpu) }
      return kernel.isHeard(in: warnings) ? nil : "\(kernel): \(warnings.isEmpty ? ["nothing"] : warnings)"
    }
    json.say(
      "\(SlowProducts.allCases.count) kernels with and without slow products: "
        + (unheard.isEmpty ? "the driver's compiler warns of each that is" : "\(unheard.count) unheard"))
    say(unheard)
    return unheard
  }

  /// Products of whole matrices, of 30 random sizes: the same bits as the emulator's, 20 times.
  private func compareProducts(with gpu: GPU) throws -> [String] {
    let (count, times) = (30, 20)
    let wrong = try GEMMCheck.random(count, seed: 1).filter { check in
      let own = try check.emulate(.any(seed: 5)).c
      return try check.run(.any(seed: 5), times: times, on: gpu).contains { $0 != own }
    }.map { "\($0): the emulator and the GPU differ" }
    json.say(
      "\(count) products of matrices, \(times) times each: "
        + (wrong.isEmpty ? "the emulator's bits" : "\(wrong.count) differ"))
    say(wrong)
    return wrong
  }

  /// The command that runs a case alone.
  private func command(for test: VerificationCase) -> String {
    test.command(device: .gpu(device.ordinal ?? 0)) + (emulate ? " --emulate" : "")
      + (tiling.tiling.map { " --tiling \($0)" } ?? "")
      + (variants ? " --variants" : "") + (family.map { " --family \($0)" } ?? "")
  }

  private func describe(_ test: VerificationCase) {
    json.say(
      fields([
        ("problem", "\(test.problem)"), ("scale", "\(test.problem.scale)"), ("family", test.family.rawValue),
        ("inputs", test.inputs.rawValue + (test.isPoisoned ? ", NaN around them" : "")),
        ("q", "\(test.queryPlacement)"), ("k", "\(test.keyPlacement)"), ("v", "\(test.valuePlacement)"),
        ("output", "\(test.outputPlacement)"),
      ]))
  }

  private struct Tally {
    let family: CaseFamily
    var count = 0
    var failures = 0
    var worst = 0.0

    mutating func add(_ outcome: CaseOutcome) {
      count += 1
      if outcome.failure != nil { failures += 1 }
      worst = max(worst, outcome.ratio)
    }

    var report: VerifyReport.Family {
      VerifyReport.Family(name: family.rawValue, cases: count, failed: failures, worstRatio: worst)
    }

    var row: [String] { [family.rawValue, "\(count)", "\(failures)", fixed(worst, 2)] }
  }
}
