public import Attention
internal import GPURuntime
internal import Synchronization

extension KVCache {
  /// Appends keys and values to sequences and attends over all that they then have.
  ///
  /// - Parameters:
  ///   - queries: `[B, H_q, s_q, D]`, a batch entry for each sequence; with `counts`, `[1, H_q, total, D]`.
  ///   - keys: `[B, H_kv, s_new, D]`, with `counts` `[1, H_kv, total, D]`; nil to append nothing.
  ///   - values: the same with D_v.
  ///   - sequences: each once where keys are appended.
  ///   - counts: the queries of each sequence, and its new keys where there are some, one sequence behind the other:
  ///     prompts of different lengths in one call. nil where all have as many.
  ///   - mask: which keys a query sees, aligned to the last key.
  ///   - scale: nil for `1/sqrt(D)`.
  ///   - softcap: c of `c * tanh(scale * s / c)`; nil for none.
  ///   - sinks: `[H_q]`, a logit for each query head that is in the softmax's denominator and has no value; nil for none.
  ///   - ranges: keys that queries see by ranges, counted from a sequence's first; with `counts`, given ones are those of all queries
  ///     one behind the other. nil for none.
  ///   - rotary: an embedding and its tables `[1, 1, positions, dimension / 2]`, which turn queries and new keys.
  /// - Returns: the output in the shape and layout of the queries, with D_v, and its log-sum-exps, `[B, H_q, s_q]` or
  ///   `[H_q, total]`.
  /// - Throws: `AttentionError`: of tensors that do not fit, or a cache that is full; then nothing was appended.
  public func attend(
    queries: Tensor, keys: Tensor? = nil, values: Tensor? = nil, sequences: [Sequence], counts: [Int]? = nil,
    mask: AttentionMask = .causal, scale: Double? = nil, softcap: Double? = nil, sinks: [Float]? = nil,
    ranges: KeyRanges? = nil, rotary: (RotaryEmbedding, cosines: Tensor, sines: Tensor)? = nil
  ) throws(AttentionError) -> AttentionResult {
    try CacheEntries<HostMemory>.check(sinks, heads: queries.shape.heads)
    let call = try Call(
      sequences, counts, queries: queries.shape, keys: keys?.shape, values: values?.shape,
      scores: Call.Scores(
        mask: mask, scale: scale, softcap: softcap, sinkType: sinks == nil ? nil : .f32, ranges: ranges?.form),
      rotary: rotary?.0)
    // Before anything is taken, and before a GPU reads a list that is too short.
    try CacheEntries<HostMemory>(ranges: ranges?.numbers).checkRanges(try plan(call).problem)
    switch memory {
    case .host(let keyMemory, let valueMemory):
      return try attend(
        call, queries, keys, values, sinks, ranges?.numbers, rotary, keyMemory.base, valueMemory.base)
    case .gpu(let gpu, _, _):
      let upload = Upload(to: gpu)
      defer { withExtendedLifetime(upload) {} }
      func tensor(_ tensor: Tensor) throws(AttentionError) -> DeviceTensorView {
        try tensor.withView { (view) throws(AttentionError) -> DeviceTensorView in try upload.tensor(view).view }
      }
      var outputShape = queries.shape
      outputShape.dimension = valueDimension
      guard let count = outputShape.checkedElementCount else {
        throw .tooLarge(tensor: "The output", shape: outputShape)
      }
      let o = try upload.room(count * scalarType.byteCount)
      var statistics = [Float](
        repeating: 0, count: outputShape.batch * outputShape.heads * outputShape.length)
      let lse = try upload.room(statistics.count * 4)
      var tables: (RotaryEmbedding, cosines: DeviceTensorView, sines: DeviceTensorView)?
      if let (embedding, cosines, sines) = rotary { tables = (embedding, try tensor(cosines), try tensor(sines)) }
      var new: NewKeyTensors<GPUMemory>?
      if let keys, let values { new = NewKeyTensors(keys: try tensor(keys), values: try tensor(values)) }
      if let tables { new?.rotary = (tables.cosines, tables.sines) }
      try enqueue(
        call, queries: try tensor(queries), new,
        output: DeviceTensorView(
          address: o.address, scalarType: scalarType, shape: outputShape, layout: queries.layout),
        logSumExp: lse.address, sinks: try upload.list(sinks), ranges: try upload.numbers(ranges?.numbers), upload,
        on: gpu)
      let output = try Tensor(shape: outputShape, scalarType: scalarType, layout: queries.layout) {
        (view) throws(AttentionError) in
        try o.copy(to: UnsafeMutableRawBufferPointer(start: view.base, count: count * scalarType.byteCount))
      }
      try statistics.withUnsafeMutableBufferPointer { (floats) throws(AttentionError) in
        try lse.copy(to: UnsafeMutableRawBufferPointer(floats))
      }
      return AttentionResult(output: output, logSumExp: statistics)
    }
  }

  /// The same on tensors in the memory of the cache's GPU: puts the work into the library's own stream and returns.
  ///
  /// - Parameters:
  ///   - queries: as the other, in the GPU's memory.
  ///   - keys: nil to append nothing.
  ///   - values: the same with D_v.
  ///   - output: in the shape of the queries, with D_v; overwritten.
  ///   - logSumExp: address of contiguous f32; nil where it is not needed.
  ///   - sequences: each once where keys are appended.
  ///   - counts: the queries, and new keys, of each sequence, where they are packed; nil where all have as many.
  ///   - mask: which keys a query sees, aligned to the last key.
  ///   - scale: nil for `1/sqrt(D)`.
  ///   - softcap: nil for none.
  ///   - sinks: the address of `[H_q]`, and of which type: f32, f16 or bf16.
  ///   - ranges: which, and the address of what a call gives of them, as in `CacheEntries.ranges`.
  ///   - rotary: an embedding and its tables; nil for none.
  /// - Throws: as the other; `AttentionError.deviceUnavailable` where the cache is not on a GPU.
  public func attend(
    queries: DeviceTensorView, keys: DeviceTensorView? = nil, values: DeviceTensorView? = nil,
    output: DeviceTensorView, logSumExp: UInt64? = nil, sequences: [Sequence], counts: [Int]? = nil,
    mask: AttentionMask = .causal, scale: Double? = nil, softcap: Double? = nil,
    sinks: (address: UInt64, type: ScalarType)? = nil, ranges: (form: KeyRanges.Form, address: UInt64?)? = nil,
    rotary: (RotaryEmbedding, cosines: DeviceTensorView, sines: DeviceTensorView)? = nil
  ) throws(AttentionError) {
    guard let gpu else {
      throw .deviceUnavailable(device: "GPU", reason: "the cache is in the host's memory; make it with device: .gpu.")
    }
    let call = try Call(
      sequences, counts, queries: queries.shape, keys: keys?.shape, values: values?.shape,
      scores: Call.Scores(mask: mask, scale: scale, softcap: softcap, sinkType: sinks?.type, ranges: ranges?.form),
      rotary: rotary?.0)
    var new: NewKeyTensors<GPUMemory>?
    if let keys, let values { new = NewKeyTensors(keys: keys, values: values) }
    if let rotary { new?.rotary = (rotary.cosines, rotary.sines) }
    let upload = Upload(to: gpu)
    defer { withExtendedLifetime(upload) {} }
    try enqueue(
      call, queries: queries, new, output: output, logSumExp: logSumExp, sinks: sinks?.address,
      ranges: ranges?.address, upload, on: gpu)
  }

  // MARK: - A call

  /// What is asked of a cache, but for where the tensors are.
  fileprivate struct Call {
    /// What is done to scores.
    struct Scores {
      let mask: AttentionMask
      let scale, softcap: Double?
      let sinkType: ScalarType?
      let ranges: KeyRanges.Form?
    }

    let sequences: [Sequence]
    let queryHeads: Int
    /// Queries of each sequence, and whether they are packed.
    let counts: [Int]
    let isPacked: Bool
    /// Keys that are appended to each; nil for none.
    let newCounts: [Int]?
    let scores: Scores
    let rotary: RotaryEmbedding?

    init(
      _ sequences: [Sequence], _ counts: [Int]?, queries: TensorShape, keys: TensorShape?, values: TensorShape?,
      scores: Scores, rotary: RotaryEmbedding?
    ) throws(AttentionError) {
      (self.sequences, self.scores, self.rotary) = (sequences, scores, rotary)
      (queryHeads, isPacked) = (queries.heads, counts != nil)
      if (keys == nil) != (values == nil) {
        throw .unsupported("New keys come with new values; give both, or none.")
      }
      if rotary != nil && keys == nil {
        throw .unsupported("A rotary embedding turns new keys and queries; give new keys and values, or leave it out.")
      }
      if let counts {
        if counts.count != sequences.count {
          throw .cacheEntries("counts of queries", count: counts.count, batch: sequences.count)
        }
        if let negative = counts.first(where: { $0 < 0 }) {
          throw .extent(tensor: "the queries", axis: "length", value: negative)
        }
        for (name, shape) in [("queries", queries), ("the new keys", keys), ("the new values", values)] {
          guard let shape else { continue }
          // Of numbers of any size.
          let total = counts.reduce(into: Int?(0)) { sum, count in
            let (next, overflow) = (sum ?? 0).addingReportingOverflow(count)
            sum = overflow ? nil : sum == nil ? nil : next
          }
          if shape.batch != 1 {
            throw .mismatch(
              axis: "batch", first: name, firstExtent: shape.batch, second: "a tensor with counts", secondExtent: 1)
          }
          if shape.length != total {
            throw .mismatch(
              axis: "length", first: name, firstExtent: shape.length, second: "what the counts add up to",
              secondExtent: total ?? .max)
          }
        }
        (self.counts, newCounts) = (counts, keys == nil ? nil : counts)
      } else {
        if queries.batch != sequences.count {
          throw .mismatch(
            axis: "batch", first: "queries", firstExtent: queries.batch, second: "the list of sequences",
            secondExtent: sequences.count)
        }
        self.counts = sequences.map { _ in queries.length }
        newCounts = keys.map { keys in sequences.map { _ in keys.length } }
        longest = queries.length
        longestNew = keys?.length
        return
      }
      longest = self.counts.max() ?? 0
      longestNew = newCounts.map { $0.max() ?? 0 }
    }

    /// Queries, and new keys, of the longest sequence.
    let longest: Int
    let longestNew: Int?

    var reservations: [(sequence: Sequence, keys: Int)] {
      zip(sequences, newCounts ?? sequences.map { _ in 0 }).map { ($0, $1) }
    }

    /// Where sequences begin among packed ones; nil where they are not packed.
    var starts: [Int]? { isPacked ? counts.reduce(into: [0]) { $0.append($0.last! + $1) } : nil }
  }

  /// What a call needs: the problem, and its plan with the kernels ready. Page tables are as wide as the longest
  /// sequence needs, but for a power of two, so that few plans serve a sequence that grows.
  private func plan(_ call: Call) throws(AttentionError) -> AttentionPlan {
    var storage = Self.storage(layout, pagesPerSequence: 1)
    if case .paged(_, let pageSize) = layout {
      let (longest, limit) = try allocator.withLock { (allocator) throws(AttentionError) in
        var longest = 0
        for (sequence, new) in call.reservations {
          let (length, overflow) = try allocator.length(of: sequence).addingReportingOverflow(max(new, 0))
          longest = max(longest, overflow ? .max : length)
        }
        return (longest, allocator.pagesPerSequence)
      }
      var width = 1
      while width < limit && width * pageSize < longest { width = min(2 * width, limit) }
      storage = Self.storage(layout, pagesPerSequence: min(width, limit))
    }
    let total = call.isPacked ? call.counts.reduce(0, +) : nil
    var problem = try AttentionProblem(
      batch: call.sequences.count, queries: call.longest, packedQueries: total, queryHeads: call.queryHeads,
      keyValueHeads: keyValueHeads, dimension: dimension, valueDimension: valueDimension, keys: storage,
      newKeys: call.longestNew.map { .init($0, packedTotal: total, rotary: call.rotary) }, scalarType: scalarType,
      cacheType: cacheType, mask: call.scores.mask, scale: call.scores.scale, softcap: call.scores.softcap)
    (problem.sinkType, problem.ranges) = (call.scores.sinkType, call.scores.ranges)
    if let made = plans.withLock({ $0[problem] }) { return made }
    let plan = try AttentionPlan(problem, device: gpu.map { .gpu($0.ordinal) } ?? .cpu)
    try plan.prepare()
    plans.withLock { plans in
      // More than a program has shapes; one that has more begins again.
      if plans.count >= 1024 { plans.removeAll() }
      plans[problem] = plan
    }
    return plan
  }

  /// Takes pages, and says where the keys of each sequence are; nil where they have grown out of the plan meanwhile.
  private func reserve(
    _ call: Call, _ plan: AttentionPlan
  ) throws(AttentionError) -> CacheEntries<HostMemory>? {
    let lengths = try allocator.withLock { (allocator) throws(AttentionError) in
      var lengths = [Int]()
      for sequence in call.sequences { lengths.append(try allocator.length(of: sequence)) }
      return lengths
    }
    var entries = CacheEntries<HostMemory>(lengths: lengths)
    entries.queryStarts = call.starts
    try entries.checkPositions(plan.problem, newStarts: call.starts, nil)
    try reserve(call.reservations)
    let tables = try allocator.withLock { (allocator) throws(AttentionError) in
      var tables = [[Int]]()
      for sequence in call.sequences { tables.append(try allocator.pages(of: sequence)) }
      return tables
    }
    guard let pages = plan.problem.pages else {
      entries.batchIndex = tables.map { $0.first ?? 0 }
      return entries
    }
    for (length, new) in zip(lengths, call.reservations) where length + new.keys > pages.size * pages.perSequence {
      return nil
    }
    // Pages that are reserved for later are not named.
    entries.pageTable = tables.map { Array($0.prefix(pages.perSequence)) }
    return entries
  }

  private func advance(_ call: Call) throws(AttentionError) {
    try allocator.withLock { (allocator) throws(AttentionError) in
      for (sequence, new) in call.reservations { try allocator.advance(sequence, by: new) }
    }
  }

  // MARK: - The two devices

  private func attend(
    _ call: Call, _ queries: Tensor, _ keys: Tensor?, _ values: Tensor?, _ sinks: [Float]?,
    _ ranges: [Int]?, _ rotary: (RotaryEmbedding, cosines: Tensor, sines: Tensor)?, _ keyBase: UnsafeMutableRawPointer,
    _ valueBase: UnsafeMutableRawPointer
  ) throws(AttentionError) -> AttentionResult {
    while true {
      let plan = try plan(call)
      let problem = plan.problem
      let k = MutableTensorView(base: keyBase, scalarType: cacheType, shape: problem.keyShape, layout: .bnhd)
      let v = MutableTensorView(base: valueBase, scalarType: cacheType, shape: problem.valueShape, layout: .bnhd)
      var statistics = [Float](repeating: 0, count: problem.logSumExpCount)
      var isDone = false
      let output = try Tensor(shape: problem.outputShape, scalarType: scalarType, layout: queries.layout) {
        (o) throws(AttentionError) in
        try statistics.withUnsafeMutableBufferPointer { (lse) throws(AttentionError) in
          try withViews(queries, keys, values, rotary) { (q, new) throws(AttentionError) in
            var new = new
            new?.starts = call.starts
            var tensors = Self.tensors(q, k, v, new, o, lse)
            // What is wrong with them shows before pages are taken.
            try tensors.checkWithoutLists(problem)
            isDone = try work.withLock { (_) throws(AttentionError) in
              guard let entries = try reserve(call, plan) else { return false }
              tensors.entries = entries
              (tensors.entries.sinks, tensors.entries.ranges) = (sinks, ranges)
              try plan.run(tensors)
              try advance(call)
              return true
            }
          }
        }
      }
      if isDone { return AttentionResult(output: output, logSumExp: statistics) }
    }
  }

  private static func tensors<Memory: TensorMemory>(
    _ queries: Memory.View, _ keys: Memory.Output, _ values: Memory.Output, _ new: NewKeyTensors<Memory>?,
    _ output: Memory.Output, _ logSumExp: Memory.Statistics?
  ) -> AttentionTensors<Memory> {
    let entries = CacheEntries<Memory>()
    guard let new else {
      return AttentionTensors(
        queries: queries, keys: Memory.readOnly(keys), values: Memory.readOnly(values), output: output,
        logSumExp: logSumExp, entries: entries)
    }
    return AttentionTensors(
      queries: queries, keys: keys, values: values, appending: new, output: output, logSumExp: logSumExp,
      entries: entries)
  }

  private func withViews(
    _ queries: Tensor, _ keys: Tensor?, _ values: Tensor?,
    _ rotary: (RotaryEmbedding, cosines: Tensor, sines: Tensor)?,
    _ body: (TensorView, NewKeyTensors<HostMemory>?) throws(AttentionError) -> Void
  ) throws(AttentionError) {
    try queries.withView { (q) throws(AttentionError) in
      guard let keys, let values else { return try body(q, nil) }
      try keys.withView { (k) throws(AttentionError) in
        try values.withView { (v) throws(AttentionError) in
          guard let rotary else { return try body(q, NewKeyTensors(keys: k, values: v)) }
          try rotary.cosines.withView { (cosines) throws(AttentionError) in
            try rotary.sines.withView { (sines) throws(AttentionError) in
              try body(q, NewKeyTensors(keys: k, values: v, rotary: (cosines, sines)))
            }
          }
        }
      }
    }
  }

  /// Puts a call into the library's stream.
  private func enqueue(
    _ call: Call, queries: DeviceTensorView, _ new: NewKeyTensors<GPUMemory>?, output: DeviceTensorView,
    logSumExp: UInt64?, sinks: UInt64?, ranges: UInt64?, _ upload: Upload, on gpu: GPU
  ) throws(AttentionError) {
    guard case .gpu(_, let keyBuffer, let valueBuffer) = memory else { return }
    var new = new
    let starts = try upload.numbers(call.starts)
    new?.starts = starts
    while true {
      let plan = try plan(call)
      let problem = plan.problem
      let keys = DeviceTensorView(
        address: keyBuffer.address, scalarType: cacheType, shape: problem.keyShape, layout: .bnhd)
      let values = DeviceTensorView(
        address: valueBuffer.address, scalarType: cacheType, shape: problem.valueShape, layout: .bnhd)
      var tensors = Self.tensors(queries, keys, values, new, output, logSumExp)
      // What is wrong with them shows before pages are taken.
      try tensors.checkWithoutLists(problem)
      let isDone = try work.withLock { (work) throws(AttentionError) in
        guard let entries = try reserve(call, plan) else { return false }
        tensors.entries = CacheEntries<GPUMemory>(
          lengths: try upload.numbers(entries.lengths), batchIndex: try upload.numbers(entries.batchIndex),
          queryStarts: starts, sinks: sinks, ranges: ranges)
        if let pages = problem.pages, let lists = entries.pageTable {
          tensors.entries.pageTable = try Self.upload(lists, width: pages.perSequence, &work, on: gpu)
        }
        let workspace = try Self.workspace(of: plan, &work)
        try plan.launch(tensors, workspace: workspace?.address)
        withExtendedLifetime(workspace) {}
        try advance(call)
        return true
      }
      if isDone { return }
    }
  }

  /// The page tables of a call, of which those of the call before are there already: one copy of what lies between the
  /// first and the last word that has changed.
  private static func upload(
    _ lists: [[Int]], width: Int, _ work: inout Work, on gpu: GPU
  ) throws(AttentionError) -> UInt64 {
    let words = lists.flatMap { list in (0..<width).map { $0 < list.count ? Int32(clamping: list[$0]) : 0 } }
    var changed = 0..<words.count
    let buffer: GPUBuffer
    if let known = work.table, known.words.count == words.count {
      buffer = known.buffer
      let first = zip(words, known.words).enumerated().first { $0.element.0 != $0.element.1 }?.offset ?? words.count
      let last = words.indices.last { words[$0] != known.words[$0] } ?? first - 1
      changed = first..<last + 1
    } else {
      buffer = try GPUBuffer(byteCount: max(words.count * 4, 16), on: gpu)
    }
    work.table = (words, buffer)
    if !changed.isEmpty {
      try words[changed].withUnsafeBufferPointer { (part) throws(AttentionError) in
        try buffer.copy(from: UnsafeRawBufferPointer(part), at: changed.lowerBound * 4)
      }
    }
    return buffer.address
  }

  /// Memory that a call works in. Plans with more counters than have a place of their own get some for this call.
  private static func workspace(of plan: AttentionPlan, _ work: inout Work) throws(AttentionError) -> GPUBuffer? {
    if plan.workspaceByteCount == 0 { return nil }
    if !plan.sharesWorkspaces { return try plan.makeWorkspace() }
    if let made = work.workspace, made.byteCount >= plan.workspaceByteCount { return made }
    let made = try plan.makeWorkspace()
    work.workspace = made
    return made
  }
}
