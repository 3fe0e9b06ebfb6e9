internal import FlashAttention
public import FlashAttentionHeader

extension fa_sequences_params {
  fileprivate static func read(
    _ pointer: UnsafePointer<fa_sequences_params>?
  ) throws(AttentionError) -> fa_sequences_params {
    try parameters(pointer, fa_sequences_params())
  }

  /// What the numbers describe.
  var problem: AttentionProblem {
    get throws(AttentionError) {
      let kind: AttentionProblem.KeyStorage
      switch Int(cache) {
      case Int(FA_CACHE_CONTIGUOUS):
        kind = .contiguous(sequences: Int(cache_batch), capacity: Int(cache_tokens))
      case Int(FA_CACHE_PAGED):
        kind = .paged(
          pages: Int(cache_batch), pageSize: Int(cache_tokens), pagesPerSequence: Int(pages_per_sequence))
      case Int(FA_CACHE_PACKED): kind = .packed(total: Int(cache_tokens), longest: Int(longest))
      default:
        throw .unsupported(
          "The cache is \(cache); it must be FA_CACHE_CONTIGUOUS, FA_CACHE_PAGED or FA_CACHE_PACKED.")
      }
      var new: AttentionProblem.NewKeys?
      if new_k.data != nil || new_v.data != nil || new_keys > 0 {
        let rotary =
          rotary_dimension == 0
          ? nil
          : RotaryEmbedding(
            dimension: Int(rotary_dimension), isInterleaved: rotary_interleaved != 0, positions: Int(rotary_positions))
        new = .init(Int(new_keys), packedTotal: new_key_starts == nil ? nil : Int(total_new_keys), rotary: rotary)
      } else if rotary_dimension != 0 {
        throw .unsupported("A rotary embedding turns new keys and queries; give new_k and new_v, or leave it out.")
      }
      var problem = try AttentionProblem(
        batch: Int(batch), queries: Int(queries), packedQueries: query_starts == nil ? nil : Int(total_queries),
        queryHeads: Int(query_heads), keyValueHeads: Int(key_value_heads), dimension: Int(dimension),
        valueDimension: value_dimension == 0 ? nil : Int(value_dimension), keys: kind,
        hasLeftPadding: left_padding != nil, newKeys: new, scalarType: try ScalarType("type", code: type),
        queryType: try ScalarType("query type", code: query_type),
        cacheType: try ScalarType("cache type", code: cache_type), mask: try scores.attentionMask,
        scale: scores.attentionScale, softcap: scores.attentionSoftcap,
        keysPerSplit: keys_per_split == 0 ? nil : Int(keys_per_split), leavesParts: try isLeavingParts)
      try scores.add(to: &problem, on: device)
      return problem
    }
  }

  private var isLeavingParts: Bool {
    get throws(AttentionError) {
      guard 0...1 ~= leaves_parts else { throw .unsupported("leaves_parts is \(leaves_parts); it must be 0 or 1.") }
      if leaves_parts == 1 && (keys_per_split == 0 || query_starts != nil) {
        throw .unsupported(
          "With leaves_parts, keys_per_split says how long the parts are, and queries are not packed: set keys_per_split, and "
            + "leave out query_starts.")
      }
      return leaves_parts == 1
    }
  }

  fileprivate var plan: AttentionPlan {
    get throws(AttentionError) {
      let device = try Device(code: device, ordinal: ordinal)
      return try AttentionPlan.remembered(try problem, device)
    }
  }

  /// Where everything is in the memory of a GPU.
  func tensors(_ problem: AttentionProblem) throws(AttentionError) -> AttentionTensors<GPUMemory> {
    let entries = CacheEntries<GPUMemory>(
      lengths: address(lengths), batchIndex: address(batch_index), leftPadding: address(left_padding),
      pageTable: address(page_table), queryStarts: address(query_starts), queryCounts: address(query_counts),
      keyStarts: address(key_starts), queryScales: address(query_scales), keyScales: address(key_scales),
      valueScales: address(value_scales), sinks: address(try scores.attentionSinks?.base),
      ranges: address(scores.key_ranges))
    let queries = try q.deviceView("queries", problem.queryShape, problem.queryType)
    let keys = try k.deviceView("the cached keys", problem.keyShape, problem.cacheType)
    let values = try v.deviceView("the cached values", problem.valueShape, problem.cacheType)
    let output = try o.deviceView("output", problem.outputShape, problem.outputType)
    if problem.newKeys == nil {
      return AttentionTensors(
        queries: queries, keys: keys, values: values, output: output, logSumExp: address(log_sum_exp),
        entries: entries)
    }
    return AttentionTensors(
      queries: queries, keys: keys, values: values, appending: try newKeysOnGPU(problem), output: output,
      logSumExp: address(log_sum_exp), entries: entries)
  }

  fileprivate func launch(_ plan: AttentionPlan) throws(AttentionError) {
    let problem = plan.problem
    if workspace_size < plan.workspaceByteCount {
      throw .unsupported(
        "The workspace has \(workspace_size) bytes; these parameters need \(plan.workspaceByteCount), zero before the first "
          + "call (fa_sequences_workspace).")
    }
    if counters != nil && counters_size < plan.counterByteCount {
      throw .unsupported(
        "There are counters of \(counters_size) bytes; these parameters need \(plan.counterByteCount) (fa_counters).")
    }
    try plan.launch(
      try tensors(problem), workspace: address(workspace), counters: address(counters), stream: streamHandle(stream))
  }

  private func newKeysOnGPU(_ problem: AttentionProblem) throws(AttentionError) -> NewKeyTensors<GPUMemory> {
    func table(_ pointer: UnsafeRawPointer?) -> DeviceTensorView? {
      guard let rotary = problem.newKeys?.rotary, let base = address(pointer) else { return nil }
      return DeviceTensorView(
        address: base, scalarType: problem.scalarType, shape: rotary.tableShape, layout: .bnhd)
    }
    var new = NewKeyTensors<GPUMemory>(
      keys: try new_k.deviceView("the new keys", problem.newKeyShape, problem.scalarType),
      values: try new_v.deviceView("the new values", problem.newValueShape, problem.scalarType),
      starts: address(new_key_starts), positions: address(positions))
    if let cosines = table(cosines), let sines = table(sines) { new.rotary = (cosines, sines) }
    return new
  }

  fileprivate func run(_ plan: AttentionPlan) throws(AttentionError) {
    let problem = plan.problem
    let count = problem.batch
    func scales(_ list: UnsafePointer<Float>?) -> [Float]? {
      list.map { Array(UnsafeBufferPointer(start: $0, count: count * problem.keyValueHeads)) }
    }
    var entries = CacheEntries<HostMemory>(
      lengths: numbers(lengths, count), batchIndex: numbers(batch_index, count),
      leftPadding: numbers(left_padding, count), queryStarts: numbers(query_starts, count + 1),
      queryCounts: numbers(query_counts, count), keyStarts: numbers(key_starts, count + 1),
      queryScales: scales(query_scales), keyScales: scales(key_scales), valueScales: scales(value_scales),
      sinks: try scores.attentionSinks?.floats(problem.queryHeads), ranges: scores.rangeNumbers(problem))
    if let page_table, let pages = problem.pages {
      entries.pageTable = (0..<count).map { b in
        (0..<pages.perSequence).map { Int(page_table[b * pages.perSequence + $0]) }
      }
    }
    let queries = try q.view("queries", problem.queryShape, problem.queryType).readOnly
    let keys = try k.view("the cached keys", problem.keyShape, problem.cacheType)
    let values = try v.view("the cached values", problem.valueShape, problem.cacheType)
    let output = try o.view("output", problem.outputShape, problem.outputType)
    let statistics = log_sum_exp.map { UnsafeMutableBufferPointer(start: $0, count: problem.logSumExpCount) }
    guard let newKeys = problem.newKeys else {
      return try plan.run(
        queries: queries, keys: keys.readOnly, values: values.readOnly, output: output, logSumExp: statistics,
        entries: entries)
    }
    var new = NewKeyTensors<HostMemory>(
      keys: try new_k.view("the new keys", problem.newKeyShape, problem.scalarType).readOnly,
      values: try new_v.view("the new values", problem.newValueShape, problem.scalarType).readOnly,
      starts: numbers(new_key_starts, count + 1), positions: numbers(positions, count))
    if let rotary = newKeys.rotary, let cosines, let sines {
      func table(_ base: UnsafeRawPointer) -> TensorView {
        TensorView(base: base, scalarType: problem.scalarType, shape: rotary.tableShape, layout: .bnhd)
      }
      new.rotary = (table(cosines), table(sines))
    }
    try plan.run(
      AttentionTensors(
        queries: queries, keys: keys, values: values, appending: new, output: output, logSumExp: statistics,
        entries: entries))
  }
}

/// `fa_sequences` of `flash_attention.h`, which describes it.
@c @implementation public func fa_sequences(_ params: UnsafePointer<fa_sequences_params>!) -> fa_status {
  status { () throws(AttentionError) in
    let p = try fa_sequences_params.read(params)
    try checkMemory(p.workspace, size: p.workspace_size, "workspace")
    try checkMemory(p.counters, size: p.counters_size, "counters")
    let plan = try p.plan
    if plan.gpu == nil { try p.run(plan) } else { try p.launch(plan) }
  }
}

/// `fa_sequences_prepare` of `flash_attention.h`, which describes it.
@c @implementation public func fa_sequences_prepare(_ params: UnsafePointer<fa_sequences_params>!) -> fa_status {
  status { () throws(AttentionError) in try fa_sequences_params.read(params).plan.prepare() }
}

/// `fa_sequences_workspace` of `flash_attention.h`, which describes it.
@c @implementation public func fa_sequences_workspace(
  _ params: UnsafePointer<fa_sequences_params>!, _ byteCount: UnsafeMutablePointer<Int>!
) -> fa_status {
  status { () throws(AttentionError) in
    guard let byteCount else { throw .unsupported("There is no place for the number of bytes; give its address.") }
    byteCount.pointee = try fa_sequences_params.read(params).plan.workspaceByteCount
  }
}

/// `fa_sequences_counters` of `flash_attention.h`, which describes it.
@c @implementation public func fa_sequences_counters(
  _ params: UnsafePointer<fa_sequences_params>!, _ byteCount: UnsafeMutablePointer<Int>!,
  _ isShared: UnsafeMutablePointer<Int32>!
) -> fa_status {
  status { () throws(AttentionError) in
    guard let byteCount else { throw .unsupported("There is no place for the number of bytes; give its address.") }
    let plan = try fa_sequences_params.read(params).plan
    byteCount.pointee = plan.counterByteCount
    isShared?.pointee = plan.sharesWorkspaces ? 1 : 0
  }
}

/// `fa_counters` of `flash_attention.h`, which describes it.
@c @implementation public func fa_counters(
  _ ordinal: Int32, _ stream: UnsafeMutableRawPointer!, _ size: Int,
  _ counters: UnsafeMutablePointer<UnsafeMutableRawPointer?>!
) -> fa_status {
  status { () throws(AttentionError) in
    guard let counters else { throw .unsupported("There is no place for the address of the counters; give one.") }
    if size < 0 { throw .unsupported("The counters have \(size) bytes; give a size of 0 or more.") }
    let address = try GPU.device(Int(ordinal)).counters(byteCount: size, stream: streamHandle(stream))
    counters.pointee = UnsafeMutableRawPointer(bitPattern: UInt(address))
  }
}

/// `fa_sequences_describe` of `flash_attention.h`, which describes it.
@c @implementation public func fa_sequences_describe(
  _ params: UnsafePointer<fa_sequences_params>!, _ text: UnsafeMutablePointer<CChar>!, _ size: Int
) -> fa_status {
  status { () throws(AttentionError) in
    try write("\(try fa_sequences_params.read(params).plan)", to: text, size: size)
  }
}
