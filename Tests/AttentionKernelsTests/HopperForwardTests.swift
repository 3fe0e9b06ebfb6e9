import Attention
import AttentionKernels
import AttentionVerification
import PTX
import PTXEmulator
import Testing

/// Hopper's forward kernels on the emulator, beside the 64-bit reference.
@Suite struct HopperForwardTests {
  struct Clause: Sendable, CustomTestStringConvertible {
    let testDescription: String
    let make: @Sendable () throws -> EmulatedAttention
    init(_ name: String, _ make: @escaping @Sendable () throws -> EmulatedAttention) {
      (testDescription, self.make) = (name, make)
    }
  }

  private static func attention(
    batch: Int = 1, heads: Int = 1, group: Int = 1, queries: Int, keys: Int, dimension: Int = 64, value: Int? = nil,
    type: ScalarType = .bf16, mask: AttentionMask = .none, scale: Double? = nil, softcap: Double? = nil,
    layout: TensorLayout = .bhnd, tail: Int = 0, rowGap: Int = 0, batchStride: Int? = nil,
    _ tiling: HopperForwardTiling = HopperForwardTiling(groups: 2, tileKeys: 64)
  ) throws -> EmulatedAttention {
    func shape(_ heads: Int, _ length: Int, _ dimension: Int) -> TensorShape {
      TensorShape(batch: batch, heads: heads, length: length, dimension: dimension)
    }
    let problem = try AttentionProblem(
      queries: shape(heads * group, queries, dimension), keys: shape(heads, keys, dimension),
      values: shape(heads, keys, value ?? dimension), scalarType: type, mask: mask, scale: scale, softcap: softcap)
    var attention = try EmulatedAttention(
      problem, layout: layout, tail: tail, rowGap: rowGap, batchStride: batchStride)
    attention.plan = try KernelPlan(problem, on: smallGPU, tiling, of: HopperForwardFamily.self)
    return attention
  }

  /// Of so few multiprocessors that blocks have more than one item.
  private static var smallGPU: GPULimits {
    var gpu = GPULimits.typical(of: .sm90)
    gpu.multiprocessors = 2
    return gpu
  }

  static let clauses: [Clause] = [
    Clause("a tile") { try attention(queries: 128, keys: 64) },
    Clause("odd lengths") { try attention(batch: 2, heads: 3, queries: 77, keys: 201) },
    Clause("one query, one key") { try attention(batch: 2, heads: 8, queries: 1, keys: 1) },
    Clause("no keys") { try attention(queries: 5, keys: 0) },
    Clause("many blocks") { try attention(heads: 2, queries: 300, keys: 130, type: .f16) },
    Clause("two tiles of Q") {
      try attention(
        heads: 3, queries: 300, keys: 130, mask: .causal, HopperForwardTiling(groups: 2, tileKeys: 64, queryStages: 2))
    },
    Clause("causal") { try attention(batch: 2, heads: 5, queries: 200, keys: 200, mask: .causal) },
    Clause("causal, more heads than a section") {
      try attention(batch: 5, heads: 7, queries: 130, keys: 20, mask: .causal)
    },
    Clause("causal, more keys") { try attention(queries: 130, keys: 300, mask: .causal) },
    Clause("causal, rows without keys") { try attention(queries: 300, keys: 130, mask: .causal) },
    Clause("window") { try attention(queries: 260, keys: 260, mask: .window(left: 50, right: 0)) },
    Clause("two-sided window") {
      try attention(queries: 200, keys: 230, type: .f16, mask: .window(left: 20, right: 70))
    },
    Clause("chunks") { try attention(queries: 200, keys: 200, mask: .chunks(of: 70)) },
    Clause("softcap") { try attention(queries: 100, keys: 150, mask: .causal, scale: 2, softcap: 3) },
    Clause("groups of heads") { try attention(batch: 2, heads: 2, group: 3, queries: 70, keys: 90, mask: .causal) },
    Clause("huge scores") { try attention(queries: 70, keys: 200, scale: 1000) },
    Clause("tiny scale") { try attention(queries: 70, keys: 200, scale: 1e-30) },
    Clause("scale below zero") { try attention(queries: 70, keys: 200, mask: .causal, scale: -5) },
    Clause("D 8") { try attention(queries: 40, keys: 70, dimension: 8) },
    Clause("D 40, D_v 72") { try attention(queries: 140, keys: 150, dimension: 40, value: 72, mask: .causal) },
    Clause("D 96") { try attention(queries: 140, keys: 150, dimension: 96, type: .f16) },
    Clause("D 128") {
      try attention(
        queries: 140, keys: 300, dimension: 128, mask: .causal, HopperForwardTiling(groups: 2, tileKeys: 176))
    },
    Clause("D 192, D_v 128") { try attention(queries: 70, keys: 200, dimension: 192, value: 128) },
    Clause("D 256") {
      try attention(queries: 130, keys: 190, dimension: 256, mask: .causal, HopperForwardTiling(tileKeys: 80))
    },
    Clause("three groups") {
      try attention(
        queries: 250, keys: 333, mask: .causal, HopperForwardTiling(groups: 3, tileKeys: 112, stages: 3))
    },
    Clause("softmax while P V runs") {
      try attention(
        heads: 2, queries: 150, keys: 333, type: .f16, mask: .causal, scale: 4,
        HopperForwardTiling(groups: 2, tileKeys: 64, softmax: .maxima))
    },
    Clause("without maxima") {
      try attention(
        heads: 2, queries: 150, keys: 333, type: .f16, mask: .causal, scale: 4,
        HopperForwardTiling(groups: 2, tileKeys: 64))
    },
    Clause("without maxima, a window") {
      try attention(
        queries: 333, keys: 350, mask: .window(left: 64, right: 70), scale: 3,
        HopperForwardTiling(groups: 2, tileKeys: 64))
    },
    Clause("chunks, three groups that see other tiles") {
      try attention(
        heads: 2, queries: 390, keys: 400, mask: .chunks(of: 70),
        HopperForwardTiling(groups: 3, tileKeys: 48, queryStages: 2))
    },
    Clause("a window, three groups that see other tiles") {
      try attention(
        heads: 2, queries: 390, keys: 330, type: .f16, mask: .window(left: 30, right: 10), scale: -2,
        HopperForwardTiling(groups: 3, tileKeys: 48, queryStages: 2))
    },
    Clause("scale 0") { try attention(queries: 70, keys: 200, mask: .causal, scale: 0) },
    Clause("scale below zero, groups of heads") {
      try attention(batch: 2, heads: 2, group: 3, queries: 70, keys: 200, scale: -3)
    },
    Clause("without maxima, softcap, rows without keys") {
      try attention(
        queries: 300, keys: 190, dimension: 72, mask: .causal, softcap: 30,
        HopperForwardTiling(groups: 2, tileKeys: 48, stages: 3))
    },
    Clause("without maxima, three groups, D 128") {
      try attention(
        queries: 250, keys: 290, dimension: 128, scale: 2, HopperForwardTiling(groups: 3, tileKeys: 80))
    },
    Clause("tokens before heads, NaN around") {
      try attention(
        batch: 2, heads: 3, queries: 100, keys: 100, mask: .causal, layout: .bnhd, tail: 3, rowGap: 8)
    },
    Clause("NaN behind the sequences") {
      try attention(batch: 2, heads: 2, queries: 70, keys: 90, type: .f16, tail: 70, rowGap: 64)
    },
    Clause("batches far apart") {
      try attention(batch: 2, queries: 20, keys: 20, batchStride: 1 << 33)
    },
  ]

  @Test(arguments: clauses)
  func fulfilsTheContract(clause: Clause) throws {
    var attention = try clause.make()
    let program = Program(try attention.plan.launches.attention.kernel.kernel())
    for schedule in [Schedule.copiesLate, .random(seed: 4), .firstAhead, .lastAhead] {
      attention.givesCounters = schedule != .firstAhead
      let outcome = try attention.run(program, schedule)
      #expect(outcome.passes, "\(clause.testDescription), \(schedule): \(outcome.output), \(outcome.logSumExp)")
      #expect(outcome.counters.bankConflicts == 0)
    }
  }

  struct SequencesClause: Sendable, CustomTestStringConvertible {
    let testDescription: String
    let make: @Sendable (String) throws -> EmulatedDecoding
    init(_ name: String, _ make: @escaping @Sendable (_ changes: String) throws -> EmulatedDecoding) {
      (testDescription, self.make) = (name, make)
    }
  }

  /// Bytes are converted in tiles of powers of two.
  private static func sizeOfBytes(_ tiling: String) -> String { tiling.replacing("keys=48", with: "keys=32") }

  /// Sequences with lengths of their own; every row that is none is NaN.
  static let sequences: [SequencesClause] = [
    SequencesClause("packed queries and keys") {
      try EmulatedDecoding(
        lengths: [90, 0, 333, 64], queryCounts: [90, 5, 333, 0], capacity: 400, hasPackedKeys: true, multiprocessors: 2,
        changes: $0, family: HopperForwardFamily.name)
    },
    SequencesClause("packed keys of other lengths, in longer rooms") {
      try EmulatedDecoding(
        .f16, lengths: [90, 0, 40, 200], heads: 2, group: 1, queryCounts: [10, 140, 90, 130], dimension: 72,
        valueDimension: 40, capacity: 400, hasPackedKeys: true, keyGap: 7, mask: .none, multiprocessors: 2, changes: $0,
        family: HopperForwardFamily.name)
    },
    SequencesClause("a window") {
      try EmulatedDecoding(
        lengths: [260, 1, 300], group: 1, queryCounts: [260, 1, 200], capacity: 300, hasPackedKeys: true,
        mask: .window(left: 50, right: 20), scale: -1, multiprocessors: 2, changes: $0,
        family: HopperForwardFamily.name)
    },
    SequencesClause("a cache, places of their own, chunks") {
      try EmulatedDecoding(
        lengths: [130, 0, 256], queries: 130, capacity: 256, mask: .chunks(of: 70), softcap: 5, batchIndex: [2, 0, 3],
        multiprocessors: 2, changes: $0, family: HopperForwardFamily.name)
    },
    SequencesClause("small pages") {
      try EmulatedDecoding(
        lengths: [130, 0, 256, 77], heads: 2, group: 2, queryCounts: [130, 9, 140, 0], dimension: 72, pageSize: 16,
        capacity: 256, multiprocessors: 2, changes: $0, family: HopperForwardFamily.name)
    },
    SequencesClause("large pages") {
      try EmulatedDecoding(
        .f16, lengths: [130, 7, 300], queries: 70, pageSize: 192, capacity: 384, mask: .window(left: 90, right: 0),
        multiprocessors: 2, changes: $0, family: HopperForwardFamily.name)
    },
    SequencesClause("a cache of e4m3, D 80, D_v 48, scales") {
      try EmulatedDecoding(
        lengths: [130, 0, 256], heads: 2, group: 2, queries: 130, dimension: 80, valueDimension: 48, capacity: 256,
        batchIndex: [2, 0, 3], cacheType: .e4m3, hasScales: true, multiprocessors: 2, changes: sizeOfBytes($0),
        family: HopperForwardFamily.name)
    },
    SequencesClause("pages of e4m3, packed queries, softcap") {
      try EmulatedDecoding(
        .f16, lengths: [130, 0, 256, 77], heads: 2, group: 1, queryCounts: [130, 9, 140, 0], dimension: 144,
        valueDimension: 16, pageSize: 16, capacity: 256, mask: .window(left: 90, right: 0), softcap: 5,
        cacheType: .e4m3,
        hasScales: true, multiprocessors: 2, changes: sizeOfBytes($0), family: HopperForwardFamily.name)
    },
    SequencesClause("70 sequences") {
      try EmulatedDecoding(
        lengths: (0..<70).map { $0 * 37 % 90 }, group: 1, queryCounts: (0..<70).map { $0 * 53 % 80 }, dimension: 16,
        capacity: 400, hasPackedKeys: true, multiprocessors: 3, changes: $0, family: HopperForwardFamily.name)
    },
  ]

  @Test(arguments: sequences, ["groups=2,keys=64,query-stages=2", "groups=3,keys=48,softmax=maxima"])
  func takesSequencesWithLengthsOfTheirOwn(clause: SequencesClause, tiling: String) throws {
    let decoding = try clause.make(tiling)
    for schedule in [Schedule.copiesLate, .random(seed: 4), .firstAhead, .lastAhead] {
      let outcome = try decoding.run(EmulatedDecoding.Programs(), schedule, calls: 2)
      #expect(outcome.passes, "\(clause.testDescription), \(schedule): \(outcome.description)")
      #expect(outcome.counters.bankConflicts == 0)
    }
  }

  /// Scores that leave behind what was their maximum: by so many powers of two from tile to tile, in all rows or in one,
  /// from the second tile on or only in the last, falling and rising again; beyond what f16 and f32 hold.
  @Test(arguments: [5, 20, 127, 200, 1000, -20, -200] as [Float], [ScalarType.f16, .bf16])
  func scoresMayOutgrowTheirMaxima(growth: Float, type: ScalarType) throws {
    let tile = 64
    func key(_ n: Int) -> Float { Float(n / tile) * growth * 0.6875 }
    for (name, query, key) in [
      ("all rows", { _ in 1 }, key),
      ("one row", { $0 == 77 ? 1 : 0 }, key),
      ("the last tile", { _ in 1 }, { $0 >= 4 * tile ? key(4 * tile) : 0 }),
      ("falling and rising", { _ in 1 }, { key([2, 1, 3, 0, 4][$0 / tile] * tile) }),
      ("some up, some down", { $0 % 2 == 0 ? 1 : -1 }, key),
      ("one key", { _ in 1 }, { $0 == 150 ? key(tile) : 0 }),
    ] as [(String, (Int) -> Float, (Int) -> Float)] {
      for (mask, scale, softcap) in [
        (AttentionMask.none, 1, nil), (.causal, 1, nil), (.none, -1, nil), (.none, 1, 256),
      ]
        as [(AttentionMask, Double, Double?)]
      {
        var attention = try Self.attention(
          queries: 100, keys: 5 * tile, type: type, mask: mask, scale: scale, softcap: softcap,
          HopperForwardTiling(groups: 2, tileKeys: tile))
        attention.firstColumns = (query, key)
        let outcome = try attention.run()
        #expect(
          outcome.passes,
          "\(name), \(mask), scale \(scale), softcap \(softcap ?? 0): \(outcome.output), \(outcome.logSumExp)")
      }
    }
  }

  /// Infinite and NaN scores are as lost, and as confined to their rows, as with maxima.
  @Test(arguments: [Float.infinity, -.infinity, .nan]) func lostRowsStayAlone(value: Float) throws {
    for softmax in [HopperForwardTiling.Softmax.maxima, .lazy] {
      // From the first tile on, or beyond what the maxima there are.
      for first in value < 0 ? [0] : [0, 0.25] as [Float] {
        var attention = try Self.attention(
          queries: 100, keys: 320, mask: .none, HopperForwardTiling(groups: 2, tileKeys: 64, softmax: softmax))
        attention.firstColumns = ({ $0 == 70 ? value : 1 }, { $0 < 64 ? first : 0.5 })
        let outcome = try attention.run()
        #expect(outcome.passes, "\(softmax), \(first): \(outcome.output), \(outcome.logSumExp)")
      }
    }
  }

  /// A row whose scores become huge in the second tile, beside others.
  @Test func hugeScoresMayComeLate() throws {
    var attention = try Self.attention(
      queries: 100, keys: 320, mask: .none, HopperForwardTiling(groups: 2, tileKeys: 64))
    attention.firstColumns = ({ $0 == 70 ? 1e37 : 1 }, { $0 < 64 ? 1e-37 : $0 % 2 == 0 ? 2 : 1 })
    let outcome = try attention.run()
    // Of that row's log-sum-exp, 2.5e36, half of the last bit counts as an error.
    #expect(outcome.output.passes && outcome.isConfined, "\(outcome.output)")
  }

  private let schedules: [Schedule] = [
    .roundRobin, .copiesAtOnce, .copiesLate, .firstAhead, .lastAhead, .random(seed: 1), .random(seed: 2),
  ]

  /// Every barrier, wait and fence is needed, in some schedule.
  @Test(arguments: HopperForwardTiling.Softmax.allCases) func everyOrderingIsNeeded(
    softmax: HopperForwardTiling.Softmax
  ) throws {
    let attention = try Self.attention(
      // Of each head, items that see no key, where groups see none and one, two and three, and four and none.
      heads: 4, queries: 394, keys: 200, mask: .causal, scale: 4,
      HopperForwardTiling(groups: 2, tileKeys: 64, softmax: softmax, queryStages: 2))
    let kernel = try attention.plan.launches.attention.kernel.kernel()
    let survivors = Mutation.survivors(of: kernel, schedules: schedules) { (program, schedule) throws(Hazard) in
      try attention.run(program, schedule).passes
    }
    #expect(survivors.isEmpty, "\(survivors)")
  }

  /// The same of the warps that convert bytes.
  @Test func everyOrderingOfBytesIsNeeded() throws {
    let decoding = try EmulatedDecoding(
      // The last group lets tiles pass that the first is still at.
      lengths: [200, 64, 330], group: 2, queryCounts: [200, 64, 100], capacity: 400, hasPackedKeys: true,
      mask: .window(left: 70, right: 0), scale: 4,
      cacheType: .e4m3, hasScales: true, multiprocessors: 2, changes: "groups=2,keys=32,query-stages=2",
      family: HopperForwardFamily.name)
    let kernel = try decoding.plan.launches.attention.kernel.kernel()
    let survivors = Mutation.survivors(of: kernel, schedules: schedules + (3...9).map { .random(seed: $0) }) {
      (program, schedule) throws(Hazard) in
      try decoding.run(EmulatedDecoding.Programs(decode: program), schedule).passes
    }
    #expect(survivors.isEmpty, "\(survivors)")
  }

  /// Sequences must begin whole rows apart for zeros to come behind their values; other calls run by other kernels, in
  /// the same workspace.
  @Test func stridesThatHaveNoMap() throws {
    let gpu = GPULimits.typical(of: .sm90)
    func plan(_ keys: AttentionProblem.KeyStorage, _ family: String) throws -> KernelPlan {
      try KernelPlan(
        AttentionProblem(
          batch: 2, queries: 128, queryHeads: 2, keyValueHeads: 2, dimension: 64, keys: keys, scalarType: .bf16,
          mask: .causal), on: gpu, options: KernelOptions(family: family))
    }
    let cache = try plan(.contiguous(sequences: 2, capacity: 100), HopperForwardFamily.name)
    func haveMaps(batch: Int, row: Int, address: UInt64 = 4096) -> [Bool] {
      func view(_ shape: TensorShape, _ strides: TensorStrides) -> DeviceTensorView {
        DeviceTensorView(address: address, scalarType: .bf16, shape: shape, strides: strides)
      }
      let (q, kv) = (cache.problem.queryShape, cache.problem.keyShape)
      let own = TensorStrides(batch: batch, heads: 64, length: row)
      let whole = TensorLayout.bnhd.strides(of: q)
      let call = KernelCall(
        AttentionTensors(
          queries: view(q, whole), keys: view(kv, own), values: view(kv, own), output: view(q, whole),
          entries: CacheEntries(lengths: 4096)))
      let arguments = cache.launches.attention.arguments
      return arguments.mappedTensors(call).map { arguments.map(of: $0) != nil }
    }
    #expect(haveMaps(batch: 12800, row: 128) == [true, true, true])
    #expect(haveMaps(batch: 12808, row: 128) == [true, true, false])
    #expect(haveMaps(batch: 0, row: 0) == [true, true, true])
    #expect(haveMaps(batch: 64, row: 0) == [true, true, false])
    #expect(haveMaps(batch: -12800, row: 128) == [true, false, false])
    #expect(haveMaps(batch: 128 << 30, row: 128) == [true, true, false])
    // Nobody's memory.
    #expect(haveMaps(batch: 12800, row: 128, address: 0) == [false, false, false])
    #expect(cache.familyWithoutMaps == ForwardFamily.name)
    let pages = AttentionProblem.KeyStorage.paged(pages: 9, pageSize: 16, pagesPerSequence: 4)
    for family in [HopperForwardFamily.name, HopperDecodeFamily.name] {
      let (own, other) = (try plan(pages, family), try plan(pages, DecodeFamily.name))
      #expect(own.familyWithoutMaps == DecodeFamily.name)
      #expect(own.launches.workspaceByteCount >= other.launches.workspaceByteCount)
      #expect(own.launches.counterByteCount >= other.launches.counterByteCount)
    }
  }

  /// K and V come once for each block, and only the tiles that some row sees.
  @Test func bringsWhatIsSeenOnce() throws {
    let dense = try Self.attention(heads: 2, queries: 256, keys: 256).run()
    // Q of 4 blocks, and for each 4 tiles of K and V.
    #expect(dense.counters.bulkBytesLoaded == 4 * (128 + 2 * 256) * 128)
    let causal = try Self.attention(heads: 2, queries: 256, keys: 256, mask: .causal).run()
    #expect(causal.counters.bulkBytesLoaded == 2 * (2 * 128 + 2 * (128 + 256)) * 128)
  }
}
