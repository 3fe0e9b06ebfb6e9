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

  /// Whether all are taken.
  var isEmpty: Bool { taken.load(ordering: .relaxed) >= count }
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
  static var secondsWorthAThread: Double { calls.withLock { $0 == nil ? 60e-6 : 3e-6 } }

  /// "2 threads", and whose.
  static func description(threads: Int) -> String {
    threads == 1 ? "1 thread" : "\(threads) threads\(calls.withLock { $0 == nil } ? "" : " of the program's")"
  }

  /// Calls `body` on up to `threads` threads at once, the caller's among them; each takes items from the queue until
  /// there are none. Returns when all items are done.
  ///
  /// - Parameter team: threads that somebody else's pool is asked for, always as many: OpenMP ends threads that a smaller team does not
  ///   need, and makes them again for the next. Those beyond `threads` return at once.
  public static func run(items: Int, threads: Int, team: Int? = nil, body: @Sendable (WorkQueue) -> Void) {
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
    } else if let parallel = calls.withLock({ $0 }) {
      withoutActuallyEscaping(body) { body in
        let work = Work(queue: queue, threads: helpers + 1, body: body)
        parallel(
          { work in Unmanaged<Work>.fromOpaque(work!).takeUnretainedValue().run() },
          Unmanaged.passUnretained(work).toOpaque(), UInt32(max(team ?? threads, helpers + 1)), 0)
        // What others' threads have left.
        if !queue.isEmpty { work.run() }
        withExtendedLifetime(work) {}
      }
    } else {
      DispatchQueue.concurrentPerform(iterations: helpers + 1) { _ in body(queue) }
    }
  }

  /// What each thread does, for threads that know nothing but an address: the first of them, as many as there is room for.
  private final class Work: Sendable {
    private let queue: WorkQueue
    private let threads: Int
    private let entered = Atomic<Int>(0)
    private let body: @Sendable (WorkQueue) -> Void

    init(queue: WorkQueue, threads: Int, body: @escaping @Sendable (WorkQueue) -> Void) {
      (self.queue, self.threads, self.body) = (queue, threads, body)
    }

    func run() {
      if entered.add(1, ordering: .relaxed).oldValue < threads { body(queue) }
    }
  }
}
