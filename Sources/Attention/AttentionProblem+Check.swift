extension AttentionProblem {
  /// Checks that views are what the problem was made for.
  /// - Throws: `AttentionError.notThePlan`, `.mixedTypes`, `.stride`, `.overlappingOutput` or `.logSumExpCount`.
  public func check(
    queries: TensorView, keys: TensorView, values: TensorView, output: MutableTensorView, logSumExpCount given: Int?
  ) throws(AttentionError) {
    for (name, view, planned) in [
      ("queries", queries, queryShape), ("keys", keys, keyShape), ("values", values, valueShape),
    ] { try view.check(name, isFor: planned, scalarType) }
    try output.readOnly.check("output", isFor: outputShape, scalarType, isWritten: true)
    if let given, given != logSumExpCount { throw .logSumExpCount(given: given, needed: logSumExpCount) }
  }
}
