import Attention
import AttentionKernels
import AttentionVerification
import PTX
import PTXEmulator
import Testing

/// Ranges of keys in every family of kernels: given ones, prefixes, and first keys beside a window.
@Suite struct RangeTests {
  typealias Clause = EmulatedClause

  static let clauses: [Clause] = [
    Clause(whole: "one range, each sequence its own") {
      try EmulatedAttention(
        problem(batch: 2, heads: 2, queries: 140, keys: 300), ranges: .given(count: 1, isShared: false))
    },
    Clause(whole: "two ranges, shared, causal, GQA with an odd group") {
      try EmulatedAttention(
        problem(.bf16, batch: 2, heads: 1, group: 3, queries: 90, keys: 300, mask: .causal),
        ranges: .given(count: 2, isShared: true))
    },
    Clause(whole: "two ranges within a window, softcap, scale below zero, sinks") {
      try EmulatedAttention(
        problem(queries: 130, keys: 260, mask: .window(left: 70, right: 9), scale: -0.4, softcap: 2), sinks: .f16,
        ranges: .given(count: 2, isShared: false))
    },
    Clause(whole: "D 512: warps share rows and slices of tiles") {
      try EmulatedAttention(
        problem(.bf16, group: 4, queries: 30, keys: 210, dimension: 512), ranges: .given(count: 2, isShared: true))
    },
    Clause(whole: "a prefix, causal") {
      try EmulatedAttention(problem(batch: 3, queries: 150, keys: 150, mask: .causal), ranges: .prefix)
    },
    Clause(whole: "a prefix beside a window") {
      try EmulatedAttention(
        problem(batch: 3, group: 2, queries: 70, keys: 330, mask: .window(left: 40, right: 0)), ranges: .prefix)
    },
    Clause(whole: "first keys beside a window, three stages") {
      try EmulatedAttention(
        problem(queries: 160, keys: 420, mask: .window(left: 50, right: 0)), tiling: "keys=32,stages=3",
        ranges: .firstKeys(4))
    },
    Clause(whole: "first keys beside chunks, one stage") {
      try EmulatedAttention(
        problem(queries: 160, keys: 420, mask: .chunks(of: 64)), tiling: "keys=32,stages=1", ranges: .firstKeys(70))
    },
    Clause(whole: "Hopper: one range, each sequence its own") {
      try EmulatedAttention(
        problem(.bf16, batch: 2, heads: 2, group: 2, queries: 200, keys: 420, dimension: 128), layout: .bnhd,
        family: HopperForwardFamily.name, multiprocessors: 3, ranges: .given(count: 1, isShared: false))
    },
    Clause(whole: "Hopper: two ranges, shared, causal") {
      try EmulatedAttention(
        problem(heads: 3, queries: 330, keys: 420, mask: .causal), layout: .bnhd, family: HopperForwardFamily.name,
        multiprocessors: 2, ranges: .given(count: 2, isShared: true))
    },
    Clause(whole: "Hopper: first keys beside a window") {
      try EmulatedAttention(
        problem(queries: 260, keys: 700, mask: .window(left: 50, right: 0)), layout: .bnhd,
        family: HopperForwardFamily.name, ranges: .firstKeys(4))
    },
    Clause(whole: "Hopper: few first keys by a small product, three groups, GQA, sinks") {
      try EmulatedAttention(
        problem(.bf16, group: 2, queries: 400, keys: 500, dimension: 128, mask: .window(left: 70, right: 0)),
        layout: .bnhd, tiling: "groups=3,keys=64", family: HopperForwardFamily.name, multiprocessors: 2, sinks: .f32,
        ranges: .firstKeys(16))
    },
    Clause(whole: "Hopper: few first keys, softcap, scale below zero, maxima") {
      try EmulatedAttention(
        problem(queries: 300, keys: 400, mask: .window(left: 40, right: 5), scale: -0.4, softcap: 2), layout: .bnhd,
        tiling: "groups=2,keys=64,softmax=maxima", family: HopperForwardFamily.name, ranges: .firstKeys(1))
    },
    Clause(whole: "Hopper: first keys that are not few, beside chunks") {
      try EmulatedAttention(
        problem(queries: 300, keys: 400, mask: .chunks(of: 100)), layout: .bnhd, tiling: "groups=2,keys=64",
        family: HopperForwardFamily.name, ranges: .firstKeys(17))
    },
    Clause(cached: "Hopper's prefill of sequences with a prefix beside a window") {
      try EmulatedDecoding(
        lengths: [330, 70, 0, 300], heads: 2, group: 2, queryCounts: [190, 3, 5, 164], hasPackedKeys: true,
        mask: .window(left: 60, right: 0), ranges: .prefix, family: HopperForwardFamily.name)
    },
    Clause(whole: "Hopper: a prefix beside a window") {
      try EmulatedAttention(
        problem(batch: 4, queries: 140, keys: 400, mask: .window(left: 50, right: 0)), layout: .bnhd,
        family: HopperForwardFamily.name, ranges: .prefix)
    },
    Clause(cached: "decoding: one range, several parts") {
      try EmulatedDecoding(
        lengths: [500, 130, 0], heads: 1, group: 8, queries: 3, capacity: 512,
        ranges: .given(count: 1, isShared: false))
    },
    Clause(cached: "decoding: two ranges, causal, packed queries, pages, fixed splits") {
      try EmulatedDecoding(
        lengths: [300, 20, 0, 290], heads: 2, group: 4, queryCounts: [3, 0, 2, 9], pageSize: 16, capacity: 304,
        keysPerSplit: 100, ranges: .given(count: 2, isShared: false))
    },
    Clause(cached: "decoding: first keys beside a window, pages of any size, new keys") {
      try EmulatedDecoding(
        lengths: [390, 70, 2], heads: 2, group: 4, queries: 2, pageSize: 7, capacity: 420,
        mask: .window(left: 60, right: 0), new: .init(counts: [3, 3, 3]), ranges: .firstKeys(5))
    },
    Clause(cached: "decoding: a prefix beside a window, e4m3") {
      try EmulatedDecoding(
        lengths: [390, 70], heads: 2, group: 4, queries: 4, capacity: 420,
        mask: .window(left: 60, right: 0), cacheType: .e4m3, hasScales: true, ranges: .prefix)
    },
    Clause(cached: "sequences by the kernels of prefill") {
      try EmulatedDecoding(
        lengths: [130, 70, 0, 200], heads: 2, group: 2, queryCounts: [90, 3, 5, 64], hasPackedKeys: true,
        ranges: .given(count: 2, isShared: false), family: ForwardFamily.name)
    },
    Clause(cached: "sequences without queries, one head each, by the kernels of prefill") {
      try EmulatedDecoding(
        lengths: [130, 70, 20], heads: 2, group: 1, queryCounts: [90, 0, 0], hasPackedKeys: true,
        ranges: .given(count: 1, isShared: false), family: ForwardFamily.name)
    },
    Clause(cached: "sequences without queries, by the kernels of prefill") {
      try EmulatedDecoding(
        lengths: [70, 130, 20], heads: 1, group: 2, queryCounts: [0, 70, 0], hasPackedKeys: true,
        ranges: .given(count: 2, isShared: false), family: ForwardFamily.name)
    },
    Clause(whole: "Hopper: a prefix, eight heads, which are a section") {
      try EmulatedAttention(
        problem(heads: 8, queries: 70, keys: 100, mask: .causal), layout: .bnhd, family: HopperForwardFamily.name,
        multiprocessors: 3, ranges: .prefix)
    },
    Clause(cached: "Hopper's prefill of sequences") {
      try EmulatedDecoding(
        lengths: [130, 70, 0, 300], heads: 2, group: 2, queryCounts: [90, 3, 5, 164], hasPackedKeys: true,
        ranges: .given(count: 2, isShared: false), family: HopperForwardFamily.name)
    },
    Clause(cached: "Hopper's decoding: two ranges, several parts") {
      try EmulatedDecoding(
        lengths: [700, 40], heads: 1, group: 8, queries: 8, capacity: 712, ranges: .given(count: 2, isShared: false),
        multiprocessors: 3, changes: "groups=1,keys=64", family: HopperDecodeFamily.name)
    },
    Clause(cached: "Hopper's decoding: first keys beside a window") {
      try EmulatedDecoding(
        lengths: [700, 40, 0], heads: 1, group: 8, queries: 8, capacity: 712, mask: .window(left: 100, right: 0),
        ranges: .firstKeys(4), multiprocessors: 3, changes: "groups=1,keys=64", family: HopperDecodeFamily.name)
    },
  ]

  @Test(arguments: clauses) func isSeen(clause: Clause) throws {
    for schedule in [Schedule.roundRobin, .random(seed: 5)] { #expect(try clause.run(schedule)) }
  }

  /// Gradients, by seven products and by five.
  struct GradientClause: Sendable, CustomTestStringConvertible {
    let testDescription: String
    let make: @Sendable () throws -> EmulatedGradients
  }

  static let gradients: [GradientClause] = [
    GradientClause(testDescription: "one range, each sequence its own") {
      try EmulatedGradients(problem(batch: 2, queries: 140, keys: 200), ranges: .given(count: 1, isShared: false))
    },
    GradientClause(testDescription: "two ranges, shared, causal, GQA with an odd group, softcap") {
      try EmulatedGradients(
        problem(.bf16, batch: 2, group: 3, queries: 70, keys: 200, mask: .causal, softcap: 3),
        ranges: .given(count: 2, isShared: true))
    },
    GradientClause(testDescription: "two ranges within a window, D 128") {
      try EmulatedGradients(
        problem(queries: 130, keys: 260, dimension: 128, mask: .window(left: 70, right: 9)),
        ranges: .given(count: 2, isShared: true))
    },
    GradientClause(testDescription: "two ranges, packed sequences") {
      try EmulatedGradients(
        .bf16, packed: [(70, 90), (0, 5), (3, 0), (90, 140)], group: 2, mask: .causal,
        ranges: .given(count: 2, isShared: false))
    },
    GradientClause(testDescription: "a prefix, causal") {
      try EmulatedGradients(problem(batch: 3, queries: 150, keys: 150, mask: .causal), ranges: .prefix)
    },
    GradientClause(testDescription: "a prefix beside a window, packed sequences") {
      try EmulatedGradients(
        .bf16, packed: [(70, 90), (3, 0), (90, 240)], group: 2, mask: .window(left: 40, right: 0), ranges: .prefix)
    },
    GradientClause(testDescription: "first keys beside a window") {
      try EmulatedGradients(
        problem(queries: 160, keys: 300, mask: .window(left: 50, right: 0)), ranges: .firstKeys(4))
    },
    GradientClause(testDescription: "first keys beside chunks") {
      try EmulatedGradients(
        problem(queries: 160, keys: 240, mask: .chunks(of: 64, left: nil, right: nil)), ranges: .firstKeys(70))
    },
  ]

  @Test(arguments: gradients) func haveGradients(clause: GradientClause) throws {
    let gradients = try clause.make()
    for made in [gradients, try gradients.inAnyOrder()] { #expect(try made.run(.random(seed: 3)).passes) }
  }

  /// Ranges that block out the most of the keys cost what is left: tiles between are neither copied nor multiplied.
  @Test func tilesThatNobodySeesAreSkipped() throws {
    let keys = 2048
    func tiles(_ mask: AttentionMask, _ ranges: KeyRanges.Form?, _ family: String, _ own: [Int] = []) throws -> Int {
      var attention = try EmulatedAttention(
        problem(queries: 64, keys: keys, mask: mask), layout: .bnhd, tiling: "keys=64", family: family, ranges: ranges)
      attention.wantsLogSumExp = false
      if !own.isEmpty { attention.rangeNumbers = (0..<64).flatMap { _ in own } }
      let outcome = try attention.run()
      #expect(outcome.passes)
      return Int(outcome.counters.traffic["k"]!.bytesRead) / (64 * 64 * 2)
    }
    for family in [ForwardFamily.name, HopperForwardFamily.name] {
      #expect(try tiles(.window(left: 128, right: 0), nil, family) == 3, "\(family)")
      #expect(try tiles(.window(left: 128, right: 0), .firstKeys(4), family) == 4, "\(family)")
      // A document, and two ranges far from each other.
      #expect(try tiles(.none, .given(count: 1, isShared: true), family, [700, 956]) == 5, "\(family)")
      #expect(try tiles(.causal, .given(count: 2, isShared: true), family, [1990, 2048, 3, 60]) == 2, "\(family)")
    }
  }

  /// A few first keys take the products of 16 keys, not of a tile, and nobody multiplies the tiles between that only others see.
  @Test func fewFirstKeysAreASmallProduct() throws {
    func products(_ ranges: KeyRanges.Form?) throws -> Int {
      let outcome = try EmulatedAttention(
        problem(queries: 192, keys: 2048, mask: .window(left: 128, right: 0)), layout: .bnhd,
        tiling: "groups=3,keys=64", family: HopperForwardFamily.name, ranges: ranges
      ).run()
      #expect(outcome.passes)
      return outcome.counters.warpgroupProducts
    }
    // Each of three groups sees three tiles: of each, 64 columns and 64 keys in sixteens, by four warps.
    let tile = (64 / 16 + 64 / 16) * 4
    #expect(try products(nil) == 3 * 3 * tile)
    #expect(try products(.firstKeys(4)) == 3 * (3 * tile + (64 / 16 + 1) * 4))
    #expect(try products(.firstKeys(17)) > 3 * 4 * tile)
  }

  /// Decoding reads what a query's ranges span, each byte once, and not what lies between.
  @Test(arguments: [DecodeFamily.name, HopperDecodeFamily.name]) func decodingReadsWhatIsSeen(family: String) throws {
    func keys(_ mask: AttentionMask, _ ranges: KeyRanges.Form?, numbers: [Int]? = nil) throws -> Int {
      let outcome = try EmulatedDecoding(
        lengths: [2048], heads: 1, group: 8, queries: 8, capacity: 2048, mask: mask, ranges: ranges,
        rangeNumbers: numbers.map { numbers in (0..<8).flatMap { _ in numbers } }, multiprocessors: 2,
        changes: "groups=1,keys=64", family: family
      ).run()
      #expect(outcome.passes)
      return Int(outcome.counters.traffic["k"]!.bytesRead) / (64 * 2)
    }
    #expect(try keys(.none, nil) == 2048)
    let window = try keys(.window(left: 128, right: 0), nil)
    #expect(window <= 256)
    #expect(try keys(.window(left: 128, right: 0), .firstKeys(4)) <= window + 64)
    #expect(try keys(.none, .given(count: 1, isShared: true), numbers: [700, 956]) <= 320)
    #expect(try keys(.causal, .given(count: 2, isShared: true), numbers: [1990, 2048, 3, 60]) <= 128)
  }

  /// Gradients of documents take the products of each document alone.
  @Test func gradientsSkipWhatNobodySees() throws {
    func products(_ queries: Int, _ numbers: [Int]?) throws -> Int {
      var gradients = try EmulatedGradients(
        problem(queries: queries, keys: queries), tiling: "dkv-sharers=1,dkv-warps=4,dkv-row-tiles=1,dkv-rows=64",
        ranges: numbers == nil ? nil : .given(count: 1, isShared: true))
      gradients.rangeNumbers = numbers
      let outcome = try gradients.run()
      #expect(outcome.passes)
      return outcome.counters.matrixInstructions
    }
    let documents = [Int](repeating: 0, count: 256).enumerated().flatMap { (query, _) -> [Int] in
      query < 128 ? [0, 128] : [128, 256]
    }
    #expect(try products(256, documents) == 2 * products(128, nil))
  }

  /// Each wait for first keys that are a product of their own is needed, and for what the lanes tell each other of ranges.
  @Test(arguments: [true, false]) func everyOrderingOfHoppersIsNeeded(hasGivenRanges: Bool) throws {
    // Of each head, items whose groups see other tiles, at both ends, and some that see none.
    var attention = try EmulatedAttention(
      hasGivenRanges
        ? problem(heads: 4, queries: 394, keys: 200, scale: 4)
        : problem(batch: 2, heads: 2, queries: 394, keys: 394, mask: .window(left: 70, right: 0), scale: 4),
      layout: .bnhd, tiling: "groups=2,keys=64,query-stages=2", family: HopperForwardFamily.name, multiprocessors: 2,
      ranges: hasGivenRanges ? .given(count: 1, isShared: true) : .prefix)
    attention.rangeNumbers = hasGivenRanges ? (0..<394).flatMap { [$0 - 190, $0 - 120] } : [0, 4]
    let kernel = try attention.plan.launches.attention.kernel.kernel()
    let schedules: [Schedule] = [
      .roundRobin, .copiesAtOnce, .copiesLate, .firstAhead, .lastAhead, .random(seed: 1), .random(seed: 2),
    ]
    let survivors = Mutation.survivors(of: kernel, schedules: schedules) { (program, schedule) throws(Hazard) in
      try attention.run(program, schedule).passes
    }
    // The other lines are those of kernels without ranges, which `HopperForwardTests` proves needed.
    let own = survivors.map { "\($0)" }.filter { $0.hasPrefix("WarpgroupAttention") || $0.hasPrefix("SeenKeys") }
    #expect(own.isEmpty, "\(own)")
  }

  @Test func everyMutationOfDecodingIsCaught() throws {
    let decoding = try EmulatedDecoding(
      lengths: [700, 60, 20, 30, 10, 50], capacity: 700, ranges: .given(count: 2, isShared: false), multiprocessors: 2)
    let survivors = Mutation.survivors(of: try decoding.plan.kernel()) { (program, schedule) throws(Hazard) in
      try decoding.run(.init(decode: program), schedule).passes
    }
    #expect(survivors.isEmpty, "\(survivors)")
  }

  /// What a kernel without ranges is made from does not change because there are some.
  @Test func othersKeepTheirText() throws {
    let plain = try EmulatedAttention(problem(queries: 40, keys: 60)).plan.kernel().text()
    #expect(!plain.contains("ranges") && !plain.contains("first_keys"))
    let with = try EmulatedAttention(problem(queries: 40, keys: 60), ranges: .given(count: 1, isShared: true)).plan
    #expect(try with.kernel().text().contains("key_ranges"))
  }

  /// Warps tell each other which queries see the block's keys: each wait for that is needed.
  @Test func everyMutationIsCaught() throws {
    let gradients = try EmulatedGradients(
      problem(queries: 100, keys: 130), ranges: .given(count: 2, isShared: true))
    for backward in gradients.kernels where backward.specialization.kind != .queries {
      let kernel = try backward.kernel()
      let survivors = Mutation.survivors(of: kernel) { (program, schedule) throws(Hazard) in
        try gradients.run(schedule) {
          ($0 as? BackwardKernel)?.specialization == backward.specialization ? program : nil
        }.passes
      }
      let own = survivors.map { "\($0)" }.filter { $0.hasPrefix("Seeing") || $0.hasPrefix("SeenKeys") }
      #expect(own.isEmpty, "\(own)")
    }
  }

  @Test func refusesByName() throws {
    var problem = try AttentionKernelsTests.problem()
    problem.ranges = .given(count: 3, isShared: true)
    #expect(throws: AttentionError.unsupported("There are 3 ranges of keys for a query; give 1 or 2.")) {
      try problem.checkSinksAndRanges()
    }
    problem.ranges = .firstKeys(-1)
    #expect(throws: AttentionError.extent(tensor: "the mask", axis: "number of first keys", value: -1)) {
      try problem.checkSinksAndRanges()
    }
  }
}
