/// Copies from global to shared memory that do not wait (section 9.7.9.25.3, cp.async).
public enum AsynchronousCopy: Hashable, Sendable {
  /// Copies `byteCount` (4, 8 or 16) bytes; of these, only `sourceBytes` are read and the others are zero.
  case copy(
    byteCount: UInt8, destination: RegisterID, destinationOffset: Int32, source: RegisterID, sourceOffset: Int32,
    sourceBytes: Operand?)
  /// Makes a group of all copies since the last one.
  case commit
  /// Waits until at most `pending` of the newest groups are still under way.
  case waitGroup(pending: UInt8)

  func text(_ name: TextNames) -> String {
    switch self {
    case .copy(let byteCount, let destination, let destinationOffset, let source, let sourceOffset, let sourceBytes):
      // Whole 16 bytes go past L1.
      let cache = byteCount == 16 ? "cg" : "ca"
      let size = sourceBytes.map { ", \(name($0, .u32))" } ?? ""
      return
        "cp.async.\(cache).shared.global \(name.place(destination, destinationOffset)), \(name.place(source, sourceOffset)), "
        + "\(byteCount)\(size)"
    case .commit:
      return "cp.async.commit_group"
    case .waitGroup(let pending):
      return "cp.async.wait_group \(pending)"
    }
  }
}
