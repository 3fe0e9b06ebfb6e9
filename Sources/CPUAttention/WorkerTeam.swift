public import Attention
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

  /// Whose threads help; nil for Dispatch's.
  private static let calls = Mutex<ParallelCalls?>(nil)

  /// Has the process' work done on threads of somebody else's from now on; nil for Dispatch's.
  public static func use(_ parallel: ParallelCalls?) { calls.withLock { $0 = parallel } }

  /// What a call has to take for another thread to be worth it, in seconds: Dispatch's sleep where there is nothing to do; of who brings
  /// threads it is taken that they wait awake (Zen 4, 2026-11-30, GNU's OpenMP: 16 tokens of 12 heads are faster by two).
  static var secondsToWake: Double { calls.withLock { $0 == nil ? 60e-6 : 3e-6 } }

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
    if helpers > 0 {
      if let parallel = calls.withLock({ $0 }) {
        withoutActuallyEscaping(body) { body in
          let work = Work(queue: queue, body: body)
          parallel(
            { work in Unmanaged<Work>.fromOpaque(work!).takeUnretainedValue().run() },
            Unmanaged.passUnretained(work).toOpaque(), UInt32(helpers + 1), 0)
          withExtendedLifetime(work) {}
        }
      } else {
        DispatchQueue.concurrentPerform(iterations: helpers + 1) { _ in body(queue) }
        return
      }
    }
    // All of it, or what others' threads have left.
    body(queue)
  }

  /// What each thread does, for threads that know nothing but an address.
  private final class Work: Sendable {
    private let queue: WorkQueue
    private let body: @Sendable (WorkQueue) -> Void

    init(queue: WorkQueue, body: @escaping @Sendable (WorkQueue) -> Void) { (self.queue, self.body) = (queue, body) }

    func run() { body(queue) }
  }
}
