/// What is left of control flow when loops and branches are structured.
public enum Control: Hashable, Sendable {
  /// This thread is done.
  case exit
  /// This thread found something impossible; the kernel fails.
  case trap

  func text(_ name: TextNames) -> String {
    switch self {
    case .exit: "exit"
    case .trap: "trap"
    }
  }
}
