public import Attention
public import GPURuntime
internal import Synchronization

/// A cache of keys and values of one layer that sequences grow in, on the CPU or on a GPU.
///
///     let cache = try KVCache(.paged(pages: 4096, pageSize: 16), keyValueHeads: 8, dimension: 128, scalarType: .bf16)
///     let chat = cache.makeSequence()
///     let result = try cache.attend(queries: q, keys: k, values: v, sequences: [chat])     // appends, then attends
///     let other = try cache.fork(chat)                                                     // shares pages until it differs
///     try cache.free(chat)
///
/// Any number of threads may use a cache. What they attend to follows one another: on a GPU, calls are put into the
/// library's stream one behind the other, and each waits for its own result alone. A sequence must not be freed while a
/// call attends to it.
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
  let allocator: Mutex<PageAllocator>
  let memory: Memory
  /// Held while a call takes pages, copies what was shared, and computes, or on a GPU puts all that into the stream.
  let work = Mutex(Work())
  let plans = Mutex<[AttentionProblem: AttentionPlan]>([:])

  /// What calls on a GPU, which follow one another, share.
  struct Work: ~Copyable {
    /// As large as the largest has needed.
    var workspace: GPUBuffer?
    /// The page table of the last call: the next one uploads what has changed of it.
    var table: (words: [Int32], buffer: GPUBuffer)?
  }

  /// Keys, then values, page by page `[page size, H_kv, D]`.
  enum Memory: Sendable {
    case host(ZeroedMemory, ZeroedMemory)
    case gpu(GPU, GPUBuffer, GPUBuffer)
  }

  /// The GPU that the memory is on; nil for the CPU.
  public var gpu: GPU? { if case .gpu(let gpu, _, _) = memory { gpu } else { nil } }

  /// - Parameters:
  ///   - layout: how the memory is divided.
  ///   - keyValueHeads: H_kv.
  ///   - dimension: D.
  ///   - valueDimension: D_v; nil for D.
  ///   - scalarType: of queries and results.
  ///   - cacheType: e4m3 for half the memory; nil for `scalarType`.
  ///   - device: where; `.auto` picks.
  /// - Throws: `AttentionError` for extents or dimensions that cannot be, a GPU that cannot be used, or too little
  ///   memory.
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
    let problem = try AttentionProblem(
      batch: 1, queries: 1, queryHeads: keyValueHeads, keyValueHeads: keyValueHeads, dimension: dimension,
      valueDimension: self.valueDimension,
      keys: Self.storage(layout, pagesPerSequence: allocator.pagesPerSequence), newKeys: .init(1),
      scalarType: scalarType, cacheType: cacheType, mask: .causal)
    let gpu = try AttentionPlan(problem, device: device).gpu
    let bytes = (
      problem.keyShape.elementCount * self.cacheType.byteCount,
      problem.valueShape.elementCount * self.cacheType.byteCount
    )
    if let gpu {
      let (keys, values) = (try GPUBuffer(byteCount: bytes.0, on: gpu), try GPUBuffer(byteCount: bytes.1, on: gpu))
      try keys.fill(0)
      try values.fill(0)
      memory = .gpu(gpu, keys, values)
    } else {
      memory = .host(
        try ZeroedMemory("The cache of keys", byteCount: bytes.0),
        try ZeroedMemory("The cache of values", byteCount: bytes.1))
    }
    self.allocator = Mutex(allocator)
  }

  static func storage(_ layout: Layout, pagesPerSequence: Int) -> AttentionProblem.KeyStorage {
    switch layout {
    case .contiguous(let sequences, let capacity): .contiguous(sequences: sequences, capacity: capacity)
    case .paged(let pages, let pageSize): .paged(pages: pages, pageSize: pageSize, pagesPerSequence: pagesPerSequence)
    }
  }

  // MARK: - Sequences

  /// A new sequence without keys; it takes no page before it has one.
  public func makeSequence() -> Sequence { allocator.withLock { $0.makeSequence() } }

  /// A sequence that begins with the first keys of another. Pages are shared until one of the two writes to them.
  public func fork(_ sequence: Sequence, prefix: Int? = nil) throws(AttentionError) -> Sequence {
    try allocator.withLock { (allocator) throws(AttentionError) in try allocator.fork(sequence, prefix: prefix) }
  }

  /// Gives the pages of a sequence back.
  public func free(_ sequence: Sequence) throws(AttentionError) {
    try allocator.withLock { (allocator) throws(AttentionError) in try allocator.free(sequence) }
  }

  /// Forgets the keys behind the first `length`.
  public func truncate(_ sequence: Sequence, to length: Int) throws(AttentionError) {
    try allocator.withLock { (allocator) throws(AttentionError) in try allocator.truncate(sequence, to: length) }
  }

  /// Takes pages for keys that will come, so that later calls cannot fail for want of them.
  public func reserve(_ keys: Int, for sequence: Sequence) throws(AttentionError) {
    try work.withLock { (_) throws(AttentionError) in try reserve([(sequence, keys)]) }
  }

  /// The keys of a sequence.
  public func length(of sequence: Sequence) throws(AttentionError) -> Int {
    try allocator.withLock { (allocator) throws(AttentionError) in try allocator.length(of: sequence) }
  }

  /// Pages that nobody has.
  public var freePages: Int { allocator.withLock { $0.freePages } }

  /// Makes room for keys; nobody else may work meanwhile.
  func reserve(_ counts: [(sequence: Sequence, keys: Int)]) throws(AttentionError) {
    let copies = try allocator.withLock { (allocator) throws(AttentionError) in try allocator.reserve(counts) }
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
        case .gpu(_, let keys, let values):
          try (index == 0 ? keys : values).move(byteCount: count, from: from, to: to)
        }
      }
    }
  }
}
