import AttentionVerification
import CPUAttention
import FlashAttention
import Testing
import flash_attention

/// The random cases that `verify` draws, and what they are good for.
@Suite struct VerificationTests {
  static let cases = (0..<500).map { VerificationCase(seed: 0, number: $0) }

  /// `flash-attention verify --cases 500`.
  @Test func fiveHundredCasesPass() throws {
    for test in Self.cases {
      let outcome = try test.run(on: .cpu)
      if let failure = outcome.failure { Issue.record("\(test.problem): \(failure)\n\(test.command(device: .cpu))") }
    }
  }

  /// A clause of the contract, and the cases that put it to the test. Every case also compares the log-sum-exp. Equal
  /// bits in repeated runs, 64-bit offsets, more than 65535 heads and infinities have tests of their own in
  /// `CPUPlanTests`.
  struct Clause: Sendable, CustomTestStringConvertible {
    let name: String
    /// Cases there must be, of 500.
    let atLeast: Int
    let isCovered: @Sendable (VerificationCase) -> Bool
    var testDescription: String { name }

    init(_ name: String, atLeast: Int, _ isCovered: @escaping @Sendable (VerificationCase) -> Bool) {
      self.name = name
      self.atLeast = atLeast
      self.isCovered = isCovered
    }
  }

  /// Tiles of keys on the CPU path that all machines have.
  private static func tiles(_ test: VerificationCase) -> Int {
    guard let plan = try? CPUPlan(test.problem, instructionSet: InstructionSet.available.last!) else { return 0 }
    return (test.problem.keys + plan.tileKeys - 1) / plan.tileKeys
  }

  static let contract = [
    Clause("shapes: several sequences", atLeast: 100) { $0.problem.batch > 1 },
    Clause("shapes: odd query and key lengths", atLeast: 100) {
      $0.problem.queries % 2 == 1 && $0.problem.keys % 2 == 1
    },
    Clause("shapes: D_v unlike D", atLeast: 100) { $0.problem.valueDimension != $0.problem.dimension },
    Clause("shapes: both layouts, [B, H, N, D] and [B, N, H, D]", atLeast: 150) {
      $0.queryPlacement.layout != $0.keyPlacement.layout
    },
    Clause("strides: gaps between rows", atLeast: 50) { $0.keyPlacement.rowGap > 0 },
    Clause("strides: zero", atLeast: 10) { $0.keyPlacement.isHeadsBroadcast || $0.keyPlacement.isBatchBroadcast },
    Clause("strides: negative", atLeast: 10) { $0.valuePlacement.isBackward },
    Clause("strides: of the output", atLeast: 50) { $0.outputPlacement.rowGap > 0 },
    Clause("GQA: 2 to 5 query heads a key/value head", atLeast: 100) { (2...5).contains($0.problem.groupSize) },
    Clause("GQA: 8 query heads a key/value head", atLeast: 30) { $0.problem.groupSize == 8 },
    Clause("GQA: several key/value heads", atLeast: 100) {
      $0.problem.groupSize > 1 && $0.problem.keyValueHeads > 1
    },
    Clause("scale: other than 1/sqrt(D)", atLeast: 20) {
      abs($0.problem.scale.magnitude - defaultScale($0.problem.dimension)) > 1e-9
    },
    Clause("scale: negative or zero", atLeast: 10) { $0.problem.scale <= 0 },
    Clause("causal: fewer queries than keys", atLeast: 50) {
      $0.problem.mask == .causal && $0.problem.queries < $0.problem.keys
    },
    Clause("causal: more queries than keys", atLeast: 20) {
      $0.problem.mask == .causal && $0.problem.queries > $0.problem.keys
    },
    Clause("window: both sides", atLeast: 20) { window($0) == (true, true) },
    Clause("window: left unlimited", atLeast: 5) { window($0) == (false, true) },
    Clause("window: right unlimited", atLeast: 5) { window($0) == (true, false) },
    Clause("softcap", atLeast: 20) { $0.problem.softcap != nil },
    Clause("softcap under a mask", atLeast: 5) { $0.problem.softcap != nil && $0.problem.mask != .none },
    Clause("empty row", atLeast: 50) { $0.hasEmptyRow },
    Clause("empty row: no keys at all", atLeast: 5) { $0.problem.keys == 0 },
    Clause("outside the length: NaN behind the keys", atLeast: 50) { $0.hasNaNTail && $0.problem.keys > 0 },
    Clause("types: f32", atLeast: 100) { $0.problem.scalarType == .f32 },
    Clause("types: f16", atLeast: 100) { $0.problem.scalarType == .f16 },
    Clause("types: bf16", atLeast: 100) { $0.problem.scalarType == .bf16 },
    Clause("sizes: D from 8 to 256, also no multiple of 16", atLeast: 50) { $0.problem.dimension % 16 != 0 },
    Clause("sizes: D 256", atLeast: 10) { $0.problem.dimension == 256 },
    Clause("sizes: 8 and more tiles of keys", atLeast: 100) { tiles($0) >= 8 },
    Clause("GQA: more than 8 query heads a key/value head", atLeast: 50) { $0.problem.groupSize > 8 },
    Clause("few query rows over many keys", atLeast: 40) { $0.problem.queries <= 4 && tiles($0) >= 8 },
    Clause("inputs: large, shifted and one-hot-like", atLeast: 50) { $0.inputs != .normal },
  ]

  @Test(arguments: contract)
  func everyClauseIsCovered(_ clause: Clause) {
    let count = Self.cases.filter(clause.isCovered).count
    #expect(count >= clause.atLeast, "\(count) of 500 cases")
  }

  /// At least a fifth of the cases span 8 or more tiles, and at least a tenth have an empty row or a NaN tail.
  @Test func theCasesAreNastyEnough() {
    #expect(Self.cases.filter { Self.tiles($0) >= 8 }.count >= 100)
    #expect(Self.cases.filter { $0.hasEmptyRow || $0.hasNaNTail }.count >= 50)
  }

  @Test func theSameSeedDrawsTheSameCase() {
    let again = VerificationCase(seed: 0, number: 123)
    #expect(again.problem == Self.cases[123].problem && again.keyPlacement == Self.cases[123].keyPlacement)
    #expect(VerificationCase(seed: 1, number: 123).problem != again.problem)
    #expect(again.command(device: .cpu) == "flash-attention verify --seed 0 --only 123")
  }
}

/// Which sides of a window are limited; nil for other masks.
private func window(_ test: VerificationCase) -> (Bool, Bool)? {
  guard case .window(let left, let right) = test.problem.mask else { return nil }
  return (left != nil, right != nil)
}

private func == (_ a: (Bool, Bool)?, _ b: (Bool, Bool)) -> Bool { a.map { $0.0 == b.0 && $0.1 == b.1 } ?? false }

/// 1/sqrt(d), the default scale.
private func defaultScale(_ d: Int) -> Double { 1 / Double(d).squareRoot() }
