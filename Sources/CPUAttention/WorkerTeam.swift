internal import CPUMicrokernels
internal import Dispatch
internal import Synchronization

/// Hands out the numbers 0..<count, each once, to whoever asks first.
public final class WorkQueue: Sendable {
  private let taken = Atomic<Int>(0)
  private let count: Int

  init(count: Int) { self.count = count }

  /// The next number; nil when all are taken.
  public func next() -> Int? {
    let item = taken.add(1, ordering: .relaxed).oldValue
    return item < count ? item : nil
  }
}

/// Runs independent work on the machine's processors.
///
/// However many tasks call at once, the helpers never outnumber the processors: a call takes the helpers that are idle,
/// at least its own thread, and the dynamic queue gives each as much work as it can do.
public enum WorkerTeam {
  /// Processors this process may use.
  public static let processors = Int(fa_processor_count())

  private static let idleHelpers = Mutex(processors - 1)

  /// Calls `body` on up to `threads` threads at once, the caller's among them; each takes items from the queue until
  /// there are none. Returns when all items are done.
  public static func run(items: Int, threads: Int, body: @Sendable (WorkQueue) -> Void) {
    let queue = WorkQueue(count: items)
    let wanted = min(threads, items) - 1
    let helpers = idleHelpers.withLock { idle in
      let granted = max(0, min(wanted, idle))
      idle -= granted
      return granted
    }
    defer { idleHelpers.withLock { $0 += helpers } }
    if helpers == 0 {
      body(queue)
    } else {
      DispatchQueue.concurrentPerform(iterations: helpers + 1) { _ in body(queue) }
    }
  }
}
