/// What the text of a kernel is made from, and what the kernel is found by: two that are equal have the same text.
///
/// Lengths, strides and pointers are none of it: they are parameters, so that one kernel serves all of them.
public protocol KernelSource: Hashable, Sendable {
  /// The entry point's name.
  var name: String { get }
  /// Writes the kernel.
  func kernel() throws(KernelError) -> Kernel
}
