internal import FlashAttention
internal import Synchronization

/// Plans that were made before: a call with the same parameters finds its own.
enum Plans {
  private struct Key: Hashable {
    let problem: AttentionProblem
    let device: Device
  }

  private static let plans = Mutex([Key: AttentionPlan]())
  /// More than a program has shapes; a program that has more begins again.
  private static let limit = 4096

  static func plan(_ problem: AttentionProblem, _ device: Device) throws(AttentionError) -> AttentionPlan {
    let key = Key(problem: problem, device: device)
    if let plan = plans.withLock({ $0[key] }) { return plan }
    let plan = try AttentionPlan(problem, device: device)
    plans.withLock { plans in
      if plans.count >= limit { plans.removeAll() }
      plans[key] = plan
    }
    return plan
  }
}

/// Writes a text into a caller's buffer, as far as it fits, with a zero behind.
func write(_ text: String, to buffer: UnsafeMutablePointer<CChar>?, size: Int) throws(AttentionError) {
  guard let buffer, size > 0 else { throw .unsupported("There is no room for the text; give a buffer and its size.") }
  var place = 0
  for byte in text.utf8.prefix(size - 1) {
    buffer[place] = CChar(bitPattern: byte)
    place += 1
  }
  buffer[place] = 0
}
