internal import FlashAttention
public import FlashAttentionHeader

extension fa_backward_params {
  fileprivate static func read(
    _ pointer: UnsafePointer<fa_backward_params>?
  ) throws(AttentionError) -> fa_backward_params {
    let params = try parameters(pointer, fa_backward_params())
    if ![Int32(FA_ORDER_FIXED), Int32(FA_ORDER_ANY)].contains(params.order) {
      throw .unsupported("order is \(params.order); it must be FA_ORDER_FIXED or FA_ORDER_ANY.")
    }
    return params
  }

  private var isPacked: Bool { query_starts != nil }

  /// What the numbers describe.
  var problem: AttentionProblem {
    get throws(AttentionError) {
      if isPacked != (key_starts != nil) {
        throw .unsupported("Sequences are packed with both query_starts and key_starts; give both, or neither.")
      }
      if !isPacked && (query_counts != nil || key_counts != nil) {
        throw .unsupported(
          "query_counts and key_counts are of packed sequences; give query_starts and key_starts with them.")
      }
      if !isPacked && (total_queries != 0 || total_keys != 0) {
        throw .unsupported(
          "total_queries and total_keys are of packed sequences; give query_starts and key_starts with them.")
      }
      let width = value_dimension == 0 ? dimension : value_dimension
      let type = try ScalarType("type", code: type)
      if isPacked {
        return try AttentionProblem(
          batch: Int(batch), queries: Int(queries), packedQueries: Int(total_queries), queryHeads: Int(query_heads),
          keyValueHeads: Int(key_value_heads), dimension: Int(dimension), valueDimension: Int(width),
          keys: .packed(total: Int(total_keys), longest: Int(keys)), scalarType: type,
          mask: try scores.attentionMask, scale: scores.attentionScale, softcap: scores.attentionSoftcap)
      }
      func shape(_ heads: Int64, _ length: Int64, _ dimension: Int64) -> TensorShape {
        TensorShape(batch: Int(batch), heads: Int(heads), length: Int(length), dimension: Int(dimension))
      }
      return try AttentionProblem(
        queries: shape(query_heads, queries, dimension), keys: shape(key_value_heads, keys, dimension),
        values: shape(key_value_heads, keys, width), scalarType: type, mask: try scores.attentionMask,
        scale: scores.attentionScale, softcap: scores.attentionSoftcap)
    }
  }

  fileprivate var plan: GradientPlan {
    get throws(AttentionError) {
      var problem = try problem
      try scores.add(to: &problem, on: device)
      problem.gradientOrder = order == Int32(FA_ORDER_ANY) ? .any : .fixed
      return try GradientPlan.remembered(problem, try Device(code: device, ordinal: ordinal))
    }
  }

  /// The tensors of a call in any memory.
  private func tensors<Memory: TensorMemory>(
    _ problem: AttentionProblem, _ logSumExp: Memory.Statistics, _ ofLogSumExp: Memory.Statistics?,
    _ ofSinks: Memory.Statistics?, _ entries: CacheEntries<Memory>,
    _ view: (fa_tensor, String, TensorShape) throws(AttentionError) -> (Memory.View, Memory.Output)
  ) throws(AttentionError) -> GradientTensors<Memory> {
    func gradient(
      _ tensor: fa_tensor, _ name: String, _ shape: TensorShape
    ) throws(AttentionError) -> Memory.Output? {
      tensor.data == nil ? nil : try view(tensor, "the gradient of the \(name)", shape).1
    }
    return GradientTensors<Memory>(
      queries: try view(q, "queries", problem.queryShape).0, keys: try view(k, "keys", problem.keyShape).0,
      values: try view(v, "values", problem.valueShape).0, output: try view(o, "output", problem.outputShape).0,
      logSumExp: logSumExp, outputGradient: try view(d_o, "the gradient of the output", problem.outputShape).0,
      logSumExpGradient: ofLogSumExp, queryGradient: try gradient(dq, "queries", problem.queryShape),
      keyGradient: try gradient(dk, "keys", problem.keyShape),
      valueGradient: try gradient(dv, "values", problem.valueShape), sinkGradient: ofSinks, entries: entries)
  }

  fileprivate func run(_ plan: GradientPlan) throws(AttentionError) {
    let (problem, type) = (plan.problem, plan.problem.scalarType)
    let sinks = try scores.attentionSinks
    if log_sum_exp == nil && problem.logSumExpCount > 0 {
      throw .unsupported("log_sum_exp is NULL; give what the forward pass wrote.")
    }
    if plan.gpu == nil {
      func statistics(_ floats: UnsafePointer<Float>?) -> UnsafeMutableBufferPointer<Float>? {
        // Never written.
        floats.map {
          UnsafeMutableBufferPointer(start: UnsafeMutablePointer(mutating: $0), count: problem.logSumExpCount)
        }
      }
      let entries = CacheEntries<HostMemory>(
        lengths: numbers(key_counts, problem.batch), queryStarts: numbers(query_starts, problem.batch + 1),
        queryCounts: numbers(query_counts, problem.batch), keyStarts: numbers(key_starts, problem.batch + 1),
        sinks: sinks?.floats(problem.queryHeads), ranges: scores.rangeNumbers(problem))
      let tensors: GradientTensors<HostMemory> = try tensors(
        problem, statistics(log_sum_exp) ?? UnsafeMutableBufferPointer(start: nil, count: 0), statistics(d_log_sum_exp),
        d_sinks.map { UnsafeMutableBufferPointer(start: $0, count: problem.queryHeads) }, entries
      ) { (tensor, name, shape) throws(AttentionError) in
        let view = try tensor.view(name, shape, type)
        return (view.readOnly, view)
      }
      return try plan.run(tensors)
    }
    if workspace != nil && workspace_size < plan.workspaceByteCount {
      throw .unsupported(
        "The workspace has \(workspace_size) bytes; fa_backward_workspace says that \(plan.workspaceByteCount) are needed."
      )
    }
    let entries = CacheEntries<GPUMemory>(
      lengths: address(key_counts), queryStarts: address(query_starts), queryCounts: address(query_counts),
      keyStarts: address(key_starts), sinks: address(sinks?.base), ranges: address(scores.key_ranges))
    let tensors: GradientTensors<GPUMemory> = try tensors(
      problem, address(log_sum_exp) ?? 0, address(d_log_sum_exp), address(d_sinks), entries
    ) { (tensor, name, shape) throws(AttentionError) in
      let view = try tensor.deviceView(name, shape, type)
      return (view, view)
    }
    try plan.launch(tensors, workspace: address(workspace), stream: streamHandle(stream))
  }
}

/// `fa_backward` of `flash_attention.h`, which describes it.
@c @implementation public func fa_backward(_ params: UnsafePointer<fa_backward_params>!) -> fa_status {
  status { () throws(AttentionError) in
    let p = try fa_backward_params.read(params)
    try checkMemory(p.workspace, size: p.workspace_size, "workspace")
    try p.run(try p.plan)
  }
}

/// `fa_backward_prepare` of `flash_attention.h`, which describes it.
@c @implementation public func fa_backward_prepare(_ params: UnsafePointer<fa_backward_params>!) -> fa_status {
  status { () throws(AttentionError) in try fa_backward_params.read(params).plan.prepare() }
}

/// `fa_backward_workspace` of `flash_attention.h`, which describes it.
@c @implementation public func fa_backward_workspace(
  _ params: UnsafePointer<fa_backward_params>!, _ byteCount: UnsafeMutablePointer<Int>!
) -> fa_status {
  status { () throws(AttentionError) in
    let plan = try fa_backward_params.read(params).plan
    guard let byteCount else { throw .unsupported("There is no place for the number of bytes; give its address.") }
    byteCount.pointee = plan.workspaceByteCount
  }
}

/// `fa_backward_describe` of `flash_attention.h`, which describes it.
@c @implementation public func fa_backward_describe(
  _ params: UnsafePointer<fa_backward_params>!, _ text: UnsafeMutablePointer<CChar>!, _ size: Int
) -> fa_status {
  status { () throws(AttentionError) in
    try write("\(try fa_backward_params.read(params).plan)", to: text, size: size)
  }
}
