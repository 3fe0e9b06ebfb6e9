internal import CPUAttention
internal import CUDADriver

/// Where the keys of a call's sequences are, in the host's memory.
public struct CacheEntries: Hashable, Sendable {
  /// The rows of each sequence's cache that hold keys.
  public var lengths: [Int]
  /// Which sequence of the cache; nil for each its own number. Not with pages.
  public var batchIndex: [Int]?
  /// The row of each sequence's first key; nil for 0.
  public var leftPadding: [Int]?
  /// The pages of each sequence, as many as its length needs or more; nil without pages.
  public var pageTable: [[Int]]?

  /// One number, or one list of pages, for each sequence.
  public init(
    lengths: [Int], batchIndex: [Int]? = nil, leftPadding: [Int]? = nil, pageTable: [[Int]]? = nil
  ) {
    (self.lengths, self.batchIndex, self.leftPadding, self.pageTable) = (lengths, batchIndex, leftPadding, pageTable)
  }

  /// - Throws: `AttentionError` where they are not what a problem needs, or lead out of the cache.
  func check(_ problem: CachedAttentionProblem) throws(AttentionError) {
    func each(_ what: String, _ values: [Int]?, limit: Int) throws(AttentionError) {
      guard let values else { return }
      if values.count != problem.batch { throw .cacheEntries("\(what)s", count: values.count, batch: problem.batch) }
      for (sequence, value) in values.enumerated() where !(0...max(limit, 0)).contains(value) || limit < 0 {
        throw .cacheEntry(what, sequence: sequence, value: value, limit: limit)
      }
    }
    try each("length", lengths, limit: problem.capacity)
    if (leftPadding != nil) != problem.hasLeftPadding {
      throw .notInThePlan(tensor: "left padding", isMissing: problem.hasLeftPadding)
    }
    try each("left padding", leftPadding, limit: problem.capacity)
    switch problem.cache {
    case .contiguous(let sequences, _):
      if pageTable != nil { throw .notInThePlan(tensor: "page table", isMissing: false) }
      if batchIndex == nil && problem.batch > sequences {
        throw .cacheEntries("sequences in the cache", count: sequences, batch: problem.batch)
      }
      try each("place in the cache", batchIndex, limit: sequences - 1)
    case .paged(let pages, let pageSize, _):
      if batchIndex != nil { throw .notInThePlan(tensor: "batch index", isMissing: false) }
      guard let pageTable else { throw .notInThePlan(tensor: "page table", isMissing: true) }
      if pageTable.count != problem.batch {
        throw .cacheEntries("lists of pages", count: pageTable.count, batch: problem.batch)
      }
      for (sequence, list) in pageTable.enumerated() {
        let needed = (lengths[sequence] + pageSize - 1) / pageSize
        if list.count < needed {
          throw .cacheEntry("length", sequence: sequence, value: lengths[sequence], limit: list.count * pageSize)
        }
        for page in list.prefix(needed) where !(0..<pages).contains(page) {
          throw .cacheEntry("page", sequence: sequence, value: page, limit: pages - 1)
        }
      }
    }
  }

  /// The keys of a sequence.
  func keyCount(of sequence: Int) -> Int { max(0, lengths[sequence] - (leftPadding?[sequence] ?? 0)) }
}

extension CachedAttentionPlan {
  /// Computes a call on borrowed memory of the host. On the CPU nothing is copied but pages; for a GPU, everything is copied there
  /// and the result back: for tests and small things.
  ///
  /// - Parameters:
  ///   - queries: `[B, H_q, s_q, D]`; strides of any kind, unit stride along D.
  ///   - keys: `[sequences, H_kv, capacity, D]`, or `[pages, H_kv, page size, D]`.
  ///   - values: the same with D_v.
  ///   - entries: where the keys of each sequence are.
  ///   - output: `[B, H_q, s_q, D_v]`; overwritten.
  ///   - logSumExp: `[B, H_q, s_q]` contiguous f32, natural logarithm, scale included; nil where it is not needed.
  /// - Throws: `AttentionError` where a view is not what the plan was made for, a number leads out of the cache, or the GPU
  ///   fails.
  public func run(
    queries: TensorView, keys: TensorView, values: TensorView, entries: CacheEntries, output: MutableTensorView,
    logSumExp: UnsafeMutableBufferPointer<Float>? = nil
  ) throws(AttentionError) {
    for (name, view, shape) in [
      ("queries", queries, problem.queryShape), ("the cached keys", keys, problem.keyShape),
      ("the cached values", values, problem.valueShape), ("output", output.readOnly, problem.outputShape),
    ] {
      if view.shape != shape { throw .notThePlan(tensor: name, given: view.shape, planned: shape) }
      if view.scalarType != problem.scalarType {
        throw .mixedTypes(first: name, firstType: view.scalarType, second: "the plan", secondType: problem.scalarType)
      }
    }
    if let logSumExp, logSumExp.count != problem.logSumExpCount {
      throw .logSumExpCount(given: logSumExp.count, needed: problem.logSumExpCount)
    }
    try entries.check(problem)
    if problem.logSumExpCount == 0 { return }
    if let gpu {
      try run(on: gpu, queries, keys, values, entries, output, logSumExp)
    } else {
      for sequence in 0..<problem.batch {
        try runSequence(sequence, queries, keys, values, entries, output, logSumExp)
      }
    }
  }

  // MARK: - On the CPU

  private func runSequence(
    _ sequence: Int, _ queries: TensorView, _ keys: TensorView, _ values: TensorView, _ entries: CacheEntries,
    _ output: MutableTensorView, _ logSumExp: UnsafeMutableBufferPointer<Float>?
  ) throws(AttentionError) {
    let count = entries.keyCount(of: sequence)
    let one = try problem.sequence(length: count)
    let plan = try CPUPlan(one, threads: threads)
    let statistics = problem.queryHeads * problem.queries
    let own = logSumExp.map {
      UnsafeMutableBufferPointer(rebasing: $0[sequence * statistics..<(sequence + 1) * statistics])
    }
    let q = TensorView(
      base: queries.row(batch: sequence, head: 0, token: 0), scalarType: problem.scalarType, shape: one.queryShape,
      strides: queries.strides)
    let o = MutableTensorView(
      base: output.row(batch: sequence, head: 0, token: 0), scalarType: problem.scalarType, shape: one.outputShape,
      strides: output.strides)
    let first = entries.leftPadding?[sequence] ?? 0
    switch problem.cache {
    case .contiguous:
      let place = entries.batchIndex?[sequence] ?? sequence
      func view(_ cache: TensorView, _ shape: TensorShape) -> TensorView {
        // Without a key there is no row to begin at.
        TensorView(
          base: count == 0 ? cache.base : cache.row(batch: place, head: 0, token: first),
          scalarType: problem.scalarType, shape: shape, strides: cache.strides)
      }
      try plan.run(
        queries: q, keys: view(keys, one.keyShape), values: view(values, one.valueShape), output: o, logSumExp: own)
    case .paged(_, let pageSize, _):
      let pages = entries.pageTable![sequence]
      func gather(_ cache: TensorView, _ shape: TensorShape) -> Tensor {
        Tensor(shape: shape, scalarType: problem.scalarType) { destination in
          for h in 0..<shape.heads {
            for n in 0..<shape.length {
              let row = first + n
              destination.row(batch: 0, head: h, token: n).copyMemory(
                from: cache.row(batch: pages[row / pageSize], head: h, token: row % pageSize),
                byteCount: shape.dimension * problem.scalarType.byteCount)
            }
          }
        }
      }
      let (k, v) = (gather(keys, one.keyShape), gather(values, one.valueShape))
      try k.withView { (k) throws(AttentionError) in
        try v.withView { (v) throws(AttentionError) in
          try plan.run(queries: q, keys: k, values: v, output: o, logSumExp: own)
        }
      }
    }
  }

  // MARK: - On a GPU

  private func run(
    on gpu: GPU, _ queries: TensorView, _ keys: TensorView, _ values: TensorView, _ entries: CacheEntries,
    _ output: MutableTensorView, _ logSumExp: UnsafeMutableBufferPointer<Float>?
  ) throws(AttentionError) {
    func upload(_ numbers: [Int]?) throws(AttentionError) -> GPUBuffer? {
      guard let numbers, !numbers.isEmpty else { return nil }
      let words = numbers.map { Int32(clamping: $0) }
      let buffer = try GPUBuffer(byteCount: words.count * 4, on: gpu)
      try words.withUnsafeBufferPointer { (words) throws(AttentionError) in
        try buffer.copy(from: UnsafeRawBufferPointer(words))
      }
      return buffer
    }
    let (q, k, v) = (
      try HostCopy.upload(queries, to: gpu), try HostCopy.upload(keys, to: gpu), try HostCopy.upload(values, to: gpu)
    )
    var table: [Int]?
    if case .paged(_, _, let perSequence) = problem.cache {
      table = entries.pageTable!.flatMap { list in (0..<perSequence).map { $0 < list.count ? list[$0] : 0 } }
    }
    let (lengths, index) = (try upload(entries.lengths), try upload(entries.batchIndex))
    let (padding, pages) = (try upload(entries.leftPadding), try upload(table))
    let o = try GPUBuffer(byteCount: problem.outputShape.elementCount * problem.scalarType.byteCount, on: gpu)
    let statistics = try GPUBuffer(byteCount: problem.logSumExpCount * 4, on: gpu)
    let workspace = try makeWorkspace()
    let layout = HostCopy.layout(of: output.readOnly) ?? .bhnd
    // Freed in the stream's order, but not before the work is in it.
    defer { withExtendedLifetime((q, k, v, o, statistics, workspace, lengths, index, padding, pages)) {} }
    try launch(
      DeviceCacheTensors(
        queries: q.view, keys: k.view, values: v.view,
        output: DeviceTensorView(
          address: o.address, scalarType: problem.scalarType, shape: problem.outputShape, layout: layout),
        lengths: lengths?.address ?? 0, logSumExp: statistics.address, batchIndex: index?.address ?? 0,
        leftPadding: padding?.address ?? 0, pageTable: pages?.address ?? 0), workspace: workspace.address)
    try HostCopy.download(o, layout, to: output)
    if let logSumExp { try statistics.copy(to: UnsafeMutableRawBufferPointer(logSumExp)) }
  }
}
