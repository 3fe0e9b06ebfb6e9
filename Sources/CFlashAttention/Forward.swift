internal import FlashAttention
public import FlashAttentionHeader

extension fa_forward_params {
  fileprivate static func read(
    _ pointer: UnsafePointer<fa_forward_params>?
  ) throws(AttentionError) -> fa_forward_params {
    let p = try parameters(pointer, fa_forward_params())
    try check(reserved: [("reserved", p.reserved)])
    return p
  }

  /// What the numbers describe.
  var problem: AttentionProblem {
    get throws(AttentionError) {
      func shape(_ heads: Int64, _ length: Int64, _ dimension: Int64) -> TensorShape {
        TensorShape(batch: Int(batch), heads: Int(heads), length: Int(length), dimension: Int(dimension))
      }
      var problem = try AttentionProblem(
        queries: shape(query_heads, queries, dimension), keys: shape(key_value_heads, keys, dimension),
        values: shape(key_value_heads, keys, value_dimension == 0 ? dimension : value_dimension),
        scalarType: try ScalarType("type", code: type), mask: try scores.attentionMask, scale: scores.attentionScale,
        softcap: scores.attentionSoftcap)
      try scores.add(to: &problem, on: device)
      return problem
    }
  }

  fileprivate var plan: AttentionPlan {
    get throws(AttentionError) {
      let device = try Device(code: device, ordinal: ordinal)
      return try AttentionPlan.remembered(try problem, device)
    }
  }
}

/// `fa_forward` of `flash_attention.h`, which describes it.
@c @implementation public func fa_forward(_ params: UnsafePointer<fa_forward_params>!) -> fa_status {
  status { () throws(AttentionError) in
    let p = try fa_forward_params.read(params)
    let plan = try p.plan
    let (problem, type) = (plan.problem, plan.problem.scalarType)
    let sinks = try p.scores.attentionSinks
    if plan.gpu == nil {
      let statistics = p.log_sum_exp.map { UnsafeMutableBufferPointer(start: $0, count: problem.logSumExpCount) }
      try plan.run(
        queries: try p.q.view("queries", problem.queryShape, type).readOnly,
        keys: try p.k.view("keys", problem.keyShape, type).readOnly,
        values: try p.v.view("values", problem.valueShape, type).readOnly,
        output: try p.o.view("output", problem.outputShape, type), logSumExp: statistics,
        entries: CacheEntries(sinks: sinks?.floats(problem.queryHeads), ranges: p.scores.rangeNumbers(problem)))
    } else {
      try plan.launch(
        AttentionTensors(
          queries: try p.q.deviceView("queries", problem.queryShape, type),
          keys: try p.k.deviceView("keys", problem.keyShape, type),
          values: try p.v.deviceView("values", problem.valueShape, type),
          output: try p.o.deviceView("output", problem.outputShape, type), logSumExp: address(p.log_sum_exp),
          entries: CacheEntries(sinks: address(sinks?.base), ranges: address(p.scores.key_ranges))),
        stream: streamHandle(p.stream))
    }
  }
}

/// `fa_forward_prepare` of `flash_attention.h`, which describes it.
@c @implementation public func fa_forward_prepare(_ params: UnsafePointer<fa_forward_params>!) -> fa_status {
  status { () throws(AttentionError) in try fa_forward_params.read(params).plan.prepare() }
}

/// `fa_forward_describe` of `flash_attention.h`, which describes it.
@c @implementation public func fa_forward_describe(
  _ params: UnsafePointer<fa_forward_params>!, _ text: UnsafeMutablePointer<CChar>!, _ size: Int
) -> fa_status {
  status { () throws(AttentionError) in
    try write("\(try fa_forward_params.read(params).plan)", to: text, size: size)
  }
}
