/// Barriers in shared memory that count arrivals of threads and bytes of copies (section 9.7.13.15, mbarrier).
///
/// A phase ends when as many threads have arrived as the barrier was made for, and as many bytes have come as were
/// expected; then the next begins by itself. A waiter names the parity of the phase that it waits for: 0 for the first,
/// then 1, and 0 again. Parity tells even from odd only, so that nobody may be two phases behind.
public enum TransactionBarrier: Hashable, Sendable {
  /// Makes a barrier of 8 bytes for so many arrivals a phase.
  case initialize(address: RegisterID, offset: Int32, arrivals: Operand)
  /// Counts this thread, and lets those who wait see what it did.
  case arrive(address: RegisterID, offset: Int32)
  /// The same, of a phase in which so many bytes are expected besides.
  case arriveExpecting(address: RegisterID, offset: Int32, byteCount: Operand)
  /// So many more bytes are expected; counts nobody.
  case expect(address: RegisterID, offset: Int32, byteCount: Operand)
  /// Whether the phase of a parity has ended; may wait a while for it, and be false before its time.
  case tryWait(d: RegisterID, address: RegisterID, offset: Int32, parity: Operand)
  /// Counts this thread when its `cp.async` so far have landed; the barrier's arrivals include it.
  case arriveAfterCopies(address: RegisterID, offset: Int32)

  func text(_ name: TextNames) -> String {
    switch self {
    case .initialize(let address, let offset, let arrivals):
      "mbarrier.init.shared::cta.b64 \(name.place(address, offset)), \(name(arrivals, .u32))"
    case .arrive(let address, let offset):
      "mbarrier.arrive.shared::cta.b64 _, \(name.place(address, offset))"
    case .arriveExpecting(let address, let offset, let byteCount):
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, \(name.place(address, offset)), \(name(byteCount, .u32))"
    case .expect(let address, let offset, let byteCount):
      "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 \(name.place(address, offset)), \(name(byteCount, .u32))"
    case .tryWait(let d, let address, let offset, let parity):
      "mbarrier.try_wait.parity.shared::cta.b64 \(name(d)), \(name.place(address, offset)), \(name(parity, .u32))"
    case .arriveAfterCopies(let address, let offset):
      "cp.async.mbarrier.arrive.noinc.shared::cta.b64 \(name.place(address, offset))"
    }
  }
}

extension TransactionBarrier {
  func mapOperands(_ change: (Operand) -> Operand) -> TransactionBarrier {
    switch self {
    case .initialize(let address, let offset, let arrivals):
      .initialize(address: address, offset: offset, arrivals: change(arrivals))
    case .arriveExpecting(let address, let offset, let byteCount):
      .arriveExpecting(address: address, offset: offset, byteCount: change(byteCount))
    case .expect(let address, let offset, let byteCount):
      .expect(address: address, offset: offset, byteCount: change(byteCount))
    case .tryWait(let d, let address, let offset, let parity):
      .tryWait(d: d, address: address, offset: offset, parity: change(parity))
    case .arrive, .arriveAfterCopies: self
    }
  }
}
