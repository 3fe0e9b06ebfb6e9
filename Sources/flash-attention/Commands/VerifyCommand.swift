internal import ArgumentParser
internal import FlashAttention

struct VerifyCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "verify",
    abstract: "Compare random problems with a 64-bit reference.",
    discussion: """
      The largest and the mean error of output and log-sum-exp may be at most twice that of a plain computation in the \
      same precision, plus half an ulp of the largest value. A ratio of 1 is all that is allowed.
      """)

  @Option(help: "How many problems.")
  var cases = 200

  @Option(help: "The same seed gives the same problems.")
  var seed: UInt64 = 0

  @Option(help: "Run only the problem of this number, and describe it.")
  var only: Int?

  @Option(help: "Where to compute: auto, cpu or gpu.")
  var device = Device.auto

  func validate() throws {
    if cases < 1 { throw ValidationError("--cases is \(cases); it must be at least 1.") }
    if let only, only < 0 { throw ValidationError("--only is \(only); problems are counted from 0.") }
  }

  func run() throws {
    var tallies = CaseFamily.allCases.map { Tally(family: $0) }
    var progress = Progress()
    for number in only.map({ $0...$0 }) ?? 0...cases - 1 {
      let test = VerificationCase(seed: seed, number: number)
      progress.show("verify: case \(number) of \(cases), \(test.family.rawValue)")
      let outcome = try reportingFileErrors { try test.run(on: device) }
      tallies[CaseFamily.allCases.firstIndex(of: test.family)!].add(outcome)
      if only != nil { describe(test) }
      if let failure = outcome.failure {
        progress.clear()
        print("FAILED  \(test.problem): \(failure)\n        \(test.command)")
      }
    }
    progress.clear()

    let done = tallies.filter { $0.count > 0 }
    print(table([["family", "cases", "failed", "worst ratio"]] + done.map(\.row)))
    let failures = done.reduce(0) { $0 + $1.failures }
    print(failures == 0 ? "All passed." : "\(failures) failed.")
    if failures > 0 { throw ExitCode.comparisonFailed }
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
