internal import CUDADriver
internal import Synchronization

/// A cache of keys and values of one layer that sequences grow in, on the CPU or on a GPU.
///
///     let cache = try KVCache(.paged(pages: 4096, pageSize: 16), keyValueHeads: 8, dimension: 128, scalarType: .bf16)
///     let chat = cache.makeSequence()
///     let result = try cache.attend(queries: q, keys: k, values: v, sequences: [chat])     // appends, then attends
///     let other = try cache.fork(chat)                                                     // shares pages until it differs
///     try cache.free(chat)
///
/// Any number of threads may use a cache; calls follow one another.
public final class KVCache: Sendable {
  /// A sequence in the cache.
  public typealias Sequence = PageAllocator.Sequence

  /// How the memory is divided.
  public enum Layout: Hashable, Sendable {
    /// So many sequences of the same capacity, each in one piece.
    case contiguous(sequences: Int, capacity: Int)
    /// Pages, of which a sequence takes what it needs.
    case paged(pages: Int, pageSize: Int)
  }

  /// How the memory is divided.
  public let layout: Layout
  /// H_kv, D and D_v.
  public let keyValueHeads, dimension, valueDimension: Int
  /// The type of queries and results.
  public let scalarType: ScalarType
  /// The type of keys and values in memory.
  public let cacheType: ScalarType
  /// The GPU that the memory is on; nil for the CPU.
  public let gpu: GPU?
  private let state: Mutex<State>

  private struct State: ~Copyable {
    var allocator: PageAllocator
    let memory: Memory
    var plans: [CachedAttentionProblem: CachedAttentionPlan] = [:]
    /// Of all calls, which follow one another; as large as the largest has needed.
    var workspace: GPUBuffer?
  }

  /// Keys, then values, page by page `[page size, H_kv, D]`.
  private enum Memory: Sendable {
    case host(ZeroedMemory, ZeroedMemory)
    case gpu(GPUBuffer, GPUBuffer)
  }

  /// - Parameters:
  ///   - cacheType: e4m3 for half the memory; nil for `scalarType`.
  ///   - device: where; `.auto` picks.
  /// - Throws: `AttentionError` for extents or dimensions that cannot be, a GPU that cannot be used, or too little memory.
  public init(
    _ layout: Layout, keyValueHeads: Int, dimension: Int, valueDimension: Int? = nil, scalarType: ScalarType,
    cacheType: ScalarType? = nil, device: Device = .auto
  ) throws(AttentionError) {
    (self.layout, self.keyValueHeads, self.dimension) = (layout, keyValueHeads, dimension)
    self.valueDimension = valueDimension ?? dimension
    (self.scalarType, self.cacheType) = (scalarType, cacheType ?? scalarType)
    let (pages, pageSize, perSequence): (Int, Int, Int?) =
      switch layout {
      case .contiguous(let sequences, let capacity): (sequences, capacity, 1)
      case .paged(let pages, let pageSize): (pages, pageSize, nil)
      }
    let allocator = try PageAllocator(pages: pages, pageSize: pageSize, pagesPerSequence: perSequence)
    // Refuses now what the first call would.
    let problem = try CachedAttentionProblem(
      batch: 1, queries: 1, queryHeads: keyValueHeads, keyValueHeads: keyValueHeads, dimension: dimension,
      valueDimension: self.valueDimension, cache: Self.cache(layout, pagesPerSequence: allocator.pagesPerSequence),
      newKeys: .init(1), scalarType: scalarType, cacheType: cacheType)
    gpu = try CachedAttentionPlan(problem, device: device).gpu
    let bytes = (
      problem.keyShape.elementCount * self.cacheType.byteCount,
      problem.valueShape.elementCount * self.cacheType.byteCount
    )
    let memory: Memory
    if let gpu {
      let (keys, values) = (try GPUBuffer(byteCount: bytes.0, on: gpu), try GPUBuffer(byteCount: bytes.1, on: gpu))
      try keys.fill(0)
      try values.fill(0)
      memory = .gpu(keys, values)
    } else {
      memory = .host(
        try ZeroedMemory("The cache of keys", byteCount: bytes.0),
        try ZeroedMemory("The cache of values", byteCount: bytes.1))
    }
    state = Mutex(State(allocator: allocator, memory: memory))
  }

  private static func cache(_ layout: Layout, pagesPerSequence: Int) -> CachedAttentionProblem.Cache {
    switch layout {
    case .contiguous(let sequences, let capacity): .contiguous(sequences: sequences, capacity: capacity)
    case .paged(let pages, let pageSize): .paged(pages: pages, pageSize: pageSize, pagesPerSequence: pagesPerSequence)
    }
  }

  // MARK: - Sequences

  /// A new sequence without keys; it takes no page before it has one.
  public func makeSequence() -> Sequence { state.withLock { $0.allocator.makeSequence() } }

  /// A sequence that begins with the first keys of another. Pages are shared until one of the two writes to them.
  public func fork(_ sequence: Sequence, prefix: Int? = nil) throws(AttentionError) -> Sequence {
    try state.withLock { (state) throws(AttentionError) in try state.allocator.fork(sequence, prefix: prefix) }
  }

  /// Gives the pages of a sequence back.
  public func free(_ sequence: Sequence) throws(AttentionError) {
    try state.withLock { (state) throws(AttentionError) in try state.allocator.free(sequence) }
  }

  /// Forgets the keys behind the first `length`.
  public func truncate(_ sequence: Sequence, to length: Int) throws(AttentionError) {
    try state.withLock { (state) throws(AttentionError) in try state.allocator.truncate(sequence, to: length) }
  }

  /// Takes pages for keys that will come, so that later calls cannot fail for want of them.
  public func reserve(_ keys: Int, for sequence: Sequence) throws(AttentionError) {
    try state.withLock { (state) throws(AttentionError) in
      let copies = try state.allocator.reserve([(sequence, keys)])
      try copy(copies, state.memory)
    }
  }

  /// The keys of a sequence.
  public func length(of sequence: Sequence) throws(AttentionError) -> Int {
    try state.withLock { (state) throws(AttentionError) in try state.allocator.length(of: sequence) }
  }

  /// Pages that nobody has.
  public var freePages: Int { state.withLock { $0.allocator.freePages } }

  // MARK: - Attention

  /// Appends keys and values to sequences and attends over all that they then have.
  ///
  /// - Parameters:
  ///   - queries: `[B, H_q, s_q, D]`, a batch entry for each sequence.
  ///   - keys: `[B, H_kv, s_new, D]`; nil to append nothing.
  ///   - values: `[B, H_kv, s_new, D_v]`.
  ///   - sequences: each once where keys are appended.
  ///   - rotary: an embedding and its tables `[1, 1, positions, dimension / 2]`, which turn queries and new keys.
  /// - Returns: `[B, H_q, s_q, D_v]` in the layout of the queries, and its log-sum-exps.
  /// - Throws: `AttentionError`: of tensors that do not fit, or a cache that is full; then nothing was appended.
  public func attend(
    queries: Tensor, keys: Tensor? = nil, values: Tensor? = nil, sequences: [Sequence], mask: AttentionMask = .causal,
    scale: Double? = nil, softcap: Double? = nil, rotary: (RotaryEmbedding, cosines: Tensor, sines: Tensor)? = nil
  ) throws(AttentionError) -> AttentionResult {
    if queries.shape.batch != sequences.count {
      throw .mismatch(
        axis: "batch", first: "queries", firstExtent: queries.shape.batch, second: "the list of sequences",
        secondExtent: sequences.count)
    }
    if (keys == nil) != (values == nil) {
      throw .unsupported("New keys come with new values; give both, or none.")
    }
    if rotary != nil && keys == nil {
      throw .unsupported("A rotary embedding turns new keys and queries; give new keys and values, or leave it out.")
    }
    let new = keys?.shape.length ?? 0
    if new > 0 && Set(sequences).count != sequences.count {
      throw .unsupported("A sequence to append to can be in a call only once; fork it for another continuation.")
    }
    return try state.withLock { (state) throws(AttentionError) in
      let problem = try CachedAttentionProblem(
        batch: sequences.count, queries: queries.shape.length, queryHeads: queries.shape.heads,
        keyValueHeads: keyValueHeads, dimension: dimension, valueDimension: valueDimension,
        cache: Self.cache(layout, pagesPerSequence: state.allocator.pagesPerSequence),
        newKeys: keys == nil ? nil : .init(new, rotary: rotary?.0), scalarType: scalarType, cacheType: cacheType,
        mask: mask,
        scale: scale, softcap: softcap)
      try Self.check(problem, queries, keys, values)
      if let (embedding, cosines, sines) = rotary {
        let shape = TensorShape(batch: 1, heads: 1, length: embedding.positions, dimension: embedding.dimension / 2)
        for (name, table) in [("the cosines", cosines), ("the sines", sines)] {
          if table.shape != shape { throw .notThePlan(tensor: name, given: table.shape, planned: shape) }
          if table.scalarType != scalarType {
            throw .mixedTypes(
              first: name, firstType: table.scalarType, second: "the cache's queries", secondType: scalarType)
          }
        }
      }
      let plan: CachedAttentionPlan
      if let made = state.plans[problem] {
        plan = made
      } else {
        // More than a program has shapes; one that has more begins again.
        if state.plans.count >= 1024 { state.plans.removeAll() }
        plan = try CachedAttentionPlan(problem, device: gpu == nil ? .cpu : .gpu)
        state.plans[problem] = plan
      }
      // From here on only a device can fail.
      let copies = try state.allocator.reserve(sequences.map { ($0, new) })
      try copy(copies, state.memory)
      var entries = CacheEntries()
      var (lengths, tables) = ([Int](), [[Int]]())
      for sequence in sequences {
        lengths.append(try state.allocator.length(of: sequence))
        tables.append(try state.allocator.pages(of: sequence))
      }
      entries.lengths = lengths
      if case .paged = layout { entries.pageTable = tables } else { entries.batchIndex = tables.map { $0.first ?? 0 } }
      let result: AttentionResult
      switch state.memory {
      case .host(let keyMemory, let valueMemory):
        result = try run(plan, queries, keys, values, rotary, entries, keyMemory.base, valueMemory.base)
      case .gpu(let keyBuffer, let valueBuffer):
        result = try run(
          plan, queries, keys, values, rotary, entries, keyBuffer, valueBuffer, &state.workspace)
      }
      for sequence in sequences { try state.allocator.advance(sequence, by: new) }
      return result
    }
  }

  private static func check(
    _ problem: CachedAttentionProblem, _ queries: Tensor, _ keys: Tensor?, _ values: Tensor?
  ) throws(AttentionError) {
    for (name, tensor, shape) in [
      ("queries", queries, problem.queryShape), ("the new keys", keys, problem.newKeyShape),
      ("the new values", values, problem.newValueShape),
    ] {
      guard let tensor else { continue }
      if tensor.shape != shape { throw .notThePlan(tensor: name, given: tensor.shape, planned: shape) }
      if tensor.scalarType != problem.scalarType {
        throw .mixedTypes(
          first: name, firstType: tensor.scalarType, second: "the cache's queries", secondType: problem.scalarType)
      }
    }
  }

  /// Makes copies of pages, keys and values.
  private func copy(_ copies: [PageAllocator.Copy], _ memory: borrowing Memory) throws(AttentionError) {
    let pageSize =
      switch layout {
      case .contiguous(_, let capacity): capacity
      case .paged(_, let pageSize): pageSize
      }
    for copy in copies {
      for (index, columns) in [dimension, valueDimension].enumerated() {
        let row = keyValueHeads * columns * cacheType.byteCount
        let (from, to, count) = (copy.source * pageSize * row, copy.target * pageSize * row, copy.keys * row)
        switch memory {
        case .host(let keys, let values):
          let base = (index == 0 ? keys : values).base
          (base + to).copyMemory(from: base + from, byteCount: count)
        case .gpu(let keys, let values):
          try (index == 0 ? keys : values).move(byteCount: count, from: from, to: to)
        }
      }
    }
  }

  // MARK: - The two devices

  private func run(
    _ plan: CachedAttentionPlan, _ queries: Tensor, _ keys: Tensor?, _ values: Tensor?,
    _ rotary: (RotaryEmbedding, cosines: Tensor, sines: Tensor)?, _ entries: CacheEntries,
    _ keyBase: UnsafeMutableRawPointer, _ valueBase: UnsafeMutableRawPointer
  ) throws(AttentionError) -> AttentionResult {
    let problem = plan.problem
    let k = MutableTensorView(base: keyBase, scalarType: cacheType, shape: problem.keyShape, layout: .bnhd)
    let v = MutableTensorView(base: valueBase, scalarType: cacheType, shape: problem.valueShape, layout: .bnhd)
    var statistics = [Float](repeating: 0, count: problem.logSumExpCount)
    let output = try Tensor(shape: problem.outputShape, scalarType: scalarType, layout: queries.layout) {
      (o) throws(AttentionError) in
      try statistics.withUnsafeMutableBufferPointer { (lse) throws(AttentionError) in
        try queries.withView { (q) throws(AttentionError) in
          guard let keys, let values else {
            return try plan.run(
              queries: q, keys: k.readOnly, values: v.readOnly, entries: entries, output: o, logSumExp: lse)
          }
          try keys.withView { (newKeys) throws(AttentionError) in
            try values.withView { (newValues) throws(AttentionError) in
              var new = NewKeyViews(keys: newKeys, values: newValues)
              func call() throws(AttentionError) {
                try plan.run(
                  queries: q, keys: k, values: v, appending: new, entries: entries, output: o, logSumExp: lse)
              }
              guard let rotary else { return try call() }
              try rotary.cosines.withView { (cosines) throws(AttentionError) in
                try rotary.sines.withView { (sines) throws(AttentionError) in
                  new.rotary = (cosines, sines)
                  try call()
                }
              }
            }
          }
        }
      }
    }
    return AttentionResult(output: output, logSumExp: statistics)
  }

  private func run(
    _ plan: CachedAttentionPlan, _ queries: Tensor, _ keys: Tensor?, _ values: Tensor?,
    _ rotary: (RotaryEmbedding, cosines: Tensor, sines: Tensor)?, _ entries: CacheEntries, _ keyBuffer: GPUBuffer,
    _ valueBuffer: GPUBuffer, _ shared: inout GPUBuffer?
  ) throws(AttentionError) -> AttentionResult {
    guard let gpu else { throw .deviceUnavailable(device: "GPU", reason: "the cache is not on one.") }
    let problem = plan.problem
    // Alive until the results are here.
    var buffers: [GPUBuffer] = []
    func upload(_ bytes: UnsafeRawBufferPointer) throws(AttentionError) -> UInt64 {
      let buffer = try GPUBuffer(byteCount: max(bytes.count, 16), on: gpu)
      try buffer.copy(from: bytes)
      buffers.append(buffer)
      return buffer.address
    }
    func upload(_ tensor: Tensor) throws(AttentionError) -> DeviceTensorView {
      let address = try tensor.withBytes { (bytes) throws(AttentionError) in try upload(bytes) }
      return DeviceTensorView(
        address: address, scalarType: tensor.scalarType, shape: tensor.shape, layout: tensor.layout)
    }
    func upload(_ numbers: [Int]) throws(AttentionError) -> UInt64 {
      let words = numbers.map { Int32(clamping: $0) }
      return try words.withUnsafeBufferPointer { (words) throws(AttentionError) -> UInt64 in
        try upload(UnsafeRawBufferPointer(words))
      }
    }
    let o = try GPUBuffer(byteCount: max(problem.outputShape.elementCount * scalarType.byteCount, 16), on: gpu)
    let lse = try GPUBuffer(byteCount: max(problem.logSumExpCount * 4, 16), on: gpu)
    // Plans with more counters than have a place of their own get a workspace for this call.
    let isShared = plan.sharesWorkspaces
    let workspace: GPUBuffer
    if isShared, let made = shared, made.byteCount >= plan.workspaceByteCount {
      workspace = made
    } else {
      workspace = try plan.makeWorkspace()
      if isShared { shared = workspace }
    }
    var tensors = DeviceCacheTensors(
      queries: try upload(queries),
      keys: DeviceTensorView(
        address: keyBuffer.address, scalarType: cacheType, shape: problem.keyShape, layout: .bnhd),
      values: DeviceTensorView(
        address: valueBuffer.address, scalarType: cacheType, shape: problem.valueShape, layout: .bnhd),
      output: DeviceTensorView(
        address: o.address, scalarType: scalarType, shape: problem.outputShape, layout: queries.layout),
      lengths: try upload(entries.lengths!), logSumExp: lse.address)
    if case .paged(_, _, let perSequence) = problem.cache {
      tensors.pageTable = try upload(
        entries.pageTable!.flatMap { list in (0..<perSequence).map { $0 < list.count ? list[$0] : 0 } })
    } else {
      tensors.batchIndex = try upload(entries.batchIndex!)
    }
    if let keys, let values {
      var new = DeviceNewKeys(keys: try upload(keys), values: try upload(values))
      if let rotary {
        (new.cosines, new.sines) = (try upload(rotary.cosines).address, try upload(rotary.sines).address)
      }
      tensors.newKeys = new
    }
    defer { withExtendedLifetime((buffers, o, lse, workspace)) {} }
    try plan.launch(tensors, workspace: workspace.address)
    var statistics = [Float](repeating: 0, count: problem.logSumExpCount)
    let output = try Tensor(shape: problem.outputShape, scalarType: scalarType, layout: queries.layout) {
      (view) throws(AttentionError) in
      let count = problem.outputShape.elementCount * scalarType.byteCount
      try o.copy(to: UnsafeMutableRawBufferPointer(start: view.base, count: count))
      try statistics.withUnsafeMutableBufferPointer { (words) throws(AttentionError) in
        try lse.copy(to: UnsafeMutableRawBufferPointer(words))
      }
    }
    return AttentionResult(output: output, logSumExp: statistics)
  }
}
