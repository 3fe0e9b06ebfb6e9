internal import FlashAttention
internal import Synchronization

/// Plans that were made before: a call with the same parameters finds its own.
final class Plans<Plan: Sendable>: Sendable {
  private struct Key: Hashable {
    let problem: AttentionProblem
    let device: Device
    /// What plans of the CPU take, which a program may change.
    let vectors: String
    /// Of the CPU; nil of GPUs.
    let threads: Int?
  }

  private let plans = Mutex([Key: Plan]())
  private let make: @Sendable (AttentionProblem, Device, _ threads: Int?) throws(AttentionError) -> Plan
  /// More than a program has shapes; a program that has more begins again.
  private let limit = 4096

  init(_ make: @escaping @Sendable (AttentionProblem, Device, Int?) throws(AttentionError) -> Plan) { self.make = make }

  func plan(_ problem: AttentionProblem, _ device: Device) throws(AttentionError) -> Plan {
    let key = Key(
      problem: problem, device: device, vectors: Machine.instructionSet,
      threads: device.ordinal == nil ? ThreadLimit.current : nil)
    if let plan = plans.withLock({ $0[key] }) { return plan }
    let plan = try make(problem, device, key.threads)
    plans.withLock { plans in
      if plans.count >= limit { plans.removeAll() }
      plans[key] = plan
    }
    return plan
  }
}

extension AttentionPlan {
  private static let made = Plans { (problem, device, threads) throws(AttentionError) in
    try AttentionPlan(problem, device: device, threads: threads)
  }

  /// A problem's plan, made once.
  static func remembered(_ problem: AttentionProblem, _ device: Device) throws(AttentionError) -> AttentionPlan {
    try made.plan(problem, device)
  }
}

extension GradientPlan {
  private static let made = Plans { (problem, device, threads) throws(AttentionError) in
    try GradientPlan(problem, device: device, threads: threads)
  }

  /// A problem's plan, made once.
  static func remembered(_ problem: AttentionProblem, _ device: Device) throws(AttentionError) -> GradientPlan {
    try made.plan(problem, device)
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
