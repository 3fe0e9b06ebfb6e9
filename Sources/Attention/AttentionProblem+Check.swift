extension AttentionProblem {
  /// Checks that views are what the problem was made for.
  /// - Throws: `AttentionError.notThePlan`, `.mixedTypes` or `.logSumExpCount`.
  public func check(
    queries: TensorView, keys: TensorView, values: TensorView, output: MutableTensorView, logSumExpCount given: Int?
  ) throws(AttentionError) {
    for (name, view, planned) in [
      ("queries", queries, queryShape), ("keys", keys, keyShape), ("values", values, valueShape),
      ("output", output.readOnly, outputShape),
    ] {
      guard view.shape == planned else { throw .notThePlan(tensor: name, given: view.shape, planned: planned) }
      guard view.scalarType == scalarType else {
        throw .mixedTypes(first: name, firstType: view.scalarType, second: "the plan", secondType: scalarType)
      }
    }
    if let given, given != logSumExpCount { throw .logSumExpCount(given: given, needed: logSumExpCount) }
  }
}
