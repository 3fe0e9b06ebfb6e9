package import Attention
internal import Dispatch
internal import Synchronization

/// Runs `body` for 0..<count on all processors; throws the first error, after which no more are begun.
package func eachAtOnce(
  _ count: Int, _ body: @Sendable (Int) throws(AttentionError) -> Void
) throws(AttentionError) {
  let failure = Mutex<AttentionError?>(nil)
  DispatchQueue.concurrentPerform(iterations: count) { index in
    if failure.withLock({ $0 != nil }) { return }
    do throws(AttentionError) {
      try body(index)
    } catch {
      failure.withLock { $0 = $0 ?? error }
    }
  }
  if let error = failure.withLock({ $0 }) { throw error }
}
