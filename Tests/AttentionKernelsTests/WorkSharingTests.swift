import AttentionVerification
import FlashAttention
import PTX
import PTXEmulator
import Testing

@testable import AttentionKernels

/// How the work of a decode call is shared out over blocks: shares of whole units, waves, and keys that are divided.
@Suite struct WorkSharingTests {
  /// Blocks get whole units, or a whole number of them one unit, where that makes the longest share at most a sixteenth
  /// longer.
  @Test(arguments: [
    // Units of so many tiles each over 132 blocks, and the share.
    (256, 64, 128), (128, 64, 64), (1024, 8, 64), (64, 128, 64), (66, 128, 64), (61, 128, 60), (32, 256, 64),
    (140, 64, 68), (256, 65, 130), (100, 63, 48), (64, 129, 63), (8, 16, 1), (1, 3000, 23), (132, 40, 40),
  ])
  func sharesAreWholeWhereThatIsCheap(units: Int, tiles: Int, share: Int) {
    let rule = Self.rule(waves: 1)
    #expect(rule.share(total: units * tiles, units: units, blocks: 132) == share)
    let even = (units * tiles + 131) / 132
    #expect(rule.share(total: units * tiles, units: nil, blocks: 132) == even)
    // Where something is left over the units, they differ.
    #expect(rule.share(total: units * tiles + 1, units: units, blocks: 132) == (units * tiles + 132) / 132)
  }

  /// What kernels divide by as a product and a shift is the quotient, of every number below 2^31; and what is left.
  @Test func dividesByProducts() throws {
    var random = RandomSource(seed: 3)
    let limit = 1 << 31
    var divisors = Array(1...300) + [limit - 1]
    for power in (2...30).map({ 1 << $0 }) { divisors += [power - 1, power, power + 1] }
    for _ in 0..<200 { divisors.append(random.int(1...limit - 1)) }
    var pairs: [(number: Int, divisor: Int)] = []
    for divisor in divisors {
      let most = (limit - 1) / divisor * divisor
      for number in [0, 1, divisor - 1, divisor, divisor + 1, most - 1, most, limit - 1] where number < limit {
        pairs.append((number, divisor))
      }
      for _ in 0..<24 { pairs.append((random.int(0...limit - 1), divisor)) }
    }
    while pairs.count % 32 != 0 { pairs.append((5, 3)) }
    // A thread for each: its number, and what the host makes of its divisor.
    let words = pairs.flatMap { number, divisor in
      let magic = Divisor.magic(divisor)
      return [number, divisor, magic.multiplier, magic.shift].map { UInt32($0) }
    }
    let kernel = try Kernel.build("divide", threadsPerBlock: 32) { k in
      let (given, results) = (k.pointer("given"), k.pointer("results"))
      let thread = k.special(.blockX) * 32 + k.special(.threadX)
      let own = k.load(U32.self, count: 4, global: given + k.wide(thread * 16))
      let (quotient, remainder) = k.division(
        own[0], by: Divisor(number: own[1], multiplier: own[2], shift: own[3]))
      k.store([quotient, remainder], global: results + k.wide(thread * 8))
    }
    let memory = GlobalMemory()
    let given = memory.allocate("given", words, access: .readOnly)
    let results = memory.allocate("results", byteCount: pairs.count * 8, access: .readWrite)
    _ = try Emulator.run(
      Program(kernel), Launch(blocks: (pairs.count / 32, 1, 1), arguments: [.pointer(given), .pointer(results)]),
      memory: memory)
    let found = try #require(memory.read(UInt32.self, count: pairs.count * 2, from: results))
    for (index, (number, divisor)) in pairs.enumerated() {
      #expect(
        found[2 * index] == number / divisor && found[2 * index + 1] == number % divisor, "\(number) / \(divisor)")
    }
  }

  /// Rows whose parts a launch behind puts together, over its blocks: where these begin only as those before end, two a
  /// multiprocessor and no third.
  @Test(arguments: [
    // Key/value heads, rows of each, warps before; rows of a block, blocks, and how many fit a multiprocessor.
    (8, 128, 12, 4, 256, 2), (8, 64, 8, 2, 256, 2), (4, 128, 12, 2, 256, 2), (1, 128, 12, 1, 128, 2),
    (32, 128, 12, 8, 512, 8), (8, 128, 4, 2, 512, 8), (32, 16, 4, 1, 512, 8), (2000, 1, 12, 1, 2000, 8),
    (2000, 1, 4, 1, 2000, 8),
  ])
  func rowsAreDealtOutToBlocksBehind(
    heads: Int, rowsOfHead: Int, warps: Int, rows: Int, blocks: Int, places: Int
  ) throws {
    let problem = try AttentionProblem(
      queries: TensorShape(batch: heads, heads: 16, length: max(1, rowsOfHead / 16), dimension: 128),
      keys: TensorShape(batch: heads, heads: 1, length: 8192, dimension: 128),
      values: TensorShape(batch: heads, heads: 1, length: 8192, dimension: 128), scalarType: .bf16)
    var tiling = DecodeTiling(rowWarps: 1, keyGroups: 4, keysPerStep: 16, stages: 3, keepsQueries: true)
    tiling.combination = .launchBehind
    let gpu = GPULimits.typical(of: .sm90)
    func grid(_ target: Target) -> CombineGrid {
      CombineGrid(
        DecodeSpecialization(problem, inputs: .bf16, tiling: tiling, target: target), heads: heads,
        rowsOfHead: rowsOfHead, after: warps, on: gpu)
    }
    let own = grid(.sm90a)
    #expect((own.rows, own.blocks) == (rows, blocks))
    // A block's sums, and 1 KB of the system; 2048 threads at most.
    #expect(min(8, gpu.sharedBytesPerMultiprocessor / (own.sharedByteCount + 1024)) == places)
    // Where no launch begins early, all multiprocessors are free when it does.
    #expect(grid(.sm80).sharedByteCount == CombineKernel.byteCount(columns: 128, rows: grid(.sm80).rows))
  }

  /// Whole keys are divided over blocks as those of caches are, whatever the tensors' strides.
  @Test(arguments: [
    (DecodeFamily.name, "row-warps=1,groups=2,keys=16,stages=3,blocks=1,combine=last", 1, 5),
    (DecodeFamily.name, "row-warps=2,groups=2,keys=32,stages=3,blocks=1,combine=behind", 7, 4),
    (HopperDecodeFamily.name, "groups=1,keys=64,combine=behind", 10, 6),
    (HopperDecodeFamily.name, "groups=2,keys=48,combine=last", 40, 3),
  ])
  func wholeKeysAreDivided(family: String, tiling: String, queries: Int, group: Int) throws {
    for (keys, mask) in [(300, AttentionMask.causal), (333, .window(left: 100, right: 5)), (5, .none), (0, .none)] {
      let problem = try AttentionProblem(
        queries: TensorShape(batch: 2, heads: 2 * group, length: queries, dimension: 64),
        keys: TensorShape(batch: 2, heads: 2, length: keys, dimension: 64),
        values: TensorShape(batch: 2, heads: 2, length: keys, dimension: 40), scalarType: .bf16, mask: mask)
      for layout in [TensorLayout.bhnd, .bnhd] {
        let attention = try EmulatedAttention(
          problem, layout: layout, tail: 3, rowGap: 8, tiling: tiling, family: family, multiprocessors: 5,
          on: family == DecodeFamily.name ? .sm80 : .sm90a)
        #expect(attention.plan.family == family)
        let outcome = try attention.run(nil, .random(seed: 2))
        #expect(outcome.passes, "\(keys) keys, \(layout): \(outcome)")
        if keys == 300 { #expect(attention.plan.splits(lengths: [keys, keys]).allSatisfy { $0 > 1 }) }
      }
    }
  }

  /// One part whatever the length: the bits of a sequence are those that it has alone, by each family that does it.
  @Test(
    arguments: [
      (DecodeFamily.name, 3, nil), (HopperForwardFamily.name, 70, nil), (HopperForwardFamily.name, 70, 16),
    ] as [(String, Int, Int?)])
  func onePartHasBitsOfItsOwn(family: String, queries: Int, pageSize: Int?) throws {
    func bits(_ lengths: [Int]) throws -> [UInt16] {
      let decoding = try EmulatedDecoding(
        lengths: lengths, heads: 2, group: 2, queries: queries, pageSize: pageSize, capacity: 320,
        keysPerSplit: AttentionProblem.allKeys, target: .sm90a, multiprocessors: 3, combination: nil, family: family)
      #expect(decoding.plan.family == family)
      let outcome = try decoding.run()
      #expect(outcome.passes, "\(outcome.description)")
      return Array(outcome.bits.prefix(queries * 4 * 64))
    }
    let alone = try bits([300])
    #expect(try bits([300, 20, 0, 311]) == alone)
  }

  /// Where a grid of whole heads would leave the GPU idle, plans divide the keys.
  @Test(arguments: [Target.sm80, .sm90a]) func plansDivideWholeKeysWhereTheGridIsSmall(target: Target) throws {
    func family(batch: Int, queries: Int, keys: Int) throws -> String {
      try KernelPlan(
        try AttentionProblem(
          queries: TensorShape(batch: batch, heads: 8, length: queries, dimension: 128),
          keys: TensorShape(batch: batch, heads: 8, length: keys, dimension: 128),
          values: TensorShape(batch: batch, heads: 8, length: keys, dimension: 128), scalarType: .bf16, mask: .causal),
        on: .typical(of: target)
      ).family
    }
    for queries in [1, 16, 64] {
      #expect(
        [DecodeFamily.name, HopperDecodeFamily.name].contains(try family(batch: 1, queries: queries, keys: 32768)))
    }
    #expect(![DecodeFamily.name, HopperDecodeFamily.name].contains(try family(batch: 32, queries: 4096, keys: 4096)))
  }

  private static func rule(waves: Int) -> WorkRule<Int> {
    WorkRule(
      tileKeys: 64, rows: 16, groupSize: 4, keyValueHeads: 1, left: nil, chunk: nil, splitTiles: nil, waves: waves)
  }

  /// Blocks of several waves get whole units; where units are not alike, one wave of blocks gets even shares.
  @Test(arguments: [
    // Units of so many tiles each over 132 places, the waves, and the units of a block.
    (1024, 8, 2, 4), (1024, 8, 4, 2), (1024, 8, 8, 1), (256, 64, 2, 1), (60, 8, 2, 1),
  ])
  func blocksOfWavesHaveWholeUnits(units: Int, tiles: Int, waves: Int, ofBlock: Int) {
    let (rule, blocks) = (Self.rule(waves: waves), 132 * waves)
    #expect(rule.share(total: units * tiles, units: units, blocks: blocks) == ofBlock * tiles)
    #expect(rule.share(total: units * tiles + 1, units: units, blocks: blocks) == (units * tiles + 132) / 132)
    #expect(rule.share(total: 5, units: 5, blocks: 1) == 5)
    #expect(rule.share(total: 0, units: 0, blocks: blocks) == 1)
  }

  /// Waves compute the same, of sequences that are alike and others, and write parts only of the others.
  @Test(arguments: [2, 4])
  func wavesInTheKernel(waves: Int) throws {
    for (lengths, hasParts) in [
      ([Int](repeating: 200, count: 9), false), ([200, 90, 0, 200, 17, 200, 3, 100, 64], true),
    ] {
      let decoding = try EmulatedDecoding(
        lengths: lengths, heads: 2, group: 4, dimension: 16, capacity: 200, multiprocessors: 4,
        changes: "groups=2,keys=16,stages=3,blocks=1,waves=\(waves)")
      let outcome = try decoding.run()
      #expect(outcome.passes)
      #expect((outcome.counters.traffic["workspace"]?.bytesWritten ?? 0 > 0) == hasParts)
    }
  }

  /// Many units of alike sequences come in waves by themselves; few, packed queries and splits of a fixed length do not.
  @Test func wavesAreForManyUnits() throws {
    func waves(batch: Int, keysPerSplit: Int? = nil) throws -> Int {
      let problem = try AttentionProblem(
        batch: batch, queries: 1, queryHeads: 32, keyValueHeads: 8, dimension: 128,
        keys: .contiguous(sequences: batch, capacity: 4096), scalarType: .bf16, mask: .causal,
        keysPerSplit: keysPerSplit)
      let plan = try KernelPlan(problem, on: .typical(of: .sm90), options: KernelOptions(family: "decode"))
      return try #require(plan.tiling as? DecodeTiling).waves
    }
    #expect(try waves(batch: 128) > 1)
    // A last wave of a few blocks would cost as much as a whole one.
    #expect(try waves(batch: 34) == 1)
    #expect(try waves(batch: 4) == 1)
    #expect(try waves(batch: 128, keysPerSplit: 512) == 1)
  }

  /// Steps have the keys of a page where that is as fast; where keys are on several pages, two blocks wait side by side. (Forced
  /// tilings, NVIDIA H200, 2026-11-30: Documentation/GPULog.md, "Small pages".)
  @Test func stepsAreRankedByTheirPages() throws {
    func tiling(
      batch: Int, queries: Int = 1, keys: Int, page: Int, _ cache: ScalarType, on target: Target = .sm90
    ) throws -> DecodeTiling {
      let problem = try AttentionProblem(
        batch: batch, queries: queries, queryHeads: 32, keyValueHeads: 8, dimension: 128,
        keys: .paged(pages: batch * keys / page, pageSize: page, pagesPerSequence: keys / page), scalarType: .bf16,
        cacheType: cache, mask: .causal)
      return try #require(try KernelPlan(problem, on: .typical(of: target)).tiling as? DecodeTiling)
    }
    // 108 us with steps of 32 keys, 70 with 16.
    #expect(try tiling(batch: 8, keys: 16384, page: 16, .e4m3).keysPerStep == 16)
    // 109 us with a block and steps of 16 keys, 83 with 32, 79 with two blocks, 75 with both.
    let small = try tiling(batch: 8, keys: 16384, page: 1, .e4m3)
    #expect(small.keysPerStep == 32 && small.blocksPerMultiprocessor == 2)
    // 281 us with one, 254 with two.
    #expect(try tiling(batch: 32, keys: 8192, page: 1, .bf16).blocksPerMultiprocessor == 2)
    // 32 rows: 75.6 us with four warps, 68.9 with eight, which a GPU of 100 KB has no room for.
    #expect(try tiling(batch: 8, queries: 8, keys: 8192, page: 16, .bf16).warps == 8)
    #expect(try tiling(batch: 8, queries: 8, keys: 8192, page: 16, .bf16, on: .sm89).warps == 4)
  }

  /// An even share is 17 tiles of 9 a unit; with 18 no unit has parts.
  @Test func sharesAreWholeInTheKernel() throws {
    let decoding = try EmulatedDecoding(
      lengths: [Int](repeating: 576, count: 30), group: 1, dimension: 16, capacity: 576, multiprocessors: 16,
      changes: "groups=4,keys=16,stages=3,blocks=1")
    let outcome = try decoding.run()
    #expect(
      outcome.passes
        && decoding.plan.launches.sharing?.shares(lengths: [Int](repeating: 576, count: 30)).tilesOfBlock == 18)
    #expect(outcome.counters.traffic["workspace"]?.bytesWritten ?? 0 == 0)
    // Where one has a tile less, the units differ, and some have parts.
    let ragged = try EmulatedDecoding(
      lengths: [Int](repeating: 576, count: 29) + [512], group: 1, dimension: 16, capacity: 576, multiprocessors: 16,
      changes: "groups=4,keys=16,stages=3,blocks=1")
    let raggedOutcome = try ragged.run()
    #expect(raggedOutcome.passes)
    #expect(try #require(raggedOutcome.counters.traffic["workspace"]).bytesWritten > 0)
  }

  /// The rule on the CPU says how many parts the kernel writes: O and log-sum-exps of each, f32.
  @Test(arguments: [[700, 60], [1000], [5, 5, 900, 0, 300], [128, 128, 128, 128]], [nil, 90] as [Int?])
  func sharesAsTheRuleSays(lengths: [Int], left: Int?) throws {
    let decoding = try EmulatedDecoding(
      lengths: lengths, heads: 2, capacity: 1000, mask: .window(left: left, right: 0), target: .sm80,
      combination: .launchBehind)
    let splits = decoding.plan.splits(lengths: lengths)
    let outcome = try decoding.run()
    let rows = decoding.problem.groupSize
    let part = rows * decoding.problem.valueDimension * 4 + (decoding.plan.tiling as! DecodeTiling).rows * 4
    let written = try #require(outcome.counters.traffic["workspace"]).bytesWritten
    // Of a sequence's two units, one may have a part less than the other, or be whole.
    let most = splits.reduce(0) { $0 + ($1 > 1 ? 2 * $1 : 0) }
    let least = splits.reduce(0) { $0 + ($1 > 2 ? 2 * $1 - 1 : $1 == 2 ? 2 : 0) }
    #expect(written % part == 0 && (least...most).contains(written / part), "\(splits), \(written / part) parts")
    #expect(outcome.passes)
  }
}
