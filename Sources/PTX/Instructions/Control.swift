/// What is left of control flow when loops and branches are structured.
public enum Control: Hashable, Sendable {
  /// This thread is done.
  case exit
  /// This thread found something impossible; the kernel fails.
  case trap
  /// The four warps of a group give back registers, or wait until they can have more (section 9.7.19.5, setmaxnreg).
  case setRegisterCount(isIncrease: Bool, UInt16)

  func text(_ name: TextNames) -> String {
    switch self {
    case .exit: "exit"
    case .trap: "trap"
    case .setRegisterCount(let isIncrease, let count):
      "setmaxnreg.\(isIncrease ? "inc" : "dec").sync.aligned.u32 \(count)"
    }
  }
}
