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

  /// Not on any side: keys that all see beside those, the first of each sequence; so many as the call says.
  package static let prefix = MaskEdges(rawValue: 8)

  /// The same, as many as the plan knows, and none behind the diagonal.
  package static let firstKeys = MaskEdges(rawValue: 16)

  /// Keys outside a range that the call gives for each query, or outside both of two.
  package static let oneRange = MaskEdges(rawValue: 32)
  package static let twoRanges = MaskEdges(rawValue: 64)

  /// The sides that a problem's mask limits, and what its ranges of keys do.
  package init(_ problem: AttentionProblem) {
    let mask = problem.mask
    let (left, right) = mask.reach
    self = left == nil ? [] : .left
    if right != nil { insert(.right) }
    if mask.chunk != nil { insert(.chunks) }
    switch problem.ranges {
    case nil: break
    case .given(let count, _): insert(count == 1 ? .oneRange : .twoRanges)
    // Of what the mask lets see anyway, nothing need be said.
    case .prefix: if mask.isLimited { insert(.prefix) }
    case .firstKeys: if limitsFirst { insert(.firstKeys) }
    }
  }
}

extension MaskEdges {
  /// Marks of the sides in a kernel's name.
  var name: String {
    (contains(.left) ? "_left" : "") + (contains(.right) ? "_right" : "") + (contains(.chunks) ? "_chunks" : "")
      + (contains(.prefix) ? "_prefix" : "") + (contains(.firstKeys) ? "_first_keys" : "")
      + (rangeCount == 0 ? "" : "_ranges\(rangeCount)")
  }
  /// Whether a side lets nobody see the keys that it hides, so that whoever counts tiles may leave them out.
  func skips(_ side: MaskEdges) -> Bool { contains(side) && isDisjoint(with: [.prefix, .firstKeys]) }
  /// Whether what rows see may be two stretches, or nothing that moves on from row to row.
  var rangesAreAny: Bool { rangeCount > 0 || (limitsFirst && !isDisjoint(with: [.prefix, .firstKeys])) }
  /// Ranges of keys that a call gives for each query.
  var rangeCount: Int { contains(.oneRange) ? 1 : contains(.twoRanges) ? 2 : 0 }
  /// Whether a query may see less than all keys up to some key, and less than all from some key on.
  var limitsFirst: Bool { contains(.left) || contains(.chunks) || rangeCount > 0 }
  var limitsEnd: Bool { contains(.right) || contains(.chunks) || rangeCount > 0 }
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
