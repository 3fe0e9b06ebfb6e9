import Attention
import AttentionKernels
import AttentionVerification
import PTX
import PTXEmulator
import Testing

/// The kernel on the emulator: right, without a hazard, and with counters that prove what is claimed for it.
@Suite struct ForwardKernelTests {
  /// One row for each clause of the contract.
  struct Clause: Sendable, CustomTestStringConvertible {
    let testDescription: String
    /// Whether every rung of the ladder has a kernel for it; not where O takes more registers than some have.
    let fitsEveryRung: Bool
    let make: @Sendable () throws -> EmulatedAttention

    init(
      _ name: String, fitsEveryRung: Bool = true, _ make: @escaping @Sendable () throws -> EmulatedAttention
    ) {
      (testDescription, self.fitsEveryRung, self.make) = (name, fitsEveryRung, make)
    }
  }

  static let clauses: [Clause] = [
    Clause("f16, odd lengths") { try EmulatedAttention(problem(queries: 131, keys: 211)) },
    Clause("bf16, odd lengths") { try EmulatedAttention(problem(.bf16, queries: 131, keys: 211)) },
    Clause("one query, three keys") { try EmulatedAttention(problem(batch: 4, heads: 4, queries: 1, keys: 3)) },
    Clause("causal, more keys than queries") { try EmulatedAttention(problem(queries: 150, keys: 333, mask: .causal)) },
    Clause("causal, more heads than a section") {
      try EmulatedAttention(problem(batch: 3, heads: 6, queries: 70, keys: 20, mask: .causal))
    },
    Clause("causal, more queries than keys: empty rows") {
      try EmulatedAttention(problem(.bf16, queries: 200, keys: 70, mask: .causal))
    },
    Clause("window on both sides") {
      try EmulatedAttention(problem(queries: 190, keys: 260, mask: .window(left: 37, right: 21)))
    },
    Clause("chunks") { try EmulatedAttention(problem(queries: 190, keys: 260, mask: .chunks(of: 70))) },
    Clause("chunks and a window, more queries than keys") {
      try EmulatedAttention(problem(queries: 260, keys: 190, mask: .chunks(of: 33, left: 20, right: nil)))
    },
    Clause("window open to the left") {
      try EmulatedAttention(problem(queries: 90, keys: 260, mask: .window(left: nil, right: 5)))
    },
    Clause("window open to the right") {
      try EmulatedAttention(problem(queries: 90, keys: 260, mask: .window(left: 40, right: nil)))
    },
    Clause("window that some rows do not reach") {
      try EmulatedAttention(problem(queries: 200, keys: 60, mask: .window(left: 3, right: 0)))
    },
    Clause("no keys at all") { try EmulatedAttention(problem(queries: 40, keys: 0)) },
    Clause("softcap") { try EmulatedAttention(problem(queries: 70, softcap: 1.5)) },
    Clause("scale of its own") { try EmulatedAttention(problem(scale: 0.7)) },
    Clause("scale below zero") { try EmulatedAttention(problem(.bf16, scale: -0.2)) },
    Clause("scale zero") { try EmulatedAttention(problem(mask: .causal, scale: 0)) },
    Clause("softcap and scale below zero") { try EmulatedAttention(problem(scale: -0.4, softcap: 2)) },
    Clause("GQA with an odd group") {
      try EmulatedAttention(problem(batch: 2, heads: 2, group: 3, queries: 50, mask: .causal))
    },
    Clause("GQA, few queries") { try EmulatedAttention(problem(.bf16, heads: 2, group: 8, queries: 2, mask: .causal)) },
    Clause("tokens before heads") {
      try EmulatedAttention(problem(batch: 2, heads: 3, queries: 40, keys: 90), layout: .bnhd)
    },
    Clause("gaps between rows, NaN in them and behind the length") {
      try EmulatedAttention(problem(batch: 2, queries: 67, keys: 99, dimension: 40), tail: 5, rowGap: 8)
    },
    Clause("the same, tokens before heads") {
      try EmulatedAttention(
        problem(.bf16, batch: 2, heads: 2, queries: 67, keys: 99), layout: .bnhd, tail: 9, rowGap: 16)
    },
    Clause("D_v smaller than D") { try EmulatedAttention(problem(dimension: 96, valueDimension: 40)) },
    Clause("D_v larger than D", fitsEveryRung: false) {
      try EmulatedAttention(problem(.bf16, dimension: 24, valueDimension: 136))
    },
    Clause("D 8") { try EmulatedAttention(problem(dimension: 8)) },
    Clause("D 72: an odd chunk") { try EmulatedAttention(problem(dimension: 72)) },
    Clause("D 104: three widths of panels", fitsEveryRung: false) {
      try EmulatedAttention(problem(.bf16, dimension: 104))
    },
    Clause("D 128", fitsEveryRung: false) {
      try EmulatedAttention(problem(queries: 140, keys: 200, dimension: 128, mask: .causal))
    },
    Clause("D 256", fitsEveryRung: false) { try EmulatedAttention(problem(.bf16, queries: 130, dimension: 256)) },
    Clause("D 248, as on a GPU with little shared memory", fitsEveryRung: false) {
      try EmulatedAttention(problem(dimension: 248, mask: .causal), on: .sm89)
    },
    Clause("D 512: warps share rows", fitsEveryRung: false) {
      try EmulatedAttention(problem(queries: 70, keys: 150, dimension: 512))
    },
    Clause("D 320, causal, softcap, GQA: warps share rows", fitsEveryRung: false) {
      try EmulatedAttention(
        problem(.bf16, group: 3, queries: 40, keys: 130, dimension: 320, mask: .causal, softcap: 4))
    },
    Clause("D 264, D_v 72, window, empty rows: warps share rows", fitsEveryRung: false) {
      try EmulatedAttention(
        problem(queries: 150, keys: 70, dimension: 264, valueDimension: 72, mask: .window(left: 20, right: 3)))
    },
    Clause("D 512 with little shared memory", fitsEveryRung: false) {
      try EmulatedAttention(problem(.bf16, queries: 70, keys: 100, dimension: 512, scale: -0.05), on: .sm89)
    },
    Clause("D 264, D_v 32: more columns of warps than four chunks have", fitsEveryRung: false) {
      try EmulatedAttention(
        problem(queries: 70, keys: 90, dimension: 264, valueDimension: 32),
        tiling: "rung=split-kv,warps=4,columns=4,keys=64,stages=1,store=shuffles")
    },
    Clause("scores of millions: the maximum is subtracted before the scale") {
      try EmulatedAttention(problem(.bf16, queries: 70, keys: 200, mask: .causal, scale: 1e6))
    },
    Clause("scores of 10^30") {
      try EmulatedAttention(problem(queries: 40, keys: 200, scale: 1e30))
    },
    Clause("the same, where warps share rows", fitsEveryRung: false) {
      try EmulatedAttention(problem(queries: 40, keys: 100, dimension: 264, scale: 1e8))
    },
    Clause("nobody wants the log-sum-exp") {
      var attention = try EmulatedAttention(problem(queries: 40, keys: 60))
      attention.wantsLogSumExp = false
      return attention
    },
    Clause("batches 2^33 bytes apart") {
      try EmulatedAttention(problem(batch: 2, queries: 9, keys: 20, dimension: 16), batchStride: 1 << 32)
    },
    Clause("three stages", fitsEveryRung: false) {
      try EmulatedAttention(problem(queries: 70, keys: 400), tiling: "stages=3,keys=32")
    },
    Clause("Q read again each time, one row tile a warp", fitsEveryRung: false) {
      try EmulatedAttention(problem(queries: 70, keys: 200), tiling: "queries=shared,row-tiles=1,warps=2,keys=32")
    },
  ]

  /// Few keys, so that a score stands almost alone: with one, the log-sum-exp is the capped score itself.
  @Test(arguments: [1, 2, 63, 64, 65]) func softcapOverFewKeys(keys: Int) throws {
    for type in [ScalarType.f16, .bf16] {
      for (softcap, scale) in [(0.5, nil), (1.0, 0.02), (3, 1), (50, nil), (0.5, -0.3)] as [(Double, Double?)] {
        let outcome = try EmulatedAttention(
          problem(type, group: 2, queries: 3, keys: keys, dimension: 64, scale: scale, softcap: softcap)
        ).run()
        #expect(outcome.passes, "\(keys) keys, \(type), softcap \(softcap): log-sum-exp \(outcome.logSumExp)")
      }
    }
  }

  @Test(arguments: clauses)
  func fulfilsTheContract(clause: Clause) throws {
    let attention = try clause.make()
    let program = Program(try attention.plan.kernel())
    for schedule in [Schedule.roundRobin, .random(seed: 11)] {
      let outcome = try attention.run(program, schedule)
      #expect(outcome.passes, "output \(outcome.output), log-sum-exp \(outcome.logSumExp), \(outcome.isConfined)")
      #expect(outcome.counters.bankConflicts == 0)
    }
  }

  /// Every kind of kernel that differs in its barriers, waits and fences.
  @Test(arguments: [
    "", "queries=shared", "stages=3,keys=32", "stages=4,keys=16,queries=shared", "warps=2,row-tiles=1,keys=64",
  ])
  func everyMutationIsCaught(tiling: String) throws {
    let attention = try EmulatedAttention(
      problem(queries: 100, keys: 500, dimension: 64, valueDimension: tiling.contains("keys=16") ? 96 : 64),
      tiling: tiling)
    let kernel = try attention.plan.kernel()
    #expect(Mutation.all(of: kernel).count >= 4)
    let survivors = Mutation.survivors(of: kernel) { (program, schedule) throws(Hazard) in
      try attention.run(program, schedule).passes
    }
    #expect(survivors.isEmpty, "\(survivors)")
  }

  @Test func everyMutationIsCaughtWhereWarpsShareRows() throws {
    let attention = try EmulatedAttention(problem(queries: 40, keys: 200, dimension: 264))
    let kernel = try attention.plan.kernel()
    let survivors = Mutation.survivors(of: kernel) { (program, schedule) throws(Hazard) in
      try attention.run(program, schedule).passes
    }
    #expect(survivors.isEmpty, "\(survivors)")
  }

  @Test func readsKeysAndValuesOncePerTileAndGroup() throws {
    // 4 heads of a group x 96 queries are 384 rows: 3 tiles of 128, each reading K and V once, in whole sectors.
    let attention = try EmulatedAttention(
      problem(batch: 2, group: 4, queries: 96, keys: 192), tiling: "row-tiles=2,keys=96")
    let counters = try attention.run().counters
    let tensor = 2 * 192 * 64 * 2
    let (k, v) = (try #require(counters.traffic["k"]), try #require(counters.traffic["v"]))
    #expect(k.bytesRead == 3 * tensor && k.sectorsRead == k.bytesRead / 32)
    #expect(v.bytesRead == 3 * tensor && v.sectorsRead == v.bytesRead / 32)
    let (q, o) = (try #require(counters.traffic["q"]), try #require(counters.traffic["o"]))
    #expect(q.bytesRead == 2 * 4 * 96 * 64 * 2 && q.sectorsRead == q.bytesRead / 32)
    #expect(o.bytesWritten == q.bytesRead && o.sectorsWritten == o.bytesWritten / 32)
    #expect(counters.bankConflicts == 0 && counters.sharedPasses > 0)
    // Two tiles of 96 keys for each of 2 x 3 blocks of 4 warps: one barrier a tile, and one for Q.
    #expect(counters.barriers == 6 * 4 * (2 + 1))
    // 16 x 8 x 16 products: 384 rows, 192 keys, D and D_v 64, batch 2.
    #expect(counters.matrixInstructions == 2 * (384 / 16) * (192 / 8) * (64 / 16) * 2)
    // One for each score, and those of the rescaling: 8 for each lane's rows at the first tile, if no maximum grows.
    let scores = 2 * 384 * 192
    #expect(counters.exponentials >= scores && counters.exponentials < scores + scores / 8)
  }

  @Test func skipsTilesThatNoRowSees() throws {
    func products(_ mask: AttentionMask, keys: Int = 1024) throws -> Int {
      try EmulatedAttention(problem(queries: 128, keys: keys, mask: mask), tiling: "row-tiles=2,keys=64").run().counters
        .matrixInstructions
    }
    // One tile of 64 keys for 128 rows.
    let tile = (128 / 16) * (64 / 8) * (64 / 16) * 2
    #expect(try products(.none) == 16 * tile)
    #expect(try products(.causal) == 16 * tile)
    // 128 queries at the end of 1024 keys, with 64 keys to the left: keys 832 and on.
    #expect(try products(.window(left: 64, right: 0)) == 3 * tile)
    #expect(try products(.window(left: nil, right: 0), keys: 64) == tile)
    let long = try EmulatedAttention(problem(queries: 512, keys: 512, mask: .causal), tiling: "row-tiles=2,keys=64")
      .run()
    // Blocks of 128 rows see 2, 4, 6 and 8 tiles.
    #expect(long.counters.matrixInstructions == 20 * tile && long.passes)
    #expect(try #require(long.counters.traffic["k"]).bytesRead == 20 * 64 * 64 * 2)
  }

  /// A NaN in Q makes its own rows NaN, not empty ones.
  @Test func aNaNStaysVisible() throws {
    var attention = try EmulatedAttention(problem(queries: 20, keys: 30))
    attention.hasNaNInFirstQuery = true
    let outcome = try attention.run()
    #expect(outcome.passes, "\(outcome.output), \(outcome.logSumExp)")
  }

  @Test func takesMoreThan65535HeadsTimesBatch() throws {
    let attention = try EmulatedAttention(
      problem(batch: 3, heads: 22_000, queries: 1, keys: 1, dimension: 8), tiling: "warps=2,keys=16,row-tiles=1")
    #expect(attention.plan.launches.attention.blocks == 66_000)
    #expect(try attention.run().passes)
  }

  /// The random cases of `verify`, as on a GPU.
  @Test(arguments: 0..<4)
  func passesRandomCases(part: Int) throws {
    for number in part * 16..<part * 16 + 16 {
      let test = VerificationCase(seed: 3, number: number, kernels: 64)
      if test.problem.flops > 4e8 { continue }
      let (emulation, gpu) = (test.emulation(), GPULimits.typical(of: .sm90))
      let plan = try KernelPlan(test.problem, on: gpu).taking(emulation.call, on: gpu)
      _ = try plan.launches.emulate(emulation.call, memory: emulation.memory)
      let outcome = test.judge(try #require(emulation.result))
      #expect(outcome.failure == nil, "\(test.problem): \(outcome)")
    }
  }
}
