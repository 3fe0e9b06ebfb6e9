internal import CPUAttention
internal import CUDADriver

extension CachedAttentionPlan {
  /// Computes a call that brings no keys on borrowed memory of the host. On the CPU nothing is copied but pages, e4m3 numbers and,
  /// for parts that are left, 16-bit numbers; for a GPU, everything is copied there and the result back: for tests and small things.
  ///
  /// - Parameters:
  ///   - queries: `[B, H_q, s_q, D]`, packed `[1, H_q, total, D]`; strides of any kind, unit stride along D.
  ///   - keys: `[sequences, H_kv, capacity, D]`, `[pages, H_kv, page size, D]` or packed `[1, H_kv, total, D]`.
  ///   - values: the same with D_v.
  ///   - entries: where the keys of each sequence are.
  ///   - output: `[B, H_q, s_q, D_v]`, packed `[1, H_q, total, D_v]`; overwritten where there are queries. Of parts that are left
  ///     `[S B, H_q, s_q, D_v]` f32, where a part without keys may hold anything; on the CPU the first part has all keys.
  ///   - logSumExp: `[B, H_q, s_q]`, packed `[H_q, total]`, contiguous f32, natural logarithm, scale included; nil where it is
  ///     not needed. Of parts `[S, B, H_q, s_q]`, -inf in those without keys, and needed.
  /// - Throws: `AttentionError` where a view is not what the plan was made for, a number leads out of the cache, or the GPU
  ///   fails.
  public func run(
    queries: TensorView, keys: TensorView, values: TensorView, entries: CacheEntries, output: MutableTensorView,
    logSumExp: UnsafeMutableBufferPointer<Float>? = nil
  ) throws(AttentionError) {
    if problem.newKeys != nil { throw .notInThePlan(tensor: "new key", isMissing: true) }
    try check(queries, keys, values, nil, entries, output, logSumExp)
    if problem.logSumExpCount == 0 { return }
    if gpu != nil {
      try runOnGPU(queries, keys, values, nil, entries, output, logSumExp)
    } else {
      try HostSequences(self, queries: queries, keys: keys, values: values, entries: entries)
        .run(output: output, logSumExp: logSumExp)
    }
  }

  /// The same for a call that brings keys: they are written to the cache, and then count as keys.
  public func run(
    queries: TensorView, keys: MutableTensorView, values: MutableTensorView, appending new: NewKeyViews,
    entries: CacheEntries, output: MutableTensorView, logSumExp: UnsafeMutableBufferPointer<Float>? = nil
  ) throws(AttentionError) {
    guard let newKeys = problem.newKeys else { throw .notInThePlan(tensor: "new key", isMissing: false) }
    try check(queries, keys.readOnly, values.readOnly, new, entries, output, logSumExp)
    if problem.batch == 0 { return }
    if gpu != nil {
      try runOnGPU(queries, keys.readOnly, values.readOnly, new, entries, output, logSumExp)
      return
    }
    let append = HostAppend(problem, newKeys, new, entries)
    append.append(to: keys, values)
    if problem.logSumExpCount == 0 { return }
    func attend(_ queries: TensorView) throws(AttentionError) {
      try HostSequences(
        self, queries: queries, keys: keys.readOnly, values: values.readOnly, entries: append.entriesAfterwards
      ).run(output: output, logSumExp: logSumExp)
    }
    guard let turned = try append.turned(queries) else { return try attend(queries) }
    try turned.withView { (view) throws(AttentionError) in try attend(view) }
  }

  private func check(
    _ queries: TensorView, _ keys: TensorView, _ values: TensorView, _ new: NewKeyViews?, _ entries: CacheEntries,
    _ output: MutableTensorView, _ logSumExp: UnsafeMutableBufferPointer<Float>?
  ) throws(AttentionError) {
    try queries.check("queries", isFor: problem.queryShape, problem.queryType)
    try keys.check("the cached keys", isFor: problem.keyShape, problem.cacheType, isWritten: new != nil)
    try values.check("the cached values", isFor: problem.valueShape, problem.cacheType, isWritten: new != nil)
    try output.readOnly.check("output", isFor: problem.outputShape, problem.outputType, isWritten: true)
    if let new, let newKeys = problem.newKeys {
      try new.keys.check("the new keys", isFor: problem.newKeyShape, problem.scalarType)
      try new.values.check("the new values", isFor: problem.newValueShape, problem.scalarType)
      for (written, cache) in [("the cached keys", keys), ("the cached values", values)] {
        for (read, view) in [("the new keys", new.keys), ("the new values", new.values), ("queries", queries)]
        where cache.sharesMemory(with: view) {
          throw .sharedMemory(written: written, read: read)
        }
      }
      if (new.rotary != nil) != (newKeys.rotary != nil) {
        throw .notInThePlan(tensor: "rotary embedding", isMissing: new.rotary == nil)
      }
      if let rotary = newKeys.rotary, let tables = new.rotary {
        let shape = TensorShape(batch: 1, heads: 1, length: rotary.positions, dimension: rotary.dimension / 2)
        try tables.cosines.check("the cosines", isFor: shape, problem.scalarType)
        try tables.sines.check("the sines", isFor: shape, problem.scalarType)
      }
      if let positions = new.positions, positions.count != problem.batch {
        throw .cacheEntries("positions", count: positions.count, batch: problem.batch)
      }
    }
    if problem.leavesParts && logSumExp == nil { throw .notInThePlan(tensor: "log-sum-exp", isMissing: true) }
    if let logSumExp, logSumExp.count != problem.logSumExpCount {
      throw .logSumExpCount(given: logSumExp.count, needed: problem.logSumExpCount)
    }
    try entries.check(problem, newStarts: new?.starts)
    if let new, let rotary = problem.newKeys?.rotary { try check(rotary, new, entries) }
  }

  /// - Throws: where the tables have no row for a position.
  private func check(
    _ rotary: RotaryEmbedding, _ new: NewKeyViews, _ entries: CacheEntries
  ) throws(AttentionError) {
    for b in 0..<problem.batch {
      let newCount = new.starts.map { $0[b + 1] - $0[b] } ?? problem.newKeys?.count ?? 0
      let base = new.positions?[b] ?? entries.rows(of: b)
      for (count, isKey) in [(newCount, true), (entries.queries(of: b, problem).count, false)] where count > 0 {
        for number in [0, count - 1] {
          let position = rotary.position(number, base: base, isKey: isKey, mask: problem.mask)
          if (0..<rotary.positions).contains(position) { continue }
          throw .unsupported(
            "Sequence \(b) reaches position \(position), and the rotary tables have \(rotary.positions) rows; give tables with a "
              + "row for each position from 0 on.")
        }
      }
    }
  }

  // MARK: - On a GPU

  private func runOnGPU(
    _ queries: TensorView, _ keys: TensorView, _ values: TensorView, _ new: NewKeyViews?, _ entries: CacheEntries,
    _ output: MutableTensorView, _ logSumExp: UnsafeMutableBufferPointer<Float>?
  ) throws(AttentionError) {
    guard let gpu else { return }
    // Alive until the results are here.
    var buffers: [GPUBuffer] = []
    func upload<Element: BitwiseCopyable>(_ words: [Element]?) throws(AttentionError) -> UInt64 {
      guard let words, !words.isEmpty else { return 0 }
      let buffer = try GPUBuffer(byteCount: words.count * MemoryLayout<Element>.stride, on: gpu)
      try words.withUnsafeBufferPointer { (words) throws(AttentionError) in
        try buffer.copy(from: UnsafeRawBufferPointer(words))
      }
      buffers.append(buffer)
      return buffer.address
    }
    func numbers(_ list: [Int]?) throws(AttentionError) -> UInt64 { try upload(list?.map { Int32(clamping: $0) }) }
    func upload(_ view: TensorView) throws(AttentionError) -> HostCopy.Uploaded {
      let uploaded = try HostCopy.upload(view, to: gpu)
      buffers.append(uploaded.buffer)
      return uploaded
    }
    func buffer(_ byteCount: Int) throws(AttentionError) -> GPUBuffer {
      let buffer = try GPUBuffer(byteCount: max(byteCount, 16), on: gpu)
      buffers.append(buffer)
      return buffer
    }
    let (q, k, v) = (try upload(queries), try upload(keys), try upload(values))
    let o = try buffer(problem.outputShape.elementCount * problem.outputType.byteCount)
    // Parts without keys are not written, but copied back.
    if problem.leavesParts { try o.fill(0) }
    let statistics = try buffer(problem.logSumExpCount * 4)
    let workspace = try makeWorkspace()
    buffers.append(workspace)
    let layout = HostCopy.layout(of: output.readOnly) ?? .bhnd
    // Freed in the stream's order, but not before the work is in it.
    defer { withExtendedLifetime(buffers) {} }
    var tensors = DeviceCacheTensors(
      queries: q.view, keys: k.view, values: v.view,
      output: DeviceTensorView(
        address: o.address, scalarType: problem.outputType, shape: problem.outputShape, layout: layout),
      lengths: try numbers(entries.lengths), logSumExp: statistics.address, batchIndex: try numbers(entries.batchIndex),
      leftPadding: try numbers(entries.leftPadding))
    if case .paged(_, _, let perSequence) = problem.cache {
      tensors.pageTable = try numbers(
        entries.pageTable!.flatMap { list in (0..<perSequence).map { $0 < list.count ? list[$0] : 0 } })
    }
    tensors.queryCounts = try numbers(entries.queryCounts)
    (tensors.queryStarts, tensors.keyStarts) = (try numbers(entries.queryStarts), try numbers(entries.keyStarts))
    tensors.queryScales = try upload(entries.queryScales)
    (tensors.keyScales, tensors.valueScales) = (try upload(entries.keyScales), try upload(entries.valueScales))
    if let new {
      var places = DeviceNewKeys(keys: try upload(new.keys).view, values: try upload(new.values).view)
      (places.starts, places.positions) = (try numbers(new.starts), try numbers(new.positions))
      if let rotary = new.rotary {
        (places.cosines, places.sines) = (
          try upload(rotary.cosines).view.address, try upload(rotary.sines).view.address
        )
      }
      tensors.newKeys = places
    }
    try launch(tensors, workspace: workspace.address)
    if problem.logSumExpCount > 0 {
      try HostCopy.download(o, layout, to: output)
      if let logSumExp { try statistics.copy(to: UnsafeMutableRawBufferPointer(logSumExp)) }
    }
    if new != nil {
      for (uploaded, view) in [(k, keys), (v, values)] {
        let mutable = MutableTensorView(
          base: UnsafeMutableRawPointer(mutating: view.base), scalarType: view.scalarType, shape: view.shape,
          strides: view.strides)
        try HostCopy.download(uploaded.buffer, HostCopy.layout(of: view) ?? .bhnd, to: mutable)
      }
    }
  }
}
