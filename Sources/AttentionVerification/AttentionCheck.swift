package import Attention
internal import CPUAttention
internal import Synchronization

/// Computes what a result is held against, on all processors. Meant for tests and for `verify`: a thousand times slower
/// than attention itself.
package enum AttentionCheck {
  /// The definition in 64-bit floats.
  package static func reference(
    _ problem: AttentionProblem, queries: TensorView, keys: TensorView, values: TensorView
  ) -> AttentionValues {
    eachHead(of: problem) { batch, head in
      ReferenceAttention.head(head, batch: batch, of: problem, queries: queries, keys: keys, values: values)
    }
  }

  /// The plain computation in the problem's precision, whose error is the yardstick; on a GPU, its sums are made as
  /// tensor cores make them.
  package static func plain(
    _ problem: AttentionProblem, queries: TensorView, keys: TensorView, values: TensorView,
    sums: PlainAttention.Sums = .rounded
  ) -> AttentionValues {
    eachHead(of: problem) { batch, head in
      PlainAttention.head(
        head, batch: batch, of: problem, queries: queries, keys: keys, values: values, sums: sums)
    }
  }

  private static func eachHead(
    of problem: AttentionProblem, _ compute: @Sendable (_ batch: Int, _ head: Int) -> HeadValues
  ) -> AttentionValues {
    let result = Mutex(AttentionValues(for: problem))
    if problem.logSumExpCount == 0 { return result.withLock { $0 } }
    WorkerTeam.run(items: problem.batch * problem.queryHeads, threads: WorkerTeam.processors) { queue in
      while let item = queue.next() {
        let (batch, head) = (item / problem.queryHeads, item % problem.queryHeads)
        let rows = compute(batch, head)
        result.withLock { $0.set(rows, batch: batch, head: head, of: problem) }
      }
    }
    return result.withLock { $0 }
  }
}
