import AttentionKernels
import AttentionVerification
import FlashAttention
import PTX
import PTXEmulator

/// A call over a cache on an emulated GPU: every row of the cache that holds no key is NaN, and the result stands
/// beside the reference.
struct EmulatedDecoding {
  let scenario: CacheScenario
  var plan: KernelPlan
  var problem: AttentionProblem { scenario.problem }

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
  ///   - keyGap: rows behind each sequence of packed keys that are none.
  init(
    _ type: ScalarType = .bf16, lengths: [Int], heads: Int = 1, group: Int = 4, queries: Int = 1,
    queryCounts: [Int]? = nil, dimension: Int = 64, valueDimension: Int? = nil, pageSize: Int? = nil,
    capacity: Int = 256,
    hasPackedKeys: Bool = false, keyGap: Int = 0, mask: AttentionMask = .causal, scale: Double? = nil,
    softcap: Double? = nil,
    batchIndex: [Int]? = nil, leftPadding: [Int]? = nil, new: New? = nil, cacheType: ScalarType? = nil,
    queryType: ScalarType? = nil, hasScales: Bool = false, keysPerSplit: Int? = nil, leavesParts: Bool = false,
    sinks: ScalarType? = nil, ranges: KeyRanges.Form? = nil, rangeNumbers: [Int]? = nil, target: Target = .sm90,
    multiprocessors: Int = 5, combination: DecodeTiling.Combination? = .lastBlock, changes: String? = nil,
    family: String = DecodeFamily.name, seed: UInt64 = 1
  ) throws {
    let batch = lengths.count
    func starts(_ counts: [Int]) -> [Int] { counts.reduce(into: [0]) { $0.append($0.last! + $1) } }
    var cache = AttentionProblem.KeyStorage.contiguous(
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
      cache = .packed(total: lengths.reduce(0) { $0 + $1 + keyGap }, longest: lengths.max()! + keyGap)
    }
    let newKeys = new.map {
      AttentionProblem.NewKeys(
        $0.counts.max()!, packedTotal: $0.isPacked ? $0.counts.reduce(0, +) : nil, rotary: $0.rotary)
    }
    var problem = try AttentionProblem(
      batch: batch, queries: queryCounts?.max() ?? queries, packedQueries: queryCounts?.reduce(0, +),
      queryHeads: heads * group, keyValueHeads: heads, dimension: dimension, valueDimension: valueDimension,
      keys: cache,
      hasLeftPadding: leftPadding != nil, newKeys: newKeys, scalarType: type, queryType: queryType,
      cacheType: cacheType,
      mask: mask, scale: scale, softcap: softcap, keysPerSplit: keysPerSplit, leavesParts: leavesParts)
    (problem.sinkType, problem.ranges) = (sinks, ranges)
    func scales(_ first: Float) -> [Float]? { hasScales ? (0..<batch * heads).map { first + Float($0) * 0.37 } : nil }
    scenario = CacheScenario(
      problem,
      CacheEntries<HostMemory>(
        lengths: lengths, batchIndex: batchIndex, leftPadding: leftPadding, pageTable: pageTable,
        queryStarts: queryCounts.map(starts), keyStarts: hasPackedKeys ? starts(lengths.map { $0 + keyGap }) : nil,
        queryScales: queryType == .e4m3 ? scales(0.8) : nil, keyScales: scales(0.3), valueScales: scales(1.7),
        ranges: rangeNumbers ?? problem.exampleRanges),
      newStarts: new?.isPacked == true ? starts(new!.counts) : nil, positions: new?.positions, seed: seed)
    var gpu = GPULimits.typical(of: target)
    gpu.multiprocessors = multiprocessors
    var all = changes.map { [$0] } ?? []
    if let combination, family == DecodeFamily.name, !leavesParts { all.append("combine=\(combination.rawValue)") }
    plan = try KernelPlan(
      problem, on: gpu,
      options: KernelOptions(
        family: family,
        tiling: all.isEmpty ? nil : try TilingChanges(all.joined(separator: ","))))
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
      guard let perSequence = scenario.problem.pages?.perSequence else { return }
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
  ///   - lists: what the kernels read instead of the scenario's own; sequences may then share rows, so that races are
  ///     not looked for.
  /// - Throws: `Hazard`.
  func run(
    _ programs: Programs = Programs(), _ schedule: Schedule = .roundRobin, calls: Int = 1, lists given: Lists? = nil
  ) throws(Hazard) -> Outcome {
    let memory = GlobalMemory()
    let written = given == nil ? GlobalMemory.Access.readWrite : .anyOrder
    let (entries, lists) = (scenario.entries, given ?? Lists(scenario))
    func put(_ name: String, _ tensor: Tensor, isWritten: Bool = false) -> DeviceTensorView {
      let address = tensor.withBytes {
        memory.allocate(name, $0.isEmpty ? [0] : Array($0), access: isWritten ? written : .readOnly)
      }
      return DeviceTensorView(
        address: address, scalarType: tensor.scalarType, shape: tensor.shape, layout: tensor.layout)
    }
    func words(_ name: String, _ values: [Int]?) -> UInt64? {
      values.map { memory.allocate(name, $0.map { UInt32(bitPattern: Int32($0)) }, access: .readOnly) }
    }
    func floats(_ name: String, _ values: [Float]?) -> UInt64? {
      values.map { memory.allocate(name, $0, access: .readOnly) }
    }
    let appends = problem.newKeys != nil
    let (keys, values) = (scenario.keys, scenario.values)
    let outputBytes = problem.outputShape.elementCount * problem.outputType.byteCount
    let output = memory.allocate("o", byteCount: max(outputBytes, 2), access: written)
    // A part without keys may hold anything: NaN.
    if problem.leavesParts { memory.write([UInt8](repeating: 0xff, count: outputBytes), to: output) }
    let launches = plan.launches
    let workspace = memory.allocate("workspace", byteCount: max(launches.workspaceByteCount, 16), access: written)
    memory.write([UInt8](repeating: 0, count: launches.counterByteCount), to: workspace)
    let cacheEntries = CacheEntries<GPUMemory>(
      lengths: words("lengths", lists.lengths), batchIndex: words("batch_index", lists.batchIndex),
      leftPadding: words("left_padding", lists.leftPadding), pageTable: words("page_table", lists.pageTable),
      queryStarts: words("query_starts", lists.queryStarts), keyStarts: words("key_starts", lists.keyStarts),
      queryScales: floats("query_scales", entries.queryScales), keyScales: floats("key_scales", entries.keyScales),
      valueScales: floats("value_scales", entries.valueScales), sinks: memory.allocate(sinks: problem),
      ranges: memory.allocate(ranges: scenario.entries.ranges))
    let (q, k, v) = (
      put("q", scenario.queries), put("k", keys, isWritten: appends), put("v", values, isWritten: appends)
    )
    let o = DeviceTensorView(
      address: output, scalarType: problem.outputType, shape: problem.outputShape, layout: .bnhd)
    let lse = memory.allocate("lse", byteCount: max(problem.logSumExpCount, 1) * 4, access: written)
    var tensors = AttentionTensors<GPUMemory>(
      queries: q, keys: k, values: v, output: o, logSumExp: lse, entries: cacheEntries)
    if appends {
      var new = NewKeyTensors<GPUMemory>(
        keys: put("new_k", scenario.newKeys), values: put("new_v", scenario.newValues),
        starts: words("new_starts", lists.newStarts), positions: words("positions", lists.positions))
      if let tables = scenario.rotaryTables {
        new.rotary = (put("cosines", tables.cosines), put("sines", tables.sines))
      }
      tensors = AttentionTensors(
        queries: q, keys: k, values: v, appending: new, output: o, logSumExp: lse, entries: cacheEntries)
    }
    var counters = Counters()
    for _ in 0..<calls {
      counters = try launches.emulate(KernelCall(tensors, workspace: workspace), memory: memory, schedule: schedule) {
        switch $0 {
        case is PreparationKernel: programs.preparation
        case is CombineKernel: programs.combine
        default: programs.decode
        }
      }
    }
    return outcome(counters, tensors, memory)
  }

  private func outcome(_ counters: Counters, _ tensors: AttentionTensors<GPUMemory>, _ memory: GlobalMemory) -> Outcome
  {
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
    let output = read(tensors.output.address, problem.outputShape, problem.outputType)
    let statistics =
      memory.read(Float.self, count: problem.logSumExpCount, from: tensors.logSumExp!)
      ?? [Float](repeating: .nan, count: problem.logSumExpCount)
    let (keys, values) = (
      read(tensors.keys.address, problem.keyShape, problem.cacheType),
      read(tensors.values.address, problem.valueShape, problem.cacheType)
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
