import Attention
import AttentionKernels
import AttentionVerification
import PTX
import PTXEmulator
import Testing

/// Hopper's decode kernels on the emulator, beside the 64-bit reference; every row of a cache that holds no key is NaN.
@Suite struct HopperDecodeTests {
  typealias Clause = DecodeKernelTests.Clause

  private static func decoding(
    _ type: ScalarType = .bf16, _ changes: String = "groups=1,keys=64", lengths: [Int], heads: Int = 1, group: Int = 8,
    queries: Int = 8, queryCounts: [Int]? = nil, dimension: Int = 64, valueDimension: Int? = nil, pageSize: Int? = nil,
    capacity: Int = 512, hasPackedKeys: Bool = false, mask: AttentionMask = .causal, scale: Double? = nil,
    softcap: Double? = nil, batchIndex: [Int]? = nil, leftPadding: [Int]? = nil, new: EmulatedDecoding.New? = nil,
    cacheType: ScalarType? = nil, queryType: ScalarType? = nil, keysPerSplit: Int? = nil
  ) throws -> EmulatedDecoding {
    try EmulatedDecoding(
      type, lengths: lengths, heads: heads, group: group, queries: queries, queryCounts: queryCounts,
      dimension: dimension, valueDimension: valueDimension, pageSize: pageSize, capacity: capacity,
      hasPackedKeys: hasPackedKeys, mask: mask, scale: scale, softcap: softcap, batchIndex: batchIndex,
      leftPadding: leftPadding, new: new, cacheType: cacheType, queryType: queryType, hasScales: cacheType == .e4m3,
      keysPerSplit: keysPerSplit, multiprocessors: 3, changes: changes, family: HopperDecodeFamily.name)
  }

  static let clauses: [Clause] = [
    Clause("one sequence over three blocks") { try decoding(lengths: [500]) },
    Clause("more sequences than lanes") { try decoding(.bf16, lengths: (0..<36).map { $0 * 13 % 90 }) },
    Clause("several sequences, two heads, odd lengths") { try decoding(.f16, lengths: [1, 333, 0, 77, 64], heads: 2) },
    Clause("128 rows") { try decoding(.bf16, "groups=2,keys=64", lengths: [300, 450], group: 16) },
    Clause("70 rows of two groups") {
      try decoding(.bf16, "groups=2,keys=48", lengths: [300, 45], group: 7, queries: 10)
    },
    Clause("blocks of rows") { try decoding(.f16, "groups=2,keys=64", lengths: [300, 45], group: 5, queries: 60) },
    Clause("a second launch puts together") {
      try decoding(.bf16, "groups=1,keys=64,combine=behind", lengths: [500, 20], mask: .none)
    },
    Clause("maxima of each tile") { try decoding(.f16, "groups=1,keys=64,softmax=maxima", lengths: [400], scale: 4) },
    Clause("softcap, scale below zero") { try decoding(lengths: [300, 120], scale: -0.5, softcap: 4) },
    Clause("a window") { try decoding(lengths: [300, 120], queries: 16, mask: .window(left: 50, right: 3)) },
    Clause("chunks") { try decoding(lengths: [300, 120], queries: 16, mask: .chunks(of: 70)) },
    Clause("pages of 16, D 72, D_v 40") {
      try decoding(lengths: [300, 0, 120], dimension: 72, valueDimension: 40, pageSize: 16)
    },
    Clause("pages of 192") { try decoding(.f16, lengths: [400, 120], pageSize: 192, capacity: 384 + 192) },
    Clause("packed queries and keys") {
      try decoding(lengths: [300, 0, 120], queryCounts: [8, 3, 0], hasPackedKeys: true)
    },
    Clause("places of a cache, padding") {
      try decoding(lengths: [300, 7, 120], batchIndex: [2, 0, 3], leftPadding: [100, 7, 0])
    },
    Clause("new keys, turned") {
      try decoding(
        lengths: [300, 0],
        new: .init(
          counts: [8, 8], rotary: RotaryEmbedding(dimension: 32, isInterleaved: false, positions: 400)))
    },
    Clause("new keys to pages") { try decoding(lengths: [300, 0], pageSize: 16, new: .init(counts: [8, 8])) },
    Clause("a cache of e4m3") {
      try decoding(lengths: [300, 0, 120], heads: 2, dimension: 80, valueDimension: 48, cacheType: .e4m3)
    },
    Clause("e4m3 queries over pages of e4m3, D 256") {
      try decoding(
        .bf16, "groups=1,keys=32", lengths: [200, 30], group: 16, dimension: 256, pageSize: 16, cacheType: .e4m3,
        queryType: .e4m3)
    },
    Clause("new keys for a cache of e4m3, turned, softcap") {
      try decoding(
        .f16, lengths: [300, 0], softcap: 3,
        new: .init(
          counts: [8, 8], rotary: RotaryEmbedding(dimension: 32, isInterleaved: false, positions: 400)),
        cacheType: .e4m3)
    },
    Clause("splits of a fixed length") { try decoding(lengths: [500, 20, 0, 300], keysPerSplit: 100) },
    Clause("one part, 128 rows") {
      try decoding(.f16, "groups=2,keys=64", lengths: [500, 20], group: 16, keysPerSplit: AttentionProblem.allKeys)
    },
    Clause("two groups divide the keys of a tile") {
      try decoding(.f16, "groups=halves,keys=64", lengths: [1, 333, 0, 77, 64, 30], heads: 2, scale: 4)
    },
    Clause("the same, a window, softcap, scale below zero, D 72, D_v 40, pages of 16") {
      try decoding(
        .bf16, "groups=halves,keys=32", lengths: [300, 0, 120], queries: 16, dimension: 72, valueDimension: 40,
        pageSize: 16,
        mask: .window(left: 50, right: 3), scale: -0.5, softcap: 4)
    },
    Clause("the same, maxima of each tile, a second launch") {
      try decoding(.bf16, "groups=halves,keys=128,softmax=maxima,combine=behind", lengths: [500, 20], dimension: 128)
    },
    Clause("the same, scores beyond 2^20") {
      try decoding(.bf16, "groups=halves,keys=64", lengths: [300, 20, 90], scale: 1e6)
    },
    Clause("the same, of e4m3") {
      try decoding(
        .bf16, "groups=halves,keys=128", lengths: [300, 0, 120], heads: 2, group: 7, dimension: 128, cacheType: .e4m3)
    },
    Clause("D 256") { try decoding(.bf16, "groups=2,keys=48", lengths: [200, 30], group: 16, dimension: 256) },
  ]

  @Test(arguments: clauses)
  func fulfilsTheContract(clause: Clause) throws {
    let decoding = try clause.make()
    for schedule in [Schedule.copiesLate, .random(seed: 4), .firstAhead, .lastAhead] {
      let outcome = try decoding.run(EmulatedDecoding.Programs(), schedule, calls: 2)
      #expect(outcome.passes, "\(clause.testDescription), \(schedule): \(outcome.description)")
      #expect(outcome.counters.bankConflicts == 0)
    }
  }

  /// A tiling's text makes it of any other, and what is no number of groups is none.
  @Test func tilingsAreWrittenAsText() throws {
    let problem = try Self.decoding(lengths: [300], group: 16).problem
    let tilings = HopperDecodeFamily.tilings(for: problem, on: .typical(of: .sm90))
    #expect(Set(tilings.map { [$0.rowGroups, $0.keyGroups] }) == [[1, 1], [1, 2], [2, 1]])
    for tiling in tilings {
      for other in tilings { #expect(try other.changed(by: TilingChanges(tiling.changes)) == tiling) }
    }
    for text in ["groups=3", "groups=half", "key-groups=2", "keys=halves"] {
      #expect(try HopperDecodeTiling().changed(by: TilingChanges(text)) == nil)
    }
  }

  private let schedules: [Schedule] = [
    .roundRobin, .copiesAtOnce, .copiesLate, .firstAhead, .lastAhead, .random(seed: 1), .random(seed: 2),
  ]

  /// Every barrier, wait and fence is needed, in some schedule.
  @Test(arguments: HopperForwardTiling.Softmax.allCases) func everyOrderingIsNeeded(
    softmax: HopperForwardTiling.Softmax
  ) throws {
    let decoding = try Self.decoding(
      .bf16, "groups=2,keys=64,softmax=\(softmax)", lengths: [100, 40, 300, 0, 64, 130, 30, 450], group: 16,
      scale: 2)
    let kernel = try decoding.plan.launches.attention.kernel.kernel()
    let survivors = Mutation.survivors(of: kernel, schedules: schedules) { (program, schedule) throws(Hazard) in
      try decoding.run(EmulatedDecoding.Programs(decode: program), schedule).passes
    }
    #expect(survivors.isEmpty, "\(survivors)")
  }

  /// The same of the groups that convert bytes: one does both, or one K and another V.
  @Test(arguments: ["groups=2,keys=64", "groups=1,keys=32", "groups=halves,keys=64"]) func everyOrderingOfBytesIsNeeded(
    tiling: String
  ) throws {
    let decoding = try Self.decoding(
      .bf16, tiling, lengths: [100, 40, 300, 0, 64, 130, 30, 450], group: 16, scale: 2, cacheType: .e4m3)
    let kernel = try decoding.plan.launches.attention.kernel.kernel()
    let survivors = Mutation.survivors(of: kernel, schedules: schedules) { (program, schedule) throws(Hazard) in
      try decoding.run(EmulatedDecoding.Programs(decode: program), schedule).passes
    }
    // What makes scores again is careful of copies that bring Q or K next, which here ordinary stores do.
    let others = survivors.filter { !"\($0)".hasPrefix("ScoresAgain") }
    #expect(others.isEmpty && survivors.count <= 1, "\(survivors)")
  }

  /// K and V come once, whatever shares them, and bytes as bytes.
  @Test func eachCachedByteIsReadOnce() throws {
    let outcome = try Self.decoding(lengths: [256, 128], group: 16, queries: 4).run()
    #expect(outcome.counters.bulkBytesLoaded == (256 + 128) * 2 * 64 * 2)
    let bytes = try Self.decoding(lengths: [256, 128], group: 16, queries: 4, dimension: 128, cacheType: .e4m3).run()
    #expect(bytes.counters.bulkBytesLoaded == (256 + 128) * 2 * 128)
  }
}
