internal import ArgumentParser
internal import Dispatch
internal import FlashAttention
internal import Synchronization

struct VerifyCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "verify",
    abstract: "Compare random problems with a 64-bit reference.",
    discussion: """
      The largest and the mean error of output and log-sum-exp may be at most twice that of a plain computation in the \
      same precision, plus half an ulp of the largest value. A ratio of 1 is all that is allowed.

      On a GPU, the cases are spread over a number of kernels, which are compiled first, on all processors; the types are \
      f16 and bf16, and strides multiples of 16 bytes.
      """)

  @Option(help: "How many problems.")
  var cases = 200

  @Option(help: "The same seed gives the same problems.")
  var seed: UInt64 = 0

  @Option(help: "Run only the problem of this number, and describe it.")
  var only: Int?

  @Option(help: "Where to compute: auto, cpu or gpu.")
  var device = Device.auto

  @Option(help: "On a GPU, how many kernels the problems are spread over.")
  var kernels = 64

  @OptionGroup var tiling: TilingOptions

  func validate() throws {
    if kernels < 1 { throw ValidationError("--kernels is \(kernels); it must be at least 1.") }
    if cases < 1 { throw ValidationError("--cases is \(cases); it must be at least 1.") }
    if let only, only < 0 { throw ValidationError("--only is \(only); problems are counted from 0.") }
  }

  func run() throws {
    let numbers = only.map { $0...$0 } ?? 0...cases - 1
    let outcomes = device == .gpu ? try runOnGPU(numbers) : try runOnCPU(numbers)
    var tallies = CaseFamily.allCases.map { Tally(family: $0) }
    for (test, outcome) in outcomes {
      tallies[CaseFamily.allCases.firstIndex(of: test.family)!].add(outcome)
      if only != nil { describe(test) }
      if let failure = outcome.failure { print("FAILED  \(test.problem): \(failure)\n        \(test.command)") }
    }
    let done = tallies.filter { $0.count > 0 }
    print(table([["family", "cases", "failed", "worst ratio"]] + done.map(\.row)))
    let failures = done.reduce(0) { $0 + $1.failures }
    print(failures == 0 ? "All passed." : "\(failures) failed.")
    if failures > 0 { throw ExitCode.comparisonFailed }
  }

  private func runOnCPU(_ numbers: ClosedRange<Int>) throws -> [(VerificationCase, CaseOutcome)] {
    var progress = Progress()
    defer { progress.clear() }
    return try numbers.map { number in
      let test = VerificationCase(seed: seed, number: number)
      progress.show("verify: case \(number) of \(cases), \(test.family.rawValue)")
      return (test, try reportingFileErrors { try test.run(on: device) })
    }
  }

  /// Compiles all kernels, then works on as many cases at once as there are processors: while one is compared with its
  /// reference, the GPU computes another.
  private func runOnGPU(_ numbers: ClosedRange<Int>) throws -> [(VerificationCase, CaseOutcome)] {
    let tests = numbers.map { VerificationCase(seed: seed, number: $0, kernels: kernels) }
    return try reportingFileErrors {
      let gpu = try GPU.device()
      let plans = try tests.map { try AttentionPlan($0.problem, device: .gpu, tiling: tiling.tiling) }
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
        let outcome = tests[index].judge(try tests[index].computeOnGPU(plans[index], gpu))
        outcomes.withLock { $0[index] = outcome }
      }
      progress.withLock { $0.clear() }
      print("\(gpu.name): \(gpu.compiledKernelCount) kernels, compiled or loaded in \(duration(compiling))")
      return zip(tests, outcomes.withLock { $0 }).map { ($0, $1!) }
    }
  }

  /// Runs `body` for 0..<count on all processors; throws the first error, after which no more are begun.
  private func eachAtOnce(
    _ count: Int, _ body: @Sendable (Int) throws(AttentionError) -> Void
  ) throws(AttentionError) {
    let failure = Mutex<AttentionError?>(nil)
    DispatchQueue.concurrentPerform(iterations: count) { index in
      if failure.withLock({ $0 != nil }) { return }
      do throws(AttentionError) {
        try body(index)
      } catch {
        failure.withLock { $0 = $0 ?? error }
      }
    }
    if let error = failure.withLock({ $0 }) { throw error }
  }

  private func describe(_ test: VerificationCase) {
    print(
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

    var row: [String] { [family.rawValue, "\(count)", "\(failures)", fixed(worst, 2)] }
  }
}
