package import Attention

/// How a kernel cuts its work: sizes and ways, as a value. Any of it can be changed by a text of names and values.
package protocol KernelTiling: Hashable, Sendable, CustomStringConvertible {
  /// What `TilingChanges` may say of it, for help and errors.
  static var changeSyntax: String { get }
  /// This tiling as a text that makes it of any that a plan chooses by itself.
  var changes: String { get }
  /// Changes what a name says; false for a name that is none, or a value that it does not take.
  mutating func change(_ name: String, to value: String) -> Bool
}

extension KernelTiling {
  /// The tiling changed from left to right; nil where it does not know a change.
  package func changed(by changes: TilingChanges) -> Self? {
    var tiling = self
    for (name, value) in changes.all { if !tiling.change(name, to: value) { return nil } }
    return tiling
  }
}
