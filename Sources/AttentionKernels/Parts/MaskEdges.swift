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

/// A mask's numbers as kernels hold them, in 32 bits with room for a sum: how far a query sees to both sides of its own
/// key, and the keys of a chunk. Of a side that the mask does not limit, any number: the kernel's text has no use for it.
struct MaskWords {
  let left, right, chunk: Int

  init(_ mask: AttentionMask) {
    func word(_ number: Int?, else other: Int) -> Int { min(number ?? other, GPULimits.lengthLimit) }
    (left, right, chunk) = (word(mask.reach.left, else: 0), word(mask.reach.right, else: 0), word(mask.chunk, else: 1))
  }
}
