internal import FlashAttention
public import FlashAttentionHeader

/// `fa_combine` of `flash_attention.h`, which describes it.
@c @implementation public func fa_combine(_ params: UnsafePointer<fa_combine_params>!) -> fa_status {
  status { () throws(AttentionError) in
    let p = try parameters(params, fa_combine_params())
    try check(reserved: [("reserved", p.reserved), ("reserved_2", p.reserved_2)])
    let sinks = try Sinks(p.sinks, type: p.sink_type)
    var problem = try PartialResultsProblem(
      parts: Int(p.parts), batch: Int(p.batch), heads: Int(p.heads), queries: Int(p.queries),
      dimension: Int(p.dimension), outputType: try ScalarType("type", code: p.type))
    problem.sinkType = sinks?.type(on: p.device)
    if p.log_sum_exps == nil && problem.rows > 0 {
      throw .unsupported("The address of log_sum_exps is NULL; give those of all parts.")
    }
    let (reach, overflow) = Int(p.part_stride).multipliedReportingOverflow(by: problem.parts)
    if overflow || reach.magnitude > 1 << 58 {
      throw .stride(tensor: "the partial results", axis: "part", elements: Int(p.part_stride))
    }
    if let ordinal = try Device(code: p.device, ordinal: p.ordinal).ordinal {
      try PartialResults.launch(
        problem, partials: try p.partials.deviceView("the partial results", problem.shape, .f32),
        partStride: problem.parts > 1 ? Int(p.part_stride) : 0, logSumExps: address(p.log_sum_exps) ?? 0,
        output: try p.o.deviceView("output", problem.shape, problem.outputType), logSumExp: address(p.log_sum_exp),
        sinks: address(sinks?.base), on: try GPU.device(ordinal), stream: streamHandle(p.stream))
    } else {
      if problem.rows == 0 { return }
      let first = try p.partials.view("the partial results", problem.shape, .f32)
      try PartialResults.combine(
        problem,
        partials: (0..<problem.parts).map {
          TensorView(
            base: UnsafeRawPointer(first.base) + $0 * Int(p.part_stride) * 4, scalarType: .f32, shape: problem.shape,
            strides: first.strides)
        },
        logSumExps: UnsafeBufferPointer(start: p.log_sum_exps, count: problem.parts * problem.rows),
        output: try p.o.view("output", problem.shape, problem.outputType),
        logSumExp: p.log_sum_exp.map { UnsafeMutableBufferPointer(start: $0, count: problem.rows) },
        sinks: sinks?.floats(problem.heads))
    }
  }
}

/// `fa_version` of `flash_attention.h`, which describes it.
@c @implementation public func fa_version() -> UnsafePointer<CChar>! { version }

private nonisolated(unsafe) let version =
  UnsafeRawPointer(Version.current.utf8Start).assumingMemoryBound(to: CChar.self)

/// `fa_last_error` of `flash_attention.h`, which describes it.
@c @implementation public func fa_last_error() -> UnsafePointer<CChar>! { LastError.text }

/// `fa_choose_vectors` of `flash_attention.h`, which describes it.
@c @implementation public func fa_choose_vectors(_ name: UnsafePointer<CChar>!) -> fa_status {
  status { () throws(AttentionError) in try Machine.chooseInstructionSet(name.map { String(cString: $0) }) }
}

/// `fa_use_threads` of `flash_attention.h`, which describes it.
@c @implementation public func fa_use_threads(_ parallel: fa_parallel!) -> fa_status {
  status { () throws(AttentionError) in Machine.computeOnThreads(of: parallel) }
}

/// `fa_gpu_check` of `flash_attention.h`, which describes it.
@c @implementation public func fa_gpu_check(_ ordinal: Int32) -> fa_status {
  status { () throws(AttentionError) in _ = try GPU.device(Int(ordinal)) }
}
