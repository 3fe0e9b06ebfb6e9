/// Transaction barriers in shared memory, one for each stage of a ring, as one of their two sides sees them: which stage
/// is next, and the parity of the phase that is waited for there, which the value carries so that nobody forgets it.
///
/// Of a stage that is filled and emptied in turn there are two rings, `full` and `empty`. Who fills waits at `empty`
/// as `.producer`, whose first wait at each stage is over at once; who uses waits at `full` as `.consumer`.
public struct BarrierRing {
  /// Which side of the barriers a value is.
  public enum Side: Hashable, Sendable {
    /// Waits for what the others bring: from the first phase on.
    case consumer
    /// Waits for what the others give back: there is nothing to wait for in the first phase.
    case producer
  }

  /// Bytes of a barrier.
  public static let byteCount = 8

  /// How many barriers there are.
  public let stages: Int
  /// The address of the first.
  public let address: Register<U32>
  /// The stage that is next.
  public let stage: Register<U32>
  private let parity: Register<U32>
  private let k: KernelBuilder

  /// The ring at an address, for one side, at its first stage.
  ///
  /// - Parameters:
  ///   - k: what emits the kernel.
  ///   - stages: how many barriers.
  ///   - address: a multiple of 8; 8 bytes for each stage.
  ///   - side: who uses the ring.
  ///   - file: for messages.
  ///   - line: for messages.
  public init(
    _ k: KernelBuilder, stages: Int, at address: Register<U32>, as side: Side, file: String = #fileID,
    line: Int = #line
  ) {
    k.at(file, line)
    if stages < 1 { k.fail("A ring of \(stages) barriers is impossible; it has at least one.") }
    (self.k, self.stages, self.address) = (k, stages, address)
    stage = k.variable(k.constant(0, U32.self), file: file, line: line).named("stage")
    parity = k.variable(k.constant(side == .producer ? 1 : 0, U32.self), file: file, line: line).named("parity")
  }

  /// The address of the barrier of the next stage.
  public var current: Register<U32> { stages == 1 ? address : address + stage * Self.byteCount }

  /// Waits until the phase of the next stage has ended that this side waits for.
  public func wait(file: String = #fileID, line: Int = #line) {
    k.wait(transactionBarrier: current, parity: parity, file: file, line: line)
  }

  /// Counts this thread at the barrier of the next stage.
  public func arrive(file: String = #fileID, line: Int = #line) {
    k.arrive(transactionBarrier: current, file: file, line: line)
  }

  /// The same, of a phase in which copies bring so many bytes.
  public func arrive(expecting byteCount: Int, file: String = #fileID, line: Int = #line) {
    k.arrive(transactionBarrier: current, expecting: byteCount, file: file, line: line)
  }

  /// Goes on to the stage behind, and behind the last to the first, in its next phase.
  public func advance(file: String = #fileID, line: Int = #line) {
    k.at(file, line)
    if stages == 1 {
      k.set(parity, to: parity ^ 1, file: file, line: line)
      return
    }
    let next = stage + 1
    let isLast = next .== stages
    k.set(stage, to: k.select(isLast, k.constant(0, U32.self), next, file: file, line: line), file: file, line: line)
    k.set(parity, to: k.select(isLast, parity ^ 1, parity, file: file, line: line), file: file, line: line)
  }
}

extension KernelBuilder {
  // MARK: - Transaction barriers

  /// Makes a transaction barrier for so many arrivals a phase, by one thread; others see it after a barrier of the
  /// block, and the copy engine after `barrierInitializationFence` or `proxyFence` besides.
  public func initialize(
    transactionBarrier address: Register<U32>, offset: Int = 0, arrivals: Int, file: String = #fileID,
    line: Int = #line
  ) {
    at(file, line)
    check(address)
    if !(1..<1 << 20).contains(arrivals) {
      fail("A transaction barrier counts 1 to 1048575 arrivals; \(arrivals) were asked for.")
    }
    emit(
      .transactionBarrier(
        .initialize(address: address.id, offset: checkOffset(offset), arrivals: .integer(arrivals))))
  }

  /// Counts this thread at a transaction barrier, and lets those who wait there see what it did.
  public func arrive(
    transactionBarrier address: Register<U32>, offset: Int = 0, file: String = #fileID, line: Int = #line
  ) {
    at(file, line)
    check(address)
    emit(.transactionBarrier(.arrive(address: address.id, offset: checkOffset(offset))))
  }

  /// The same, of a phase in which copies bring so many bytes besides.
  public func arrive(
    transactionBarrier address: Register<U32>, offset: Int = 0, expecting byteCount: Int, file: String = #fileID,
    line: Int = #line
  ) {
    at(file, line)
    check(address)
    checkTransaction(byteCount)
    emit(
      .transactionBarrier(
        .arriveExpecting(address: address.id, offset: checkOffset(offset), byteCount: .integer(byteCount))))
  }

  /// So many more bytes are to come in the running phase; counts nobody.
  public func expect(
    transactionBarrier address: Register<U32>, offset: Int = 0, byteCount: Int, file: String = #fileID,
    line: Int = #line
  ) {
    at(file, line)
    check(address)
    checkTransaction(byteCount)
    emit(
      .transactionBarrier(.expect(address: address.id, offset: checkOffset(offset), byteCount: .integer(byteCount))))
  }

  private func checkTransaction(_ byteCount: Int) {
    if !(0..<1 << 20).contains(byteCount) {
      fail("A phase of a transaction barrier takes up to 1048575 bytes; \(byteCount) were asked for.")
    }
  }

  /// Whether the phase of a parity has ended; may wait a while for it, and be false before its time.
  public func tryWait(
    transactionBarrier address: Register<U32>, offset: Int = 0, parity: Register<U32>, file: String = #fileID,
    line: Int = #line
  ) -> Predicate {
    at(file, line)
    check(address)
    check(parity)
    let result = make(Bool1.self)
    emit(
      .transactionBarrier(
        .tryWait(d: result.id, address: address.id, offset: checkOffset(offset), parity: parity.operand)))
    return result
  }

  /// Waits until the phase of a parity has ended; `BarrierRing` carries the parity.
  public func wait(
    transactionBarrier address: Register<U32>, offset: Int = 0, parity: Register<U32>, file: String = #fileID,
    line: Int = #line
  ) {
    loop(file: file, line: line) {
      !tryWait(transactionBarrier: address, offset: offset, parity: parity, file: file, line: line)
    }
  }

  /// Counts this thread at a transaction barrier when its `copyAsync` so far have landed; the barrier's arrivals include
  /// it.
  public func arriveAfterCopies(
    transactionBarrier address: Register<U32>, offset: Int = 0, file: String = #fileID, line: Int = #line
  ) {
    at(file, line)
    check(address)
    emit(.transactionBarrier(.arriveAfterCopies(address: address.id, offset: checkOffset(offset))))
  }

  /// Lets the copy engine, and the cluster, see the transaction barriers that this thread made.
  public func barrierInitializationFence(file: String = #fileID, line: Int = #line) {
    at(file, line)
    emit(.synchronization(.barrierInitializationFence))
  }

  /// Orders this thread's ordinary accesses of shared memory before with those of the asynchronous proxy after, whoever makes these, and
  /// the other way round. Who wrote shared memory does it before the barrier behind which `wgmma` or the copy engine
  /// reads.
  public func proxyFence(file: String = #fileID, line: Int = #line) {
    at(file, line)
    emit(.synchronization(.proxyFence))
  }

  // MARK: - Clusters

  /// Waits for all threads of the cluster, and orders their accesses.
  public func clusterBarrier(file: String = #fileID, line: Int = #line) {
    clusterArrive(file: file, line: line)
    clusterWait(file: file, line: line)
  }

  /// Counts this thread at the barrier of its cluster; `clusterWait` follows.
  public func clusterArrive(file: String = #fileID, line: Int = #line) {
    at(file, line)
    emit(.synchronization(.clusterArrive))
  }

  /// Waits for all threads of the cluster.
  public func clusterWait(file: String = #fileID, line: Int = #line) {
    at(file, line)
    emit(.synchronization(.clusterWait))
  }
}
