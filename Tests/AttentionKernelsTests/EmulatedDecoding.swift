import AttentionKernels
import FlashAttention
import PTX
import PTXEmulator

/// A call over a cache on an emulated GPU: every row of the cache that holds no key is NaN, and the result stands beside the
/// reference.
struct EmulatedDecoding {
  let scenario: CacheScenario
  var plan: DecodePlan
  /// The kernels of whole problems, where these compute the call.
  var forward: ForwardPlan?
  var problem: CachedAttentionProblem { scenario.problem }

  /// Keys that a call brings: of each sequence, or packed; and how they are turned.
  struct New {
    var counts: [Int]
    var isPacked = false
    var rotary: RotaryEmbedding?
    var positions: [Int]?
  }

  /// - Parameters:
  ///   - queryCounts: of packed queries.
  ///   - hasPackedKeys: whether the keys are packed, as many as the lengths say.
  init(
    _ type: ScalarType = .bf16, lengths: [Int], heads: Int = 1, group: Int = 4, queries: Int = 1,
    queryCounts: [Int]? = nil, dimension: Int = 64, valueDimension: Int? = nil, pageSize: Int? = nil,
    capacity: Int = 256,
    hasPackedKeys: Bool = false, mask: AttentionMask = .causal, scale: Double? = nil, softcap: Double? = nil,
    batchIndex: [Int]? = nil, leftPadding: [Int]? = nil, new: New? = nil, cacheType: ScalarType? = nil,
    queryType: ScalarType? = nil, hasScales: Bool = false, keysPerSplit: Int? = nil, leavesParts: Bool = false,
    target: Target = .sm90,
    multiprocessors: Int = 5, combination: DecodeSpecialization.Combination? = .lastBlock, changes: String? = nil,
    usesForward: Bool = false, forwardChanges: String? = nil, seed: UInt64 = 1
  ) throws {
    let batch = lengths.count
    func starts(_ counts: [Int]) -> [Int] { counts.reduce(into: [0]) { $0.append($0.last! + $1) } }
    var cache = CachedAttentionProblem.Cache.contiguous(
      sequences: (batchIndex.map { $0.max()! + 1 } ?? batch) + 1, capacity: capacity)
    var pageTable: [[Int]]?
    if let pageSize {
      let perSequence = (capacity + pageSize - 1) / pageSize
      let pages = perSequence * batch + 3
      cache = .paged(pages: pages, pageSize: pageSize, pagesPerSequence: perSequence)
      // Scattered, each once; only the pages that hold keys are named.
      let step = [7, 11, 13, 17, 19].first { pages % $0 != 0 }!
      pageTable = (0..<batch).map { b in
        let rows = lengths[b] + (new?.counts[b] ?? 0)
        return (0..<(rows + pageSize - 1) / pageSize).map { pages - 1 - (b * perSequence + $0) * step % pages }
      }
    } else if hasPackedKeys {
      cache = .packed(total: lengths.reduce(0, +), longest: lengths.max()!)
    }
    let newKeys = new.map {
      CachedAttentionProblem.NewKeys(
        $0.counts.max()!, packedTotal: $0.isPacked ? $0.counts.reduce(0, +) : nil, rotary: $0.rotary)
    }
    let problem = try CachedAttentionProblem(
      batch: batch, queries: queryCounts?.max() ?? queries, packedQueries: queryCounts?.reduce(0, +),
      queryHeads: heads * group, keyValueHeads: heads, dimension: dimension, valueDimension: valueDimension,
      cache: cache,
      hasLeftPadding: leftPadding != nil, newKeys: newKeys, scalarType: type, queryType: queryType,
      cacheType: cacheType,
      mask: mask, scale: scale, softcap: softcap, keysPerSplit: keysPerSplit, leavesParts: leavesParts)
    func scales(_ first: Float) -> [Float]? { hasScales ? (0..<batch * heads).map { first + Float($0) * 0.37 } : nil }
    scenario = CacheScenario(
      problem,
      CacheEntries(
        lengths: lengths, batchIndex: batchIndex, leftPadding: leftPadding, pageTable: pageTable,
        queryStarts: queryCounts.map(starts), keyStarts: hasPackedKeys ? starts(lengths) : nil,
        queryScales: queryType == .e4m3 ? scales(0.8) : nil, keyScales: scales(0.3), valueScales: scales(1.7)),
      newStarts: new?.isPacked == true ? starts(new!.counts) : nil, positions: new?.positions, seed: seed)
    var gpu = GPULimits.typical(of: target)
    gpu.multiprocessors = multiprocessors
    plan = try DecodePlan(problem, on: gpu, combination: combination, changes: changes)
    if usesForward { forward = try ForwardPlan(problem, on: gpu, changes: forwardChanges) }
  }

  struct Outcome {
    let counters: Counters
    let output, logSumExp: Comparison
    let cacheFault: String?
    let bits: [UInt16]
    /// What the call wrote.
    let written: (output: Tensor, logSumExp: [Float])
    var passes: Bool { output.passes && logSumExp.passes && cacheFault == nil }
    var description: String { "output \(output), log-sum-exp \(logSumExp), \(cacheFault ?? "cache right")" }
  }

  /// Programs to run in place of the plan's own.
  struct Programs {
    var preparation, decode, combine: Program?
  }

  /// The lists of numbers that kernels read from the GPU's memory, as words.
  struct Lists {
    var lengths, batchIndex, leftPadding, queryStarts, keyStarts, newStarts, positions, pageTable: [Int]?

    init(_ scenario: CacheScenario) {
      let entries = scenario.entries
      (lengths, batchIndex, leftPadding) = (entries.lengths, entries.batchIndex, entries.leftPadding)
      (queryStarts, keyStarts) = (entries.queryStarts, entries.keyStarts)
      (newStarts, positions) = (scenario.newStarts, scenario.positions)
      guard case .paged(_, _, let perSequence) = scenario.problem.cache else { return }
      // The others' entries would lead anywhere.
      pageTable = entries.pageTable!.flatMap { list in
        (0..<perSequence).map { $0 < list.count ? list[$0] : 1 << 30 }
      }
    }

    private static var all: [WritableKeyPath<Lists, [Int]?>] {
      [\.lengths, \.batchIndex, \.leftPadding, \.queryStarts, \.keyStarts, \.newStarts, \.positions, \.pageTable]
    }

    /// Garbage in some of the lists, or in some words of all of them.
    mutating func spoil(_ random: inout some RandomNumberGenerator, near limits: [Int]) {
      let (lowest, highest) = (Int(Int32.min), Int(Int32.max))
      var nasty: [Int] = [lowest, lowest + 1, -65536, -2, -1, 0, 1, 2, 65536, 1 << 29, 1 << 30, highest]
      for limit in limits { nasty += [limit - 1, limit, limit + 1] }
      let isSparse = Bool.random(using: &random)
      for list in Self.all where isSparse || Bool.random(using: &random) {
        self[keyPath: list] = self[keyPath: list]?.map {
          isSparse && Int.random(in: 0..<4, using: &random) > 0 ? $0 : nasty.randomElement(using: &random)!
        }
      }
    }
  }

  /// - Parameters:
  ///   - calls: how often the kernels run on the same workspace.
  ///   - lists: what the kernels read instead of the scenario's own; sequences may then share rows, so that races are not looked
  ///     for.
  /// - Throws: `Hazard`.
  func run(
    _ programs: Programs = Programs(), _ schedule: Schedule = .roundRobin, calls: Int = 1, lists given: Lists? = nil
  ) throws(Hazard) -> Outcome {
    let memory = GlobalMemory()
    let written = given == nil ? GlobalMemory.Access.readWrite : .anyOrder
    let (entries, lists) = (scenario.entries, given ?? Lists(scenario))
    func put(_ name: String, _ tensor: Tensor, isWritten: Bool = false) -> ForwardLaunch.Place {
      let address = tensor.withBytes {
        memory.allocate(name, $0.isEmpty ? [0] : Array($0), access: isWritten ? written : .readOnly)
      }
      return ForwardLaunch.Place(address: address, strides: tensor.layout.strides(of: tensor.shape))
    }
    func words(_ name: String, _ values: [Int]?) -> UInt64 {
      values.map { memory.allocate(name, $0.map { UInt32(bitPattern: Int32($0)) }, access: .readOnly) } ?? 0
    }
    func floats(_ name: String, _ values: [Float]?) -> UInt64 {
      values.map { memory.allocate(name, $0, access: .readOnly) } ?? 0
    }
    let appends = problem.newKeys != nil
    let (keys, values) = (scenario.keys, scenario.values)
    let outputBytes = problem.outputShape.elementCount * problem.outputType.byteCount
    let output = memory.allocate("o", byteCount: max(outputBytes, 2), access: written)
    // A part without keys may hold anything: NaN.
    if problem.leavesParts { memory.write([UInt8](repeating: 0xff, count: outputBytes), to: output) }
    let workspace = memory.allocate("workspace", byteCount: max(plan.launch.workspaceByteCount, 16), access: written)
    memory.write([UInt8](repeating: 0, count: plan.launch.arrivalByteCount), to: workspace)
    var places = DecodeLaunch.Places(
      queries: put("q", scenario.queries), keys: put("k", keys, isWritten: appends),
      values: put("v", values, isWritten: appends),
      output: ForwardLaunch.Place(
        address: output, strides: TensorLayout.bnhd.strides(of: problem.outputShape)),
      lengths: words("lengths", lists.lengths),
      workspace: workspace)
    places.logSumExp = memory.allocate("lse", byteCount: max(problem.logSumExpCount, 1) * 4, access: written)
    places.batchIndex = words("batch_index", lists.batchIndex)
    places.leftPadding = words("left_padding", lists.leftPadding)
    places.queryStarts = words("query_starts", lists.queryStarts)
    places.keyStarts = words("key_starts", lists.keyStarts)
    places.queryScales = floats("query_scales", entries.queryScales)
    places.keyScales = floats("key_scales", entries.keyScales)
    places.valueScales = floats("value_scales", entries.valueScales)
    places.pageTable = words("page_table", lists.pageTable)
    if appends {
      var new = DecodeLaunch.NewKeyPlaces(
        keys: put("new_k", scenario.newKeys), values: put("new_v", scenario.newValues))
      new.starts = words("new_starts", lists.newStarts)
      new.positions = words("positions", lists.positions)
      if let tables = scenario.rotaryTables {
        (new.cosines, new.sines) = (put("cosines", tables.cosines).address, put("sines", tables.sines).address)
      }
      places.newKeys = new
    }
    var counters = Counters()
    for _ in 0..<calls { counters = try call(places, programs, memory, schedule) }
    return outcome(counters, places, memory)
  }

  /// The launches of a call; their counters together.
  private func call(
    _ places: DecodeLaunch.Places, _ programs: Programs, _ memory: GlobalMemory, _ schedule: Schedule
  ) throws(Hazard) -> Counters {
    if let forward {
      let sequences = ForwardLaunch.Sequences(
        queryStarts: places.queryStarts, keyStarts: places.keyStarts, queryCounts: places.queryCounts,
        keyCounts: places.lengths, batchIndex: places.batchIndex)
      return try Emulator.run(
        programs.decode ?? Program(try! forward.kernel()),
        Launch(
          blocks: (forward.launch.blocks, 1, 1), dynamicSharedByteCount: forward.launch.sharedByteCount,
          arguments: forward.launch.arguments(
            queries: places.queries, keys: places.keys, values: places.values, output: places.output,
            logSumExp: places.logSumExp, sequences: sequences)), memory: memory, schedule: schedule)
    }
    var all: [Counters] = []
    // Kernels of valid plans can be built.
    if let preparation = plan.preparationKernel() {
      all.append(
        try Emulator.run(
          programs.preparation ?? Program(try! preparation.kernel()),
          Launch(
            blocks: (plan.launch.preparationBlocks, 1, 1), arguments: plan.launch.preparationArguments(problem, places)),
          memory: memory, schedule: schedule))
    }
    let arguments = plan.launch.arguments(places)
    if plan.launch.blocks > 0 {
      all.append(
        try Emulator.run(
          programs.decode ?? Program(try! plan.kernel()),
          Launch(
            blocks: (plan.launch.blocks, 1, 1), dynamicSharedByteCount: plan.launch.sharedByteCount,
            arguments: arguments,
            isDependent: plan.specialization.waitsForPreparation), memory: memory, schedule: schedule,
          residentBlocks: plan.launch.blocks))
    }
    if plan.launch.combineBlocks > 0 {
      all.append(
        try Emulator.run(
          programs.combine ?? Program(try! plan.combineKernel()!),
          Launch(
            blocks: (plan.launch.combineBlocks, 1, 1), arguments: arguments,
            isDependent: plan.specialization.combination == .dependentLaunch), memory: memory, schedule: schedule))
    }
    var sum = all.first ?? Counters()
    for counters in all.dropFirst() {
      sum.bankConflicts += counters.bankConflicts
      for (name, traffic) in counters.traffic {
        sum.traffic[name, default: .init()].bytesRead += traffic.bytesRead
        sum.traffic[name, default: .init()].sectorsRead += traffic.sectorsRead
        sum.traffic[name, default: .init()].bytesWritten += traffic.bytesWritten
      }
    }
    return sum
  }

  private func outcome(_ counters: Counters, _ places: DecodeLaunch.Places, _ memory: GlobalMemory) -> Outcome {
    func read(_ address: UInt64, _ shape: TensorShape, _ type: ScalarType) -> Tensor {
      let bytes = shape.elementCount * type.byteCount
      let all = memory.read(UInt8.self, count: bytes, from: address)
      return try! Tensor(shape: shape, scalarType: type, layout: .bnhd) { view in
        // NaN where somebody left something out.
        (all ?? [UInt8](repeating: 0x7f, count: bytes)).withUnsafeBytes {
          view.base.copyMemory(from: $0.baseAddress ?? UnsafeRawPointer(view.base), byteCount: bytes)
        }
      }
    }
    let output = read(places.output.address, problem.outputShape, problem.outputType)
    let statistics =
      memory.read(Float.self, count: problem.logSumExpCount, from: places.logSumExp)
      ?? [Float](repeating: .nan, count: problem.logSumExpCount)
    let (keys, values) = (
      read(places.keys.address, problem.keyShape, problem.cacheType),
      read(places.values.address, problem.valueShape, problem.cacheType)
    )
    return keys.withView { k in
      values.withView { v in
        // Valid, as the problem is.
        let result = try! scenario.compare(
          output: { output[$0, $1, $2, $3] }, logSumExp: statistics, cache: problem.newKeys == nil ? nil : (k, v),
          hasCutSums: false)
        return Outcome(
          counters: counters, output: result.output, logSumExp: result.logSumExp,
          cacheFault: scenario.fault(ofCache: k, isKey: true) ?? scenario.fault(ofCache: v, isKey: false),
          bits: output.withBytes { Array($0.bindMemory(to: UInt16.self)) }, written: (output, statistics))
      }
    }
  }
}
