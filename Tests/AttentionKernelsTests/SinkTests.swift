import Attention
import AttentionKernels
import AttentionVerification
import PTX
import PTXEmulator
import Testing

/// Attention sinks in every family of kernels: once in each row's denominator, whoever finishes the row.
@Suite struct SinkTests {
  typealias Clause = EmulatedClause

  static let clauses: [Clause] = [
    Clause(whole: "f32, ten heads: each kind of sink, rows without keys") {
      try EmulatedAttention(problem(heads: 5, group: 2, queries: 100, keys: 60, mask: .causal), sinks: .f32)
    },
    Clause(whole: "f16, window") {
      try EmulatedAttention(
        problem(batch: 2, heads: 8, queries: 40, keys: 90, mask: .window(left: 20, right: 0)), sinks: .f16)
    },
    Clause(whole: "bf16, softcap, scale below zero, GQA with an odd group") {
      try EmulatedAttention(problem(.bf16, heads: 3, group: 3, queries: 50, scale: -0.4, softcap: 2), sinks: .bf16)
    },
    Clause(whole: "D 512: warps share rows") {
      try EmulatedAttention(problem(.bf16, heads: 2, group: 4, queries: 20, keys: 70, dimension: 512), sinks: .bf16)
    },
    Clause(whole: "a row that is lost stays lost") {
      var attention = try EmulatedAttention(problem(heads: 8, queries: 20, keys: 40), sinks: .f32)
      attention.hasNaNInFirstQuery = true
      return attention
    },
    Clause(whole: "no keys at all") { try EmulatedAttention(problem(heads: 8, queries: 5, keys: 0), sinks: .f32) },
    Clause(whole: "Hopper, eight heads") {
      try EmulatedAttention(
        problem(.bf16, heads: 4, group: 2, queries: 140, keys: 150, dimension: 128, mask: .causal), layout: .bnhd,
        family: HopperForwardFamily.name, sinks: .bf16)
    },
    Clause(whole: "Hopper, rows without keys") {
      try EmulatedAttention(
        problem(heads: 8, queries: 150, keys: 40, mask: .causal), layout: .bnhd, family: HopperForwardFamily.name,
        sinks: .f32)
    },
    Clause(cached: "one part") {
      try EmulatedDecoding(lengths: [3, 60, 0], heads: 2, group: 4, queries: 2, capacity: 64, sinks: .f32)
    },
    Clause(cached: "parts, put together by the last block") {
      try EmulatedDecoding(.f16, lengths: [500, 130], heads: 1, group: 8, capacity: 512, sinks: .f16)
    },
    Clause(cached: "parts, put together by a launch behind") {
      try EmulatedDecoding(
        lengths: [500, 130], heads: 1, group: 8, queries: 3, capacity: 512, sinks: .bf16, combination: .launchBehind)
    },
    Clause(cached: "fixed splits, packed queries, pages") {
      try EmulatedDecoding(
        lengths: [300, 20, 0], heads: 2, group: 4, queryCounts: [3, 0, 2], pageSize: 16, capacity: 304,
        keysPerSplit: 100, sinks: .bf16)
    },
    Clause(cached: "e4m3 with scales, new keys") {
      try EmulatedDecoding(
        lengths: [130, 70], heads: 2, group: 4, capacity: 140, new: .init(counts: [3, 3]), cacheType: .e4m3,
        hasScales: true, sinks: .f32)
    },
    Clause(cached: "sequences by the kernels of prefill") {
      try EmulatedDecoding(
        lengths: [130, 70, 0], heads: 4, group: 2, queryCounts: [90, 3, 5], hasPackedKeys: true, sinks: .bf16,
        family: ForwardFamily.name)
    },
    Clause(cached: "Hopper's, several parts") {
      try EmulatedDecoding(
        lengths: [500, 40], heads: 1, group: 8, queries: 8, capacity: 512, sinks: .bf16, multiprocessors: 3,
        changes: "groups=1,keys=64", family: HopperDecodeFamily.name)
    },
    Clause(cached: "Hopper's prefill of sequences") {
      try EmulatedDecoding(
        lengths: [130, 70, 0], heads: 4, group: 2, queryCounts: [90, 3, 5], hasPackedKeys: true, sinks: .f32,
        family: HopperForwardFamily.name)
    },
  ]

  @Test(arguments: clauses) func isCountedOnce(clause: Clause) throws {
    for schedule in [Schedule.roundRobin, .random(seed: 5)] { #expect(try clause.run(schedule)) }
  }

  /// What a kernel without sinks is made from does not change because there are some.
  @Test func othersKeepTheirText() throws {
    let plain = try EmulatedAttention(problem(queries: 40, keys: 60)).plan.kernel().text()
    #expect(!plain.contains("sinks"))
    let with = try EmulatedAttention(problem(queries: 40, keys: 60), sinks: .f16).plan.kernel().text()
    #expect(with.contains("sinks_f16") && with.contains("sinks: in the denominator"))
  }

  /// Where a unit is whole, factors of rows go from warp to warp.
  @Test func everyMutationIsCaught() throws {
    let decoding = try EmulatedDecoding(
      lengths: [130, 70], heads: 1, group: 8, capacity: 140, sinks: .f32, multiprocessors: 1)
    let kernel = try decoding.plan.kernel()
    let survivors = Mutation.survivors(of: kernel) { (program, schedule) throws(Hazard) in
      try decoding.run(EmulatedDecoding.Programs(decode: program), schedule).passes
    }
    // What parts of units are ordered by, a call without parts does not show.
    let own = survivors.map { "\($0)" }.filter { $0.hasPrefix("KeyGroupMerge") }
    #expect(own.isEmpty, "\(own)")
  }

  /// Parts that the caller puts together have none; a type that sinks have not is refused.
  @Test func refusesByName() throws {
    var problem = try AttentionProblem(
      batch: 1, queries: 1, queryHeads: 4, keyValueHeads: 1, dimension: 64,
      keys: .contiguous(sequences: 1, capacity: 64),
      scalarType: .bf16, mask: .causal, keysPerSplit: 64, leavesParts: true)
    problem.sinkType = .f32
    #expect(
      throws: AttentionError.unsupported(
        "Partial results are without sinks; give the sinks to what puts the parts together.")
    ) { try problem.checkSinksAndRanges() }
    var other = try AttentionKernelsTests.problem()
    other.sinkType = .e4m3
    #expect(throws: AttentionError.unsupported("Sinks are e4m3; they must be f32, f16 or bf16.")) {
      try other.checkSinksAndRanges()
    }
  }
}
