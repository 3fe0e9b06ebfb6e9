import Attention
import AttentionKernels
import AttentionVerification
import PTX
import PTXEmulator
import Testing

/// The gradients' kernels on the emulator: right, without a hazard, and with counters that prove what is claimed for them.
@Suite struct BackwardKernelTests {
  /// One row for each clause of the contract.
  struct Clause: Sendable, CustomTestStringConvertible {
    let testDescription: String
    /// Whether five products are possible, too.
    let takesFive: Bool
    let make: @Sendable () throws -> EmulatedGradients

    init(_ name: String, takesFive: Bool = true, _ make: @escaping @Sendable () throws -> EmulatedGradients) {
      (testDescription, self.takesFive, self.make) = (name, takesFive, make)
    }
  }

  static let clauses: [Clause] = [
    Clause("f16, odd lengths") { try EmulatedGradients(problem(queries: 131, keys: 211)) },
    Clause("bf16, odd lengths") { try EmulatedGradients(problem(.bf16, queries: 131, keys: 211)) },
    Clause("one query, three keys") { try EmulatedGradients(problem(batch: 2, heads: 3, queries: 1, keys: 3)) },
    Clause("causal, more keys than queries") {
      try EmulatedGradients(problem(queries: 150, keys: 333, mask: .causal))
    },
    Clause("causal, more heads than a section") {
      try EmulatedGradients(problem(batch: 3, heads: 6, queries: 20, keys: 70, mask: .causal))
    },
    Clause("causal, more queries than keys: empty rows") {
      try EmulatedGradients(problem(.bf16, queries: 200, keys: 70, mask: .causal))
    },
    Clause("window on both sides") {
      try EmulatedGradients(problem(queries: 190, keys: 260, mask: .window(left: 37, right: 21)))
    },
    Clause("window: keys that no query sees") {
      try EmulatedGradients(problem(queries: 20, keys: 260, mask: .window(left: 30, right: 0)))
    },
    Clause("window open to the left") {
      try EmulatedGradients(problem(queries: 90, keys: 200, mask: .window(left: nil, right: 5)))
    },
    Clause("window open to the right") {
      try EmulatedGradients(problem(queries: 90, keys: 200, mask: .window(left: 40, right: nil)))
    },
    Clause("window that some rows do not reach") {
      try EmulatedGradients(problem(queries: 200, keys: 60, mask: .window(left: 3, right: 0)))
    },
    Clause("chunks") { try EmulatedGradients(problem(queries: 190, keys: 260, mask: .chunks(of: 70))) },
    Clause("chunks and a window, more queries than keys, GQA") {
      try EmulatedGradients(problem(group: 3, queries: 200, keys: 150, mask: .chunks(of: 33, left: 20, right: nil)))
    },
    Clause("no keys at all") { try EmulatedGradients(problem(queries: 40, keys: 0)) },
    Clause("no queries at all") { try EmulatedGradients(problem(queries: 0, keys: 40)) },
    Clause("softcap") { try EmulatedGradients(problem(queries: 70, mask: .causal, softcap: 1.5)) },
    Clause("scale of its own") { try EmulatedGradients(problem(scale: 0.3)) },
    Clause("scale below zero") { try EmulatedGradients(problem(.bf16, scale: -0.2)) },
    Clause("scale zero") { try EmulatedGradients(problem(mask: .causal, scale: 0)) },
    Clause("softcap and scale below zero") { try EmulatedGradients(problem(scale: -0.4, softcap: 2)) },
    Clause("GQA with an odd group") {
      try EmulatedGradients(problem(batch: 2, heads: 2, group: 3, queries: 50, mask: .causal))
    },
    Clause("GQA, few queries") {
      try EmulatedGradients(problem(.bf16, heads: 2, group: 8, queries: 2, mask: .causal))
    },
    Clause("heads before tokens, gaps between rows, NaN in them") {
      try EmulatedGradients(problem(batch: 2, heads: 2, queries: 67, keys: 99, dimension: 40), layout: .bhnd, rowGap: 8)
    },
    Clause("one row of the gradient of the output for all") {
      var gradients = try EmulatedGradients(problem(batch: 2, group: 2, queries: 40, keys: 90))
      gradients.isOutputGradientExpanded = true
      return gradients
    },
    Clause("no gradient of the log-sum-exp") {
      var gradients = try EmulatedGradients(problem(queries: 40, keys: 90))
      gradients.hasLogSumExpGradient = false
      return gradients
    },
    Clause("D_v smaller than D") { try EmulatedGradients(problem(dimension: 96, valueDimension: 40)) },
    Clause("D_v larger than D") { try EmulatedGradients(problem(.bf16, dimension: 24, valueDimension: 136)) },
    Clause("D 8") { try EmulatedGradients(problem(dimension: 8)) },
    Clause("D 72: an odd chunk") { try EmulatedGradients(problem(dimension: 72)) },
    Clause("D 104: three widths of panels") { try EmulatedGradients(problem(.bf16, dimension: 104)) },
    Clause("D 128") { try EmulatedGradients(problem(queries: 140, keys: 200, dimension: 128, mask: .causal)) },
    Clause("D 128 with little shared memory") {
      try EmulatedGradients(problem(.bf16, queries: 140, keys: 200, dimension: 128), on: .sm89)
    },
    Clause("D 256: dK and dV by a launch each") {
      try EmulatedGradients(problem(.bf16, queries: 80, keys: 130, dimension: 256, mask: .causal))
    },
    Clause("D 200, D_v 256 by a launch each: rows of dV do not lie where those of K lay", takesFive: false) {
      try EmulatedGradients(
        problem(queries: 150, keys: 130, dimension: 200, valueDimension: 256),
        tiling: "dkv-launches=2,dkv-sharers=1,dkv-rows=32,dkv-stages=2,dkv-operands=shared")
    },
    Clause("D 256, D_v 136 by a launch each", takesFive: false) {
      try EmulatedGradients(
        problem(.bf16, queries: 150, keys: 130, dimension: 256, valueDimension: 136),
        tiling: "dkv-launches=2,dkv-sharers=1,dkv-rows=32,dkv-stages=2,dkv-operands=shared")
    },
    Clause("D 256 with little shared memory") {
      try EmulatedGradients(problem(queries: 80, keys: 130, dimension: 256), on: .sm89)
    },
    Clause("D 128, two warps share rows") {
      try EmulatedGradients(
        problem(.bf16, group: 2, queries: 75, keys: 140, dimension: 128, mask: .window(left: 60, right: 3), softcap: 3),
        tiling: Self.shared(2, rows: 64))
    },
    Clause("D 256, four warps share rows, dK and dV together") {
      try EmulatedGradients(
        problem(queries: 80, keys: 130, dimension: 256, mask: .causal), tiling: Self.shared(4, rows: 64))
    },
    Clause("D 512, four warps share rows", takesFive: false) {
      try EmulatedGradients(problem(.bf16, queries: 40, keys: 70, dimension: 512, mask: .causal))
    },
    Clause("D 320, D_v 448") {
      try EmulatedGradients(problem(queries: 40, keys: 70, dimension: 320, valueDimension: 448), on: .sm80)
    },
    Clause("D 64, D_v 192, two warps share rows, one stage") {
      try EmulatedGradients(
        problem(.bf16, queries: 80, keys: 130, dimension: 64, valueDimension: 192, mask: .causal),
        tiling: Self.shared(2, rows: 32, stages: 1))
    },
    Clause("packed sequences: one without queries, one without keys, rows of nobody") {
      try EmulatedGradients(
        .bf16, packed: [(33, 50), (0, 20), (70, 70), (5, 0), (129, 131)], heads: 2, group: 3, mask: .causal)
    },
    Clause("sinks, rows without keys") {
      try EmulatedGradients(problem(heads: 3, group: 3, queries: 70, keys: 40, mask: .causal), sinks: .f16)
    },
    Clause("sinks of packed sequences") {
      try EmulatedGradients(
        .bf16, packed: [(33, 50), (0, 20), (70, 70), (5, 0)], heads: 4, group: 2, mask: .causal, sinks: .bf16)
    },
    Clause("packed sequences, window") {
      try EmulatedGradients(.f16, packed: [(100, 90), (1, 1), (64, 200)], mask: .window(left: 20, right: 3))
    },
    Clause("dK and dV by a launch each, three stages, kept in registers") {
      try EmulatedGradients(
        problem(queries: 150, keys: 150, mask: .causal),
        tiling: Self.alone
          + "dkv-launches=2,dkv-stages=3,dkv-operands=registers,dq-stages=3,dq-operands=registers,dkv-warps=2")
    },
    Clause("one stage, two row tiles") {
      try EmulatedGradients(
        problem(queries: 150, keys: 150),
        tiling:
          Self.alone
          + "dkv-stages=1,dkv-row-tiles=2,dkv-rows=32,dkv-warps=2,dkv-operands=shared,dq-stages=1,dq-row-tiles=2,dq-rows=32,"
          + "dq-warps=4,dq-operands=shared")
    },
  ]

  /// No warps share rows.
  private static let alone = "dkv-sharers=1,dq-sharers=1,"
  private static let keysAlone = "dkv-sharers=1,"

  /// Eight warps of 32 rows, so many of which share them.
  private static func shared(_ sharers: Int, rows: Int, stages: Int = 2) -> String {
    let cut = ["warps=8", "row-tiles=2", "sharers=\(sharers)", "rows=\(rows)", "stages=\(stages)", "operands=shared"]
    return "dkv-launches=1" + ["dkv", "dq"].flatMap { kind in cut.map { ",\(kind)-\($0)" } }.joined()
  }

  @Test(arguments: clauses)
  func fulfilsTheContract(clause: Clause) throws {
    try fulfils(try clause.make())
  }

  /// The same clauses, by five products with dQ added up in memory.
  @Test(arguments: clauses.filter(\.takesFive))
  func fulfilsTheContractInAnyOrder(clause: Clause) throws {
    try fulfils(try clause.make().inAnyOrder())
  }

  /// What five products may be cut into.
  @Test(arguments: [
    ("dkv-sharers=1,dkv-warps=4,dkv-rows=32,dkv-stages=1,dkv-operands=shared", 64, Target.sm90),
    ("dkv-sharers=1,dkv-warps=4,dkv-rows=64,dkv-stages=3,dkv-operands=registers", 72, .sm80),
    ("dkv-warps=8,dkv-row-tiles=2,dkv-sharers=2,dkv-rows=32,dkv-operands=shared,dkv-stages=1", 64, .sm90),
    ("dkv-warps=8,dkv-row-tiles=2,dkv-sharers=2,dkv-rows=64,dkv-operands=shared,dkv-stages=1", 128, .sm80),
    ("dkv-warps=8,dkv-row-tiles=2,dkv-sharers=4,dkv-rows=64,dkv-operands=shared,dkv-stages=1", 256, .sm90),
    ("dkv-warps=4,dkv-row-tiles=2,dkv-sharers=4,dkv-rows=64,dkv-operands=shared,dkv-stages=2", 192, .sm90),
    ("dkv-warps=2,dkv-rows=32,dkv-stages=2", 40, .sm89),
  ])
  func fulfilsTheContractInAnyOrder(tiling: String, dimension: Int, target: Target) throws {
    let problem = try problem(
      .bf16, heads: 2, group: 2, queries: 70, keys: 131, dimension: dimension, mask: .causal)
    try fulfils(try EmulatedGradients(problem).inAnyOrder(tiling, on: target))
  }

  private func fulfils(_ gradients: EmulatedGradients) throws {
    for schedule in [Schedule.roundRobin, .random(seed: 11)] {
      let outcome = try gradients.run(schedule)
      #expect(outcome.passes, "\(outcome.gradients), \(outcome.isConfined)")
      #expect(outcome.counters.bankConflicts == 0)
    }
  }

  /// Any of the gradients alone: what nobody wants is not written, and not computed where a launch is for it alone.
  @Test(arguments: 1..<8) func computesWhatIsWanted(bits: Int) throws {
    for launches in [1, 2] {
      var gradients = try EmulatedGradients(
        problem(queries: 70, keys: 90, mask: .causal), tiling: Self.alone + "dkv-launches=\(launches)")
      gradients.wanted = (0..<3).map { bits >> $0 & 1 == 1 }
      let outcome = try gradients.run()
      #expect(outcome.passes, "\(outcome.gradients), \(outcome.isConfined)")
      let (q, isRead) = (70 * 64 * 2, try #require(outcome.counters.traffic["q"]).bytesRead > 0)
      #expect(isRead)
      // Of dQ alone, Q is read by the blocks that keep it, once.
      if bits == 1 { #expect(try #require(outcome.counters.traffic["q"]).bytesRead == q) }
    }
  }

  /// No number in a list of starts makes a kernel touch memory that is not its own; what comes of it is nobody's.
  @Test(
    arguments: [
      [-5, 1 << 30, 3, -1], [60, 20, 10, 0], [.max, .max, .max, .max], [0, 0, 0, 0], [.min, 7, .min, 90],
      [80, 81, 200, 300],
    ] as [[Int32]])
  func garbageInListsHarmsNobody(starts: [Int32]) throws {
    var gradients = try EmulatedGradients(.bf16, packed: [(33, 50), (20, 20), (9, 9)], group: 2, mask: .causal)
    for (queries, keys) in [(starts, nil), (nil, starts), (starts, starts)] as [([Int32]?, [Int32]?)] {
      (gradients.spoiledQueryStarts, gradients.spoiledKeyStarts) = (queries, keys)
      _ = try gradients.run()
    }
  }

  /// Five products have no kernel of dQ: what would cut it is refused, not forgotten.
  @Test func fiveProductsHaveNoKernelOfQueries() throws {
    let error = try #require(throws: AttentionError.self) {
      try EmulatedGradients(problem()).inAnyOrder("dq-warps=8")
    }
    #expect("\(error)".contains("cuts a kernel of dQ, and five products have none"), "\(error)")
    let plan = try EmulatedGradients(problem()).inAnyOrder().plan
    #expect(!plan.tiling.changes.contains("dq-"))
  }

  /// Above 256, columns are divided in 64s; little shared memory has no room for 512.
  @Test(arguments: [
    (264, 264, Target.sm90, "The head dimension of queries and keys is 264"), (320, 72, .sm90, "values is 72"),
    (576, 512, .sm90, "576"), (512, 512, .sm89, "needs more shared memory or registers than"),
  ])
  func refusesByName(dimension: Int, valueDimension: Int, target: Target, words: String) throws {
    let error = try #require(throws: AttentionError.self) {
      try EmulatedGradients(problem(dimension: dimension, valueDimension: valueDimension), on: target)
    }
    #expect("\(error)".contains(words), "\(error)")
  }

  /// A tiling that would read statistics that nobody wrote is refused by name.
  @Test func tilesDivideTheStatistics() throws {
    do {
      _ = try EmulatedGradients(problem(queries: 200), tiling: "dkv-rows=96")
      Issue.record("96 rows are taken")
    } catch {
      #expect("\(error)".contains("takes 96 rows of queries at a time; 128 must be a multiple of them"), "\(error)")
    }
  }

  /// Every kind of kernel that differs in its barriers, waits and fences.
  @Test(arguments: [
    "", "dkv-stages=1,dq-stages=1,dkv-operands=shared,dq-operands=shared", "dkv-operands=shared,dq-operands=shared",
    "dkv-stages=3,dq-stages=3,dkv-operands=shared,dq-operands=shared,dkv-launches=2",
    "dkv-stages=3,dq-stages=3,dkv-operands=registers,dq-operands=registers,dkv-warps=2",
    "dkv-stages=1,dkv-operands=registers,dq-stages=1,dq-operands=registers,dkv-warps=2",
  ])
  func everyMutationIsCaught(tiling: String) throws {
    let gradients = try EmulatedGradients(
      problem(queries: 150, keys: 160), tiling: tiling.isEmpty ? tiling : Self.alone + tiling)
    try everyMutationIsCaught(gradients)
  }

  /// The same of kernels that pass weights from warp to warp, and add up dQ in memory.
  @Test(arguments: [
    (keysAlone + "dkv-warps=4,dkv-rows=32,dkv-operands=shared,dkv-stages=1", 64, true),
    (keysAlone + "dkv-warps=4,dkv-rows=64,dkv-operands=registers,dkv-stages=2", 40, true),
    ("dkv-warps=4,dkv-row-tiles=1,dkv-sharers=2,dkv-rows=32,dkv-operands=shared,dkv-stages=2", 128, true),
    (shared(2, rows: 32), 64, false), (shared(2, rows: 32), 128, false), (shared(4, rows: 64, stages: 1), 64, false),
  ])
  func everyMutationIsCaught(tiling: String, dimension: Int, inAnyOrder: Bool) throws {
    let problem = try problem(queries: 100, keys: 150, dimension: dimension, mask: .causal)
    try everyMutationIsCaught(
      inAnyOrder
        ? EmulatedGradients(problem).inAnyOrder(tiling) : EmulatedGradients(problem, tiling: tiling))
  }

  private func everyMutationIsCaught(_ gradients: EmulatedGradients) throws {
    for kernel in gradients.kernels {
      let built = try kernel.kernel()
      #expect(Mutation.all(of: built).count >= 3)
      let survivors = Mutation.survivors(of: built) { (program, schedule) throws(Hazard) in
        try gradients.run(schedule) { ($0 as? BackwardKernel)?.name == kernel.name ? program : nil }.passes
      }
      #expect(survivors.isEmpty, "\(kernel.name): \(survivors)")
    }
  }

  /// Seven products, or eight with a launch each; each tensor read once a tile that passes; no atomics.
  @Test func countsWhatIsClaimed() throws {
    let cut = "dkv-sharers=1,dkv-warps=4,dkv-row-tiles=1,dkv-rows=64,dkv-stages=2,dkv-operands=shared,"
    let same = cut + cut.replacing("dkv", with: "dq")
    func counters(_ launches: Int) throws -> Counters {
      let outcome = try EmulatedGradients(
        problem(batch: 2, group: 2, queries: 128, keys: 192), tiling: same + "dkv-launches=\(launches)"
      ).run()
      #expect(outcome.passes)
      return outcome.counters
    }
    let one = try counters(1)
    // `mma` are counted of the launch that the sequence calls its main one: dK and dV. 4 products of 256 rows x 192 keys x 64.
    #expect(one.matrixInstructions == 2 * (256 / 16) * (192 / 8) * (64 / 16) * 4)
    #expect(one.exponentials == 2 * 256 * 192)
    // Keys once by the blocks that keep them, once for each of 4 blocks of 64 rows; queries once by those that keep them,
    // and once for each of 3 blocks of 64 keys.
    let (q, k) = (2 * 256 * 64 * 2, 2 * 192 * 64 * 2)
    for name in ["q", "do"] {
      let traffic = try #require(one.traffic[name])
      #expect(traffic.bytesRead == (name == "q" ? 4 : 5) * q, "\(name)")
      #expect(traffic.sectorsRead == traffic.bytesRead / 32)
    }
    for name in ["k", "v"] { #expect(try #require(one.traffic[name]).bytesRead == 5 * k, "\(name)") }
    for (name, bytes) in [("dq", q), ("dk", k), ("dv", k)] {
      let traffic = try #require(one.traffic[name])
      #expect(traffic.bytesWritten == bytes && traffic.bytesRead == 0, "\(name)")
    }
    // By a launch each: of dK, three products.
    #expect(try counters(2).matrixInstructions == 2 * (256 / 16) * (192 / 8) * (64 / 16) * 3)
  }

  /// Five products; keys once; of the sums of dQ, each block of keys adds to each once, in whole sectors.
  @Test(arguments: [Target.sm90, .sm80]) func countsWhatIsClaimedInAnyOrder(target: Target) throws {
    let gradients = try EmulatedGradients(problem(batch: 2, group: 2, queries: 128, keys: 192)).inAnyOrder(
      Self.keysAlone + "dkv-warps=4,dkv-row-tiles=1,dkv-rows=64,dkv-stages=2,dkv-operands=shared", on: target)
    let outcome = try gradients.run()
    #expect(outcome.passes)
    let all = outcome.counters
    #expect(all.matrixInstructions == 2 * (256 / 16) * (192 / 8) * (64 / 16) * 5)
    #expect(all.exponentials == 2 * 256 * 192)
    let (q, k, sums) = (2 * 256 * 64 * 2, 2 * 192 * 64 * 2, 2 * 256 * 64 * 4)
    for (name, bytes) in [("q", 3 * q), ("do", 4 * q), ("o", q), ("k", k), ("v", k)] {
      #expect(try #require(all.traffic[name]).bytesRead == bytes, "\(name)")
    }
    // Statistics; sums cleared, and added to by 3 blocks of 64 keys. All is read once more, to be rounded.
    let workspace = try #require(all.traffic["workspace"])
    #expect(workspace.bytesWritten == 2 * 256 * 8 + 4 * sums)
    #expect(workspace.bytesRead == 3 * 2 * 256 * 8 + 4 * sums && workspace.sectorsRead * 32 == workspace.bytesRead)
    #expect(try #require(all.traffic["dq"]).bytesWritten == q)
  }

  @Test func skipsTilesThatAreHidden() throws {
    func products(_ mask: AttentionMask, queries: Int, keys: Int) throws -> Int {
      let cut = "dkv-sharers=1,dkv-warps=4,dkv-row-tiles=1,dkv-rows=64"
      return try EmulatedGradients(problem(queries: queries, keys: keys, mask: mask), tiling: cut).run().counters
        .matrixInstructions
    }
    // One tile of 64 rows for 64 keys: four products.
    let tile = (64 / 16) * (64 / 8) * (64 / 16) * 4
    #expect(try products(.none, queries: 256, keys: 256) == 16 * tile)
    // 4 + 3 + 2 + 1.
    #expect(try products(.causal, queries: 256, keys: 256) == 10 * tile)
    // 64 queries at the end of 512 keys see the last 128 keys.
    #expect(try products(.window(left: 64, right: 0), queries: 64, keys: 512) == 2 * tile)
  }

  /// The same bits whatever else there is: other sequences of the batch, the order of blocks and warps.
  @Test func hasTheSameBitsBesideOthers() throws {
    let first = try EmulatedGradients(problem(.bf16, group: 2, queries: 90, keys: 100, mask: .causal))
    let bits = try first.run().values
    for seed in 0..<19 as Range<UInt64> { #expect(try first.run(.random(seed: seed)).values == bits) }
    let more = try EmulatedGradients(problem(.bf16, batch: 3, group: 2, queries: 90, keys: 100, mask: .causal))
    for (alone, among) in zip(bits, try more.run().values) { #expect(Array(among[..<alone.count]) == alone) }
  }
}
