import AttentionVerification
import FlashAttention
import PTX
import PTXEmulator
import Testing

@testable import AttentionKernels

/// Decoding on the emulator: right for every kind of cache, without a hazard, and with counters that prove what is
/// claimed.
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
    Clause("as many sequences as lanes") { try EmulatedDecoding(lengths: (0..<32).map { $0 * 7 % 71 }, capacity: 80) },
    Clause("more sequences than lanes, parts put together by a launch behind") {
      try EmulatedDecoding(
        lengths: (0..<37).map { $0 * 5 % 301 }, group: 1, dimension: 16, capacity: 301, combination: .launchBehind)
    },
    Clause("more sequences than lanes, packed queries") {
      try EmulatedDecoding(
        lengths: (0..<40).map { $0 * 5 % 71 }, queryCounts: (0..<40).map { $0 % 4 }, dimension: 16, capacity: 80)
    },
    Clause("one sequence, parts put together by a launch that begins early") {
      try EmulatedDecoding(lengths: [700], group: 16, dimension: 128, capacity: 700, combination: .launchBehind)
    },
    Clause("more sequences than are looked at together") {
      try EmulatedDecoding(lengths: (0..<140).map { $0 * 11 % 29 }, group: 1, dimension: 16, capacity: 32)
    },
    Clause("sequences without a key") { try EmulatedDecoding(lengths: [0, 90, 0], capacity: 96) },
    Clause("no keys at all") { try EmulatedDecoding(lengths: [0, 0], capacity: 96) },
    Clause("f16") { try EmulatedDecoding(.f16, lengths: [130, 70], capacity: 130) },
    Clause("17 rows: two row tiles") { try EmulatedDecoding(lengths: [200], group: 17, capacity: 200) },
    Clause("partial results are left: lengths from none to all") {
      try EmulatedDecoding(
        lengths: [500, 0, 64, 130], heads: 2, queries: 3, capacity: 500, keysPerSplit: 100, leavesParts: true)
    },
    Clause("partial results are left: rows over warps and blocks of them, window, D_v 40") {
      try EmulatedDecoding(
        .f16, lengths: [300, 20], group: 20, queries: 4, dimension: 72, valueDimension: 40, capacity: 300,
        mask: .window(left: 150, right: 0), keysPerSplit: 64, leavesParts: true)
    },
    Clause("partial results are left: pages, new keys, e4m3 with scales") {
      try EmulatedDecoding(
        lengths: [300, 20, 130], pageSize: 16, capacity: 320, new: .init(counts: [3, 3, 3]), cacheType: .e4m3,
        hasScales: true, keysPerSplit: 128, leavesParts: true)
    },
    Clause("partial results are left: padding, splits longer than the cache") {
      try EmulatedDecoding(
        lengths: [120, 40], capacity: 120, leftPadding: [7, 40], keysPerSplit: .max, leavesParts: true)
    },
    Clause("partial results are left: packed keys, chunks") {
      try EmulatedDecoding(
        lengths: [300, 0, 77], queries: 5, capacity: 300, hasPackedKeys: true, mask: .chunks(of: 90), keysPerSplit: 64,
        leavesParts: true)
    },
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
    Clause("32 rows over pages of 16, eight warps") {
      try EmulatedDecoding(
        lengths: [230, 7, 64], queries: 8, pageSize: 16, capacity: 240,
        changes: "row-warps=2,groups=4,keys=16,stages=3")
    },
    Clause("pages of 64") { try EmulatedDecoding(lengths: [130, 64], pageSize: 64, capacity: 256) },
    Clause("pages of 1") { try EmulatedDecoding(lengths: [70, 7], pageSize: 1, capacity: 70) },
    Clause("pages of 24") { try EmulatedDecoding(lengths: [130, 7], pageSize: 24, capacity: 144) },
    Clause("pages of 24, steps of 64 keys, of which a pass of the copies takes as many as two warps have lanes") {
      try EmulatedDecoding(
        lengths: [130, 7], group: 16, queries: 4, dimension: 16, pageSize: 24, capacity: 144,
        changes: "row-warps=4,groups=1,keys=64,stages=2")
    },
    Clause("pages of 3, steps of 48 keys, 17 rows, D 72, D_v 40") {
      try EmulatedDecoding(
        lengths: [200, 7], group: 17, dimension: 72, valueDimension: 40, pageSize: 3, capacity: 201,
        changes: "row-warps=2,groups=2,keys=48,stages=3")
    },
    Clause("pages of 8, steps of 32 keys of an e4m3 cache, padding") {
      try EmulatedDecoding(
        lengths: [150, 20], dimension: 128, pageSize: 8, capacity: 160, leftPadding: [5, 0], cacheType: .e4m3,
        hasScales: true, changes: "row-warps=1,groups=4,keys=32,stages=3,blocks=2")
    },
    Clause("blocks of one warp, whose copies take less rows at a time than the pattern of shared memory has") {
      try EmulatedDecoding(
        lengths: [90, 200], heads: 2, group: 8, queries: 2, dimension: 128, capacity: 256,
        changes: "row-warps=1,groups=1,keys=16")
    },
    Clause("parts put together by a second launch") {
      try EmulatedDecoding(
        lengths: [500, 3, 0, 77], heads: 2, queries: 2, capacity: 512, target: .sm80, combination: .launchBehind)
    },
    Clause("parts put together by a launch that begins early") {
      try EmulatedDecoding(
        lengths: [500, 3, 0, 77], heads: 2, queries: 2, capacity: 512, combination: .launchBehind)
    },
    Clause("the same, two blocks of rows, D_v 40") {
      try EmulatedDecoding(
        .f16, lengths: [300, 90], group: 5, queries: 30, dimension: 64, valueDimension: 40, capacity: 300,
        target: .sm80, combination: .launchBehind)
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
    Clause("packed queries") {
      try EmulatedDecoding(lengths: [130, 7, 64, 90], heads: 2, queryCounts: [3, 0, 7, 1], capacity: 130)
    },
    Clause("packed queries, more than a block of rows") {
      try EmulatedDecoding(lengths: [130, 7, 90], group: 4, queryCounts: [50, 2, 17], capacity: 130)
    },
    Clause("packed queries, parts put together by a launch behind") {
      try EmulatedDecoding(
        lengths: [500, 7, 90], heads: 2, queryCounts: [2, 0, 5], capacity: 500, combination: .launchBehind)
    },
    Clause("packed queries and keys") {
      try EmulatedDecoding(
        lengths: [130, 7, 0, 90], heads: 2, queryCounts: [3, 7, 2, 40], hasPackedKeys: true, mask: .none)
    },
    Clause("packed queries and keys, causal") {
      try EmulatedDecoding(.f16, lengths: [70, 7, 90], group: 2, queryCounts: [70, 7, 90], hasPackedKeys: true)
    },
    Clause("chunks") { try EmulatedDecoding(lengths: [200, 33], queries: 7, mask: .chunks(of: 48)) },
    Clause("chunks and a window") {
      try EmulatedDecoding(lengths: [200, 3], queries: 19, mask: .chunks(of: 70, left: 30, right: nil))
    },
    Clause("chunks larger than anything") {
      try EmulatedDecoding(lengths: [200, 3], queries: 5, mask: .chunks(of: 1 << 40))
    },
    Clause("splits of a fixed length") {
      try EmulatedDecoding(lengths: [500, 3, 0, 130], heads: 2, queries: 2, capacity: 512, keysPerSplit: 200)
    },
    Clause("splits of a tile, put together by a launch behind") {
      try EmulatedDecoding(lengths: [500, 3, 130], capacity: 512, keysPerSplit: 1, combination: .launchBehind)
    },
    Clause("one new key") {
      try EmulatedDecoding(lengths: [130, 7, 0], heads: 2, capacity: 131, new: .init(counts: [1, 1, 1]))
    },
    Clause("new keys that fill the cache, on pages") {
      try EmulatedDecoding(
        .f16, lengths: [120, 7, 0], pageSize: 16, capacity: 128, leftPadding: [9, 0, 0], new: .init(counts: [8, 8, 8]))
    },
    Clause("packed new keys, places in the cache by number") {
      try EmulatedDecoding(
        lengths: [120, 7, 0], queries: 3, capacity: 128, batchIndex: [3, 0, 1],
        new: .init(counts: [0, 5, 3], isPacked: true))
    },
    Clause("new keys, turned by halves") {
      try EmulatedDecoding(
        lengths: [120, 7, 0], heads: 2, queries: 3, capacity: 128,
        new: .init(
          counts: [3, 3, 3], rotary: RotaryEmbedding(dimension: 64, isInterleaved: false, positions: 140)))
    },
    Clause("new keys, half of each turned by pairs, queries packed") {
      try EmulatedDecoding(
        .f16, lengths: [120, 7], queryCounts: [2, 5], dimension: 72, valueDimension: 40, pageSize: 24, capacity: 144,
        new: .init(
          counts: [4, 4], rotary: RotaryEmbedding(dimension: 32, isInterleaved: true, positions: 200),
          positions: [50, 3]))
    },
    Clause("new keys, turned, without a mask") {
      try EmulatedDecoding(
        lengths: [90], queries: 2, capacity: 128, mask: .none,
        new: .init(counts: [5], rotary: RotaryEmbedding(dimension: 16, isInterleaved: false, positions: 95)))
    },
    Clause("new keys on a GPU without launches that begin early") {
      try EmulatedDecoding(
        lengths: [90, 5], capacity: 128,
        new: .init(counts: [2, 2], rotary: RotaryEmbedding(dimension: 64, isInterleaved: true, positions: 140)),
        target: .sm80)
    },
    Clause("an e4m3 cache, bf16") {
      try EmulatedDecoding(
        lengths: [300, 7], heads: 2, dimension: 128, capacity: 300, cacheType: .e4m3, hasScales: true)
    },
    Clause("an e4m3 cache, f16, without scales") {
      try EmulatedDecoding(.f16, lengths: [300, 7], queries: 3, dimension: 64, capacity: 300, cacheType: .e4m3)
    },
    Clause("an e4m3 cache on a GPU that does not convert it") {
      try EmulatedDecoding(
        lengths: [200, 7], dimension: 64, pageSize: 16, capacity: 300, cacheType: .e4m3, hasScales: true, target: .sm80)
    },
    Clause("an e4m3 cache on a GPU that does not convert it, f16") {
      try EmulatedDecoding(.f16, lengths: [200], dimension: 80, valueDimension: 48, cacheType: .e4m3, target: .sm80)
    },
    Clause("an e4m3 cache, several row tiles, softcap, packed keys") {
      try EmulatedDecoding(
        lengths: [90, 40], group: 8, queryCounts: [9, 4], dimension: 96, hasPackedKeys: true, softcap: 2,
        cacheType: .e4m3,
        hasScales: true)
    },
    Clause("an e4m3 cache, D 16, D_v 256") {
      try EmulatedDecoding(
        lengths: [90], dimension: 16, valueDimension: 256, cacheType: .e4m3, hasScales: true, target: .sm80,
        combination: .launchBehind
      )
    },
    Clause("e4m3 queries over an e4m3 cache") {
      try EmulatedDecoding(
        lengths: [90, 3], queries: 2, dimension: 64, cacheType: .e4m3, queryType: .e4m3, hasScales: true)
    },
    Clause("new keys for an e4m3 cache, turned") {
      try EmulatedDecoding(
        lengths: [90, 3], queries: 2, dimension: 64, pageSize: 5, capacity: 100,
        new: .init(counts: [2, 2], rotary: RotaryEmbedding(dimension: 48, isInterleaved: false, positions: 140)),
        cacheType: .e4m3, hasScales: true)
    },
  ]

  /// Sequences with lengths of their own by the kernels of whole problems.
  static let sequences: [Clause] = [
    Clause("packed queries and keys") {
      try EmulatedDecoding(
        lengths: [130, 7, 0, 90], heads: 2, queryCounts: [3, 170, 2, 0], hasPackedKeys: true, mask: .none,
        family: ForwardFamily.name)
    },
    Clause("packed queries and keys, causal") {
      try EmulatedDecoding(
        .f16, lengths: [70, 7, 190], heads: 2, group: 1, queryCounts: [70, 7, 190], hasPackedKeys: true,
        family: ForwardFamily.name)
    },
    Clause("a window, warps that share rows") {
      try EmulatedDecoding(
        lengths: [70, 7, 190], group: 2, queryCounts: [70, 30, 99], hasPackedKeys: true,
        mask: .window(left: 40, right: 3),
        changes: "rung=split-kv,warps=4,keys=64",
        family: ForwardFamily.name)
    },
    Clause("a cache, queries not packed, places by number") {
      try EmulatedDecoding(
        lengths: [70, 7, 0], group: 3, queries: 40, dimension: 72, valueDimension: 40, capacity: 80,
        batchIndex: [3, 0, 1],
        family: ForwardFamily.name)
    },
    Clause("chunks and softcap") {
      try EmulatedDecoding(
        lengths: [170, 47, 1], queries: 50, capacity: 180, mask: .chunks(of: 48, left: nil, right: nil), softcap: 2,
        family: ForwardFamily.name)
    },
    Clause("chunks, causal, scale below zero") {
      try EmulatedDecoding(
        lengths: [170, 7], queryCounts: [99, 40], capacity: 180, mask: .chunks(of: 33), scale: -0.2,
        family: ForwardFamily.name)
    },
  ]

  @Test(arguments: clauses + sequences)
  func isRight(clause: Clause) throws {
    let decoding = try clause.make()
    let program = Program(try decoding.plan.kernel())
    for schedule in [Schedule.roundRobin, .random(seed: 5)] {
      let outcome = try decoding.run(.init(decode: program), schedule)
      #expect(outcome.passes, "\(outcome.description)")
      #expect(outcome.counters.bankConflicts == 0 || decoding.problem.valueDimension % 32 != 0)
    }
  }

  /// A key at a position that the rotary tables have no row for is not a number; what is turned by rows that there are
  /// is right.
  @Test func positionsBeyondTheTablesShow() throws {
    let decoding = try EmulatedDecoding(
      lengths: [90, 10], queries: 2, capacity: 128, mask: .none,
      new: .init(counts: [5, 5], rotary: RotaryEmbedding(dimension: 16, isInterleaved: false, positions: 92)))
    let outcome = try decoding.run(.init(decode: Program(try decoding.plan.kernel())), .roundRobin)
    let fault = try #require(outcome.cacheFault)
    #expect(fault.hasPrefix("cached key (0, 0, 92, 0) is nan"), "\(fault)")
    #expect(
      (0..<64).allSatisfy { !outcome.written.output[1, 0, 0, $0].isNaN && outcome.written.output[0, 0, 0, $0].isNaN })
  }

  /// There is a plan for every dimension and group on every GPU; and no length needs a kernel of its own: caches of up
  /// to 4096 keys have three tilings at most.
  @Test func fitsEveryGPU() throws {
    for target in ["sm_80", "sm_86", "sm_89", "sm_90", "sm_120"].compactMap({ Target($0) }) {
      for dimension in stride(from: 8, through: 256, by: 24) {
        for valueDimension in [8, dimension, 256] {
          for (group, queries) in [(1, 1), (4, 1), (8, 4), (7, 9), (16, 8), (16, 40)] {
            let kernels = try Set(
              [1, 40, 200, 1000, 2000, 4096].map { capacity in
                let problem = try AttentionProblem(
                  batch: 3, queries: queries, queryHeads: group, keyValueHeads: 1, dimension: dimension,
                  valueDimension: valueDimension, keys: .contiguous(sequences: 3, capacity: capacity), scalarType: .f16,
                  mask: .causal)
                let plan = try KernelPlan(
                  problem, on: .typical(of: target), options: KernelOptions(family: DecodeFamily.name))
                var tiling = try #require(plan.tiling as? DecodeTiling)
                // Who puts parts together depends on how many there can be.
                tiling.combination = .lastBlock
                return tiling
              })
            #expect(kernels.count <= 3, "\(target), D \(dimension), D_v \(valueDimension), \(group) x \(queries)")
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
      let problem = try AttentionProblem(
        batch: 1, queries: 1, queryHeads: 8, keyValueHeads: 2, dimension: dimension,
        keys: .contiguous(sequences: 1, capacity: 4096), scalarType: type, mask: .causal)
      _ = try KernelPlan(
        problem, on: .typical(of: .sm90),
        options: KernelOptions(family: DecodeFamily.name, tiling: try changes.map { try TilingChanges($0) }))
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
        _ = try AttentionProblem(
          batch: 1, queries: 1, queryHeads: 8, keyValueHeads: 3, dimension: 64,
          keys: .paged(pages: 4, pageSize: 0, pagesPerSequence: 2), scalarType: .f16, mask: .causal)
      } == "The page size of the cache is 0; it must be at least 1.")
  }

  /// The workspace is as it was: a second call gives the same bits.
  @Test func leavesTheWorkspaceReady() throws {
    let decoding = try EmulatedDecoding(lengths: [300, 40], heads: 2, capacity: 300)
    let (first, third) = (try decoding.run(), try decoding.run(calls: 3))
    #expect(first.passes && third.passes && first.bits == third.bits)
  }

  /// With splits of a fixed length, a sequence's result has the same bits whatever else is in its batch, and on
  /// whatever grid.
  @Test(arguments: [DecodeTiling.Combination.lastBlock, .launchBehind], [DecodeFamily.name, HopperDecodeFamily.name])
  func fixedSplitsDoNotDependOnTheBatch(combination: DecodeTiling.Combination, family: String) throws {
    let isHopper = family == HopperDecodeFamily.name
    func bits(_ lengths: [Int], multiprocessors: Int, keysPerSplit: Int? = 200) throws -> [UInt16] {
      let decoding = try EmulatedDecoding(
        lengths: lengths, heads: 2, group: isHopper ? 20 : 4, queries: 2, capacity: 1000, keysPerSplit: keysPerSplit,
        multiprocessors: multiprocessors, combination: combination,
        changes: isHopper ? "groups=1,keys=64,combine=\(combination.rawValue)" : nil, family: family)
      let outcome = try decoding.run()
      #expect(outcome.passes)
      return Array(outcome.bits.prefix(2 * (isHopper ? 40 : 8) * 64))
    }
    let alone = try bits([900], multiprocessors: 5)
    #expect(try bits([900, 1000, 3], multiprocessors: 5) == alone)
    #expect(try bits([900, 0, 640, 20, 77, 1000], multiprocessors: 3) == alone)
    #expect(try bits([900] + (0..<33).map { $0 * 7 % 40 }, multiprocessors: 3) == alone)
    // Otherwise they do, so that the comparison says something.
    #expect(
      try bits([900], multiprocessors: 5, keysPerSplit: nil)
        != bits([900, 1000, 3], multiprocessors: 3, keysPerSplit: nil))
  }

  /// New keys and values are written once, and nothing else of the cache is; each cached byte is read once.
  @Test func writesNewKeysOnce() throws {
    let decoding = try EmulatedDecoding(
      lengths: [300, 77], heads: 2, queries: 3, dimension: 128, capacity: 310, new: .init(counts: [3, 3]))
    let outcome = try decoding.run()
    #expect(outcome.passes)
    for (cache, new) in [("k", "new_k"), ("v", "new_v")] {
      let (traffic, source) = (
        try #require(outcome.counters.traffic[cache]), try #require(outcome.counters.traffic[new])
      )
      #expect(traffic.bytesWritten == 6 * 2 * 128 * 2 && source.bytesRead == traffic.bytesWritten)
      #expect(traffic.bytesRead == (300 + 77 + 6) * 2 * 128 * 2)
    }
  }

  /// Half the bytes of an e4m3 cache, each once.
  @Test func readsBytesOnce() throws {
    let decoding = try EmulatedDecoding(
      lengths: [300, 77], heads: 2, dimension: 128, capacity: 300, cacheType: .e4m3, hasScales: true)
    let outcome = try decoding.run()
    for cache in ["k", "v"] {
      let traffic = try #require(outcome.counters.traffic[cache])
      #expect(traffic.bytesRead == (300 + 77) * 2 * 128 && traffic.sectorsRead == traffic.bytesRead / 32)
    }
    #expect(outcome.passes && outcome.counters.bankConflicts == 0)
  }

  /// All 256 bytes: the computed operands are those that the GPU's own conversion makes, and NaN stays NaN.
  @Test(arguments: [Matrix.Inputs.f16, .bf16], [true, false])
  func everyByteBecomesItsNumber(inputs: Matrix.Inputs, hasConversion: Bool) throws {
    let operands = E4M3Operands(inputs: inputs, hasConversion: hasConversion)
    let kernel = try Kernel.build("unpack", threadsPerBlock: 64) { k in
      let (source, target) = (k.pointer("source"), k.pointer("target"))
      let thread = k.special(.threadX)
      let pair = operands.unpack(k, k.load(U32.self, global: source + k.wide(thread * 4)))
      k.store([pair.low, pair.high], global: target + k.wide(thread * 8))
    }
    let memory = GlobalMemory()
    let source = memory.allocate("source", (0...255).map { UInt8($0) }, access: .readOnly)
    let target = memory.allocate("target", byteCount: 512, access: .readWrite)
    _ = try Emulator.run(
      Program(kernel), Launch(blocks: (1, 1, 1), arguments: [.pointer(source), .pointer(target)]), memory: memory)
    let words = try #require(memory.read(UInt16.self, count: 256, from: target))
    for byte in 0...255 {
      let number = Float(Float8E4M3(bitPattern: UInt8(byte)))
      let word = inputs == .f16 ? Float(Float16(bitPattern: words[byte])) : Float(BFloat16(bitPattern: words[byte]))
      #expect(word == number || (word.isNaN && number.isNaN), "\(byte): \(word), not \(number)")
    }
  }

  @Test(arguments: [
    "one group of rows", "warps divide rows", "pages", "new keys", "fixed splits", "bytes", "parts left",
  ])
  func everyMutationIsCaught(kind: String) throws {
    let decoding =
      switch kind {
      case "new keys":
        try EmulatedDecoding(
          lengths: [700, 60, 20, 30, 25], capacity: 720,
          new: .init(
            counts: [2, 2, 2, 2, 2], rotary: RotaryEmbedding(dimension: 64, isInterleaved: true, positions: 720)),
          multiprocessors: 2)
      case "fixed splits":
        try EmulatedDecoding(lengths: [60, 700, 20, 700, 60], capacity: 700, keysPerSplit: 200, multiprocessors: 3)
      case "parts left":
        try EmulatedDecoding(
          lengths: [60, 700, 20, 300], queries: 3, capacity: 700, keysPerSplit: 200, leavesParts: true,
          multiprocessors: 3)
      case "bytes":
        try EmulatedDecoding(
          lengths: [700, 60, 20, 30, 25], queryCounts: [2, 0, 1, 5, 1], capacity: 700, cacheType: .e4m3,
          hasScales: true,
          multiprocessors: 2)
      // Blocks have parts of long units, and then several short ones.
      case "pages":
        try EmulatedDecoding(lengths: [700, 60, 20, 30, 25], pageSize: 16, capacity: 700, multiprocessors: 2)
      case "warps divide rows":
        try EmulatedDecoding(lengths: [600, 20, 30, 25], group: 16, queries: 4, capacity: 600, multiprocessors: 2)
      default: try EmulatedDecoding(lengths: [800, 60, 20, 30, 10, 50], capacity: 800, multiprocessors: 2)
      }
    let kernel = try decoding.plan.kernel()
    let survivors = Mutation.survivors(of: kernel) { (program, schedule) throws(Hazard) in
      try decoding.run(.init(decode: program), schedule).passes
    }
    #expect(survivors.isEmpty, "\(survivors)")
  }

  @Test(arguments: [Target.sm80, .sm90])
  func everyMutationOfTheSecondLaunchIsCaught(target: Target) throws {
    let decoding = try EmulatedDecoding(
      lengths: [700, 60], capacity: 700, target: target, combination: .launchBehind)
    let kernel = try #require(try decoding.plan.combineKernel())
    #expect(Mutation.all(of: kernel).count >= 1)
    let survivors = Mutation.survivors(of: kernel) { (program, schedule) throws(Hazard) in
      try decoding.run(.init(combine: program), schedule).passes
    }
    #expect(survivors.isEmpty, "\(survivors)")
  }

  /// `PartialResults` makes of the parts that a kernel left what a call makes that leaves none.
  @Test func partsThatAreLeftCanBePutTogether() throws {
    func decoding(leavesParts: Bool) throws -> EmulatedDecoding {
      try EmulatedDecoding(
        lengths: [300, 0, 70], heads: 2, queries: 3, capacity: 300, keysPerSplit: 64, leavesParts: leavesParts)
    }
    let (apart, whole) = (try decoding(leavesParts: true), try decoding(leavesParts: false))
    let left = try apart.run().written
    let problem = try PartialResultsProblem(
      parts: apart.problem.parts, batch: 3, heads: 8, queries: 3, dimension: 64, outputType: .bf16)
    #expect(problem.parts == 5)
    var logSumExp = [Float](repeating: 0, count: problem.rows)
    let output = try logSumExp.withUnsafeMutableBufferPointer { logSumExp in
      try Tensor(shape: problem.shape, scalarType: .bf16) { output in
        try left.output.withView { view in
          let partials = (0..<problem.parts).map {
            TensorView(
              base: view.row(batch: $0 * 3, head: 0, token: 0), scalarType: .f32, shape: problem.shape,
              strides: view.strides)
          }
          try left.logSumExp.withUnsafeBufferPointer {
            try PartialResults.combine(
              problem, partials: partials, logSumExps: $0, output: output, logSumExp: logSumExp)
          }
        }
      }
    }
    let result = try whole.scenario.compare(
      output: { output[$0, $1, $2, $3] }, logSumExp: logSumExp, hasCutSums: false)
    #expect(result.output.passes && result.logSumExp.passes, "\(result)")
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
