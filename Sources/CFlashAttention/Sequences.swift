internal import FlashAttention
public import FlashAttentionHeader

private let plans = Plans<CachedAttentionProblem, CachedAttentionPlan>()

extension fa_sequences_params {
  fileprivate static func read(
    _ pointer: UnsafePointer<fa_sequences_params>?
  ) throws(AttentionError) -> fa_sequences_params {
    try parameters(pointer, fa_sequences_params())
  }

  /// What the numbers describe.
  var problem: CachedAttentionProblem {
    get throws(AttentionError) {
      let kind: CachedAttentionProblem.Cache
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
      var new: CachedAttentionProblem.NewKeys?
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
      return try CachedAttentionProblem(
        batch: Int(batch), queries: Int(queries), packedQueries: query_starts == nil ? nil : Int(total_queries),
        queryHeads: Int(query_heads), keyValueHeads: Int(key_value_heads), dimension: Int(dimension),
        valueDimension: value_dimension == 0 ? nil : Int(value_dimension), cache: kind,
        hasLeftPadding: left_padding != nil, newKeys: new, scalarType: try ScalarType("type", code: type),
        queryType: try ScalarType("query type", code: query_type),
        cacheType: try ScalarType("cache type", code: cache_type), mask: try scores.attentionMask,
        scale: scores.attentionScale, softcap: scores.attentionSoftcap,
        keysPerSplit: keys_per_split == 0 ? nil : Int(keys_per_split))
    }
  }

  fileprivate var plan: CachedAttentionPlan {
    get throws(AttentionError) {
      let (device, ordinal, problem) = (try Device(code: device), Int(ordinal), try problem)
      return try plans.plan(problem, device, ordinal) { () throws(AttentionError) in
        try CachedAttentionPlan(problem, device: device, ordinal: ordinal)
      }
    }
  }

  fileprivate func launch(_ plan: CachedAttentionPlan) throws(AttentionError) {
    let problem = plan.problem
    if workspace_size < plan.workspaceByteCount {
      throw .unsupported(
        "The workspace has \(workspace_size) bytes; these parameters need \(plan.workspaceByteCount), zero before the first "
          + "call (fa_sequences_workspace).")
    }
    var tensors = DeviceCacheTensors(
      queries: try q.deviceView("queries", problem.queryShape, problem.queryType),
      keys: try k.deviceView("the cached keys", problem.keyShape, problem.cacheType),
      values: try v.deviceView("the cached values", problem.valueShape, problem.cacheType),
      output: try o.deviceView("output", problem.outputShape, problem.scalarType), lengths: UInt64(lengths),
      logSumExp: UInt64(log_sum_exp), batchIndex: UInt64(batch_index), leftPadding: UInt64(left_padding),
      pageTable: UInt64(page_table))
    (tensors.queryStarts, tensors.queryCounts) = (UInt64(query_starts), UInt64(query_counts))
    tensors.keyStarts = UInt64(key_starts)
    tensors.queryScales = UInt64(query_scales)
    (tensors.keyScales, tensors.valueScales) = (UInt64(key_scales), UInt64(value_scales))
    if problem.newKeys != nil {
      var new = DeviceNewKeys(
        keys: try new_k.deviceView("the new keys", problem.newKeyShape, problem.scalarType),
        values: try new_v.deviceView("the new values", problem.newValueShape, problem.scalarType))
      (new.starts, new.positions) = (UInt64(new_key_starts), UInt64(positions))
      (new.cosines, new.sines) = (UInt64(cosines), UInt64(sines))
      tensors.newKeys = new
    }
    if counters != nil && counters_size < plan.counterByteCount {
      throw .unsupported(
        "There are counters of \(counters_size) bytes; these parameters need \(plan.counterByteCount) (fa_counters).")
    }
    try plan.launch(
      tensors, workspace: UInt64(workspace), counters: UInt64(counters), stream: streamHandle(stream))
  }

  fileprivate func run(_ plan: CachedAttentionPlan) throws(AttentionError) {
    let problem = plan.problem
    let count = problem.batch
    func scales(_ list: UnsafePointer<Float>?) -> [Float]? {
      list.map { Array(UnsafeBufferPointer(start: $0, count: count * problem.keyValueHeads)) }
    }
    var entries = CacheEntries(
      lengths: numbers(lengths, count), batchIndex: numbers(batch_index, count),
      leftPadding: numbers(left_padding, count),
      queryStarts: numbers(query_starts, count + 1), keyStarts: numbers(key_starts, count + 1),
      queryScales: scales(query_scales), keyScales: scales(key_scales), valueScales: scales(value_scales))
    entries.queryCounts = numbers(query_counts, count)
    if let page_table, case .paged(_, _, let perSequence) = problem.cache {
      entries.pageTable = (0..<count).map { b in (0..<perSequence).map { Int(page_table[b * perSequence + $0]) } }
    }
    let queries = try q.view("queries", problem.queryShape, problem.queryType).readOnly
    let keys = try k.view("the cached keys", problem.keyShape, problem.cacheType)
    let values = try v.view("the cached values", problem.valueShape, problem.cacheType)
    let output = try o.view("output", problem.outputShape, problem.scalarType)
    let statistics = log_sum_exp.map { UnsafeMutableBufferPointer(start: $0, count: problem.logSumExpCount) }
    guard let newKeys = problem.newKeys else {
      return try plan.run(
        queries: queries, keys: keys.readOnly, values: values.readOnly, entries: entries, output: output,
        logSumExp: statistics)
    }
    var new = NewKeyViews(
      keys: try new_k.view("the new keys", problem.newKeyShape, problem.scalarType).readOnly,
      values: try new_v.view("the new values", problem.newValueShape, problem.scalarType).readOnly,
      starts: numbers(new_key_starts, count + 1), positions: numbers(positions, count))
    if let rotary = newKeys.rotary, let cosines, let sines {
      let shape = TensorShape(batch: 1, heads: 1, length: rotary.positions, dimension: rotary.dimension / 2)
      func table(_ base: UnsafeRawPointer) -> TensorView {
        TensorView(base: base, scalarType: problem.scalarType, shape: shape, layout: .bnhd)
      }
      new.rotary = (table(cosines), table(sines))
    }
    try plan.run(
      queries: queries, keys: keys, values: values, appending: new, entries: entries, output: output,
      logSumExp: statistics)
  }
}

/// `fa_sequences` of `flash_attention.h`, which describes it.
@c @implementation public func fa_sequences(_ params: UnsafePointer<fa_sequences_params>!) -> fa_status {
  status { () throws(AttentionError) in
    let p = try fa_sequences_params.read(params)
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
