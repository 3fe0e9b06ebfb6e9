package import Attention

/// The sides on which a mask may hide keys that exist: what a kernel's text has of a mask.
package struct MaskEdges: OptionSet, Hashable, Sendable {
  /// One bit a side.
  package let rawValue: UInt8
  /// The sides by their bits.
  package init(rawValue: UInt8) { self.rawValue = rawValue }
  /// Keys too far before the diagonal.
  package static let left = MaskEdges(rawValue: 1)
  /// Keys too far behind the diagonal.
  package static let right = MaskEdges(rawValue: 2)

  /// Keys of other chunks than the diagonal's.
  package static let chunks = MaskEdges(rawValue: 4)

  /// The sides that a mask limits.
  package init(_ mask: AttentionMask) {
    let (left, right) = mask.reach
    self = left == nil ? [] : .left
    if right != nil { insert(.right) }
    if mask.chunk != nil { insert(.chunks) }
  }
}

extension MaskEdges {
  /// Marks of the sides in a kernel's name.
  var name: String {
    (contains(.left) ? "_left" : "") + (contains(.right) ? "_right" : "") + (contains(.chunks) ? "_chunks" : "")
  }
  /// Whether a query may see less than all keys up to some key, and less than all from some key on.
  var limitsFirst: Bool { contains(.left) || contains(.chunks) }
  var limitsEnd: Bool { contains(.right) || contains(.chunks) }
}
