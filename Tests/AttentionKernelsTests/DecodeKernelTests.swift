import Attention
import AttentionKernels
import PTX
import PTXEmulator
import Testing

/// Decoding on the emulator: right for every kind of cache, without a hazard, and with counters that prove what is claimed.
@Suite struct DecodeKernelTests {
  /// One row for each clause.
  struct Clause: Sendable, CustomTestStringConvertible {
    let testDescription: String
    let make: @Sendable () throws -> EmulatedDecoding

    init(_ name: String, _ make: @escaping @Sendable () throws -> EmulatedDecoding) {
      (testDescription, self.make) = (name, make)
    }
  }

  static let clauses: [Clause] = [
    Clause("one sequence over all blocks") { try EmulatedDecoding(lengths: [500], capacity: 512) },
    Clause("lengths that differ by 100 times") {
      try EmulatedDecoding(lengths: [3, 300, 1, 17], heads: 2, capacity: 300)
    },
    Clause("more sequences than lanes") { try EmulatedDecoding(lengths: (0..<37).map { $0 * 5 % 71 }, capacity: 80) },
    Clause("more sequences than are looked at together") {
      try EmulatedDecoding(lengths: (0..<140).map { $0 * 11 % 29 }, group: 1, dimension: 16, capacity: 32)
    },
    Clause("sequences without a key") { try EmulatedDecoding(lengths: [0, 90, 0], capacity: 96) },
    Clause("no keys at all") { try EmulatedDecoding(lengths: [0, 0], capacity: 96) },
    Clause("f16") { try EmulatedDecoding(.f16, lengths: [130, 70], capacity: 130) },
    Clause("17 rows: two row tiles") { try EmulatedDecoding(lengths: [200], group: 17, capacity: 200) },
    Clause("several queries, causal") {
      try EmulatedDecoding(lengths: [150, 2, 90], group: 2, queries: 5, capacity: 150)
    },
    Clause("several queries, none hidden") {
      try EmulatedDecoding(lengths: [150, 2], queries: 5, capacity: 150, mask: .none)
    },
    Clause("64 rows: warps divide rows and keys") {
      try EmulatedDecoding(lengths: [210, 100], group: 16, queries: 4, capacity: 210)
    },
    Clause("128 rows") { try EmulatedDecoding(.f16, lengths: [100], group: 16, queries: 8, capacity: 100) },
    Clause("150 rows: two blocks of rows") {
      try EmulatedDecoding(lengths: [100, 40], group: 5, queries: 30, capacity: 100)
    },
    Clause("window") {
      try EmulatedDecoding(lengths: [250, 30], queries: 3, capacity: 256, mask: .window(left: 70, right: 0))
    },
    Clause("window open to the left, with keys to the right") {
      try EmulatedDecoding(lengths: [250], queries: 9, capacity: 256, mask: .window(left: nil, right: 2))
    },
    Clause("softcap") { try EmulatedDecoding(lengths: [99], capacity: 99, softcap: 1.5) },
    Clause("scale below zero") { try EmulatedDecoding(lengths: [99], capacity: 99, scale: -0.3) },
    Clause("scores of millions") { try EmulatedDecoding(lengths: [220, 5], capacity: 220, scale: 1e6) },
    Clause("D 128") { try EmulatedDecoding(lengths: [180, 33], dimension: 128, capacity: 180) },
    Clause("D 256") { try EmulatedDecoding(lengths: [90], queries: 7, dimension: 256, capacity: 90) },
    Clause("D 72, D_v 40") { try EmulatedDecoding(lengths: [140], dimension: 72, valueDimension: 40, capacity: 140) },
    Clause("D 8, D_v 136") { try EmulatedDecoding(lengths: [140], dimension: 8, valueDimension: 136, capacity: 140) },
    Clause("pages of 16") { try EmulatedDecoding(lengths: [130, 7, 64], heads: 2, pageSize: 16, capacity: 130) },
    Clause("pages of 64") { try EmulatedDecoding(lengths: [130, 64], pageSize: 64, capacity: 256) },
    Clause("pages of 1") { try EmulatedDecoding(lengths: [70, 7], pageSize: 1, capacity: 70) },
    Clause("pages of 24") { try EmulatedDecoding(lengths: [130, 7], pageSize: 24, capacity: 144) },
    Clause("parts put together by a second launch") {
      try EmulatedDecoding(lengths: [500, 3, 0, 77], heads: 2, queries: 2, capacity: 512, combination: .secondLaunch)
    },
    Clause("parts put together by a launch that begins early") {
      try EmulatedDecoding(
        lengths: [500, 3, 0, 77], heads: 2, queries: 2, capacity: 512, combination: .dependentLaunch)
    },
    Clause("the same, two blocks of rows, D_v 40") {
      try EmulatedDecoding(
        .f16, lengths: [300, 90], group: 5, queries: 30, dimension: 64, valueDimension: 40, capacity: 300,
        combination: .secondLaunch)
    },
    Clause("places in the cache by number") {
      try EmulatedDecoding(lengths: [130, 7, 64], capacity: 130, batchIndex: [4, 0, 2])
    },
    Clause("left padding") {
      try EmulatedDecoding(lengths: [130, 7, 64], capacity: 130, leftPadding: [30, 0, 63])
    },
    Clause("left padding on pages") {
      try EmulatedDecoding(lengths: [130, 7, 64], pageSize: 16, capacity: 130, leftPadding: [30, 7, 3])
    },
  ]

  @Test(arguments: clauses)
  func isRight(clause: Clause) throws {
    let decoding = try clause.make()
    let program = Program(try decoding.plan.kernel())
    for schedule in [Schedule.roundRobin, .random(seed: 5)] {
      let outcome = try decoding.run(program, schedule)
      #expect(outcome.passes, "output \(outcome.output), log-sum-exp \(outcome.logSumExp)")
      #expect(outcome.counters.bankConflicts == 0 || decoding.problem.valueDimension % 32 != 0)
    }
  }

  /// There is a plan for every dimension and group on every GPU; and no length needs a kernel of its own.
  @Test func fitsEveryGPU() throws {
    for target in ["sm_80", "sm_86", "sm_89", "sm_90", "sm_120"].compactMap({ Target($0) }) {
      for dimension in stride(from: 8, through: 256, by: 24) {
        for valueDimension in [8, dimension, 256] {
          for (group, queries) in [(1, 1), (4, 1), (8, 4), (7, 9), (16, 8), (16, 40)] {
            let kernels = try Set(
              [1, 100, 1 << 20].map { capacity in
                let problem = try CachedAttentionProblem(
                  batch: 3, queries: queries, queryHeads: group, keyValueHeads: 1, dimension: dimension,
                  valueDimension: valueDimension, cache: .contiguous(sequences: 3, capacity: capacity), scalarType: .f16
                )
                var specialization = try DecodePlan(problem, on: .typical(of: target)).specialization
                // Who puts parts together depends on how many there can be.
                specialization.combination = .lastBlock
                return specialization
              })
            #expect(kernels.count == 1, "\(target), D \(dimension), D_v \(valueDimension), \(group) x \(queries)")
          }
        }
      }
    }
  }

  @Test func refusesInSentences() throws {
    func sentence(_ body: () throws -> Void) -> String {
      do {
        try body()
        return "nothing was thrown"
      } catch { return "\(error)" }
    }
    func plan(_ type: ScalarType = .bf16, dimension: Int = 128, changes: String? = nil) throws {
      let problem = try CachedAttentionProblem(
        batch: 1, queries: 1, queryHeads: 8, keyValueHeads: 2, dimension: dimension,
        cache: .contiguous(sequences: 1, capacity: 4096), scalarType: type)
      _ = try DecodePlan(problem, on: .typical(of: .sm90), changes: changes)
    }
    #expect(
      sentence { try plan(.f32) }
        == "The GPU has no kernel for f32; it takes f16 and bf16. Convert the tensors, or use the CPU.")
    #expect(
      sentence { try plan(dimension: 264) }
        == "The head dimension of queries and keys is 264; the GPU path of decoding takes multiples of 8 from 8 to 256. "
        + "Pad the dimension with zeros up to the next multiple (and keep the scale).")
    #expect(
      sentence { try plan(changes: "groups=9") }.hasPrefix(
        "The tiling (groups=9) cannot be read; write any of row-warps="))
    #expect(
      sentence { try plan(changes: "keys=64,stages=8") }.contains(
        "bytes of shared memory; a block of this GPU has 232448"))
    #expect(
      sentence {
        _ = try CachedAttentionProblem(
          batch: 1, queries: 1, queryHeads: 8, keyValueHeads: 3, dimension: 64,
          cache: .paged(pages: 4, pageSize: 0, pagesPerSequence: 2), scalarType: .f16)
      } == "The page size of the cache is 0; it must be at least 1.")
  }

  /// The rule on the CPU says how many parts the kernel writes: O and log-sum-exps of each, f32.
  @Test(arguments: [[700, 60], [1000], [5, 5, 900, 0, 300], [128, 128, 128, 128]], [nil, 90] as [Int?])
  func sharesAsTheRuleSays(lengths: [Int], left: Int?) throws {
    let decoding = try EmulatedDecoding(
      lengths: lengths, heads: 2, capacity: 1000, mask: .window(left: left, right: 0), combination: .secondLaunch)
    let splits = decoding.plan.splits(lengths: lengths)
    let outcome = try decoding.run()
    let rows = decoding.problem.groupSize
    let part = rows * decoding.problem.valueDimension * 4 + decoding.plan.specialization.tiling.rows * 4
    let written = try #require(outcome.counters.traffic["workspace"]).bytesWritten
    // Of a sequence's two units, one may have a part less than the other, or be whole.
    let most = splits.reduce(0) { $0 + ($1 > 1 ? 2 * $1 : 0) }
    let least = splits.reduce(0) { $0 + ($1 > 2 ? 2 * $1 - 1 : $1 == 2 ? 2 : 0) }
    #expect(written % part == 0 && (least...most).contains(written / part), "\(splits), \(written / part) parts")
    #expect(outcome.passes)
  }

  /// The workspace is as it was: a second call gives the same bits.
  @Test func leavesTheWorkspaceReady() throws {
    let decoding = try EmulatedDecoding(lengths: [300, 40], heads: 2, capacity: 300)
    let (first, third) = (try decoding.run(), try decoding.run(calls: 3))
    #expect(first.passes && third.passes && first.bits == third.bits)
  }

  @Test(arguments: ["one group of rows", "warps divide rows", "pages"])
  func everyMutationIsCaught(kind: String) throws {
    let decoding =
      switch kind {
      // Blocks have parts of long units, and then several short ones.
      case "pages":
        try EmulatedDecoding(lengths: [700, 60, 20, 30, 25], pageSize: 16, capacity: 700, multiprocessors: 2)
      case "warps divide rows":
        try EmulatedDecoding(lengths: [600, 20, 30, 25], group: 16, queries: 4, capacity: 600, multiprocessors: 2)
      default: try EmulatedDecoding(lengths: [800, 60, 20, 30, 10, 50], capacity: 800, multiprocessors: 2)
      }
    let kernel = try decoding.plan.kernel()
    let survivors = Mutation.survivors(of: kernel) { (program, schedule) throws(Hazard) in
      try decoding.run(program, schedule).passes
    }
    #expect(survivors.isEmpty, "\(survivors)")
  }

  @Test(arguments: [DecodeSpecialization.Combination.secondLaunch, .dependentLaunch])
  func everyMutationOfTheSecondLaunchIsCaught(combination: DecodeSpecialization.Combination) throws {
    let decoding = try EmulatedDecoding(lengths: [700, 60], capacity: 700, combination: combination)
    let kernel = try #require(try decoding.plan.combineKernel())
    #expect(Mutation.all(of: kernel).count >= 1)
    let survivors = Mutation.survivors(of: kernel) { (program, schedule) throws(Hazard) in
      try decoding.run(nil, schedule, combine: program).passes
    }
    #expect(survivors.isEmpty, "\(survivors)")
  }

  /// Each byte of the cache once, for all heads of a group and all queries.
  @Test func readsTheCacheOnce() throws {
    let decoding = try EmulatedDecoding(
      lengths: [300, 77], heads: 2, group: 4, queries: 3, dimension: 128, capacity: 300)
    let outcome = try decoding.run()
    let bytes = (300 + 77) * 2 * 128 * 2
    let (k, v) = (try #require(outcome.counters.traffic["k"]), try #require(outcome.counters.traffic["v"]))
    #expect(k.bytesRead == bytes && k.sectorsRead == bytes / 32)
    #expect(v.bytesRead == bytes && v.sectorsRead == bytes / 32)
    #expect(outcome.passes && outcome.counters.bankConflicts == 0)
    let o = try #require(outcome.counters.traffic["o"])
    #expect(o.bytesWritten == 2 * 3 * 8 * 128 * 2)
  }
}
