internal import Attention
package import PTX

/// Bytes from one batch (or page), head and row of a tensor to the next, as parameters of a kernel.
package struct StrideParameters {
  package let batch, head, row: Register<U64>
}

extension AttentionProblem {
  /// Bytes of the log-sum-exps of a batch, and of a head.
  var logSumExpStrides: (batch: Int, head: Int) {
    let ofHead = queryShape.length * 4
    return (packedQueries == nil ? queryHeads * ofHead : 0, ofHead)
  }
}
