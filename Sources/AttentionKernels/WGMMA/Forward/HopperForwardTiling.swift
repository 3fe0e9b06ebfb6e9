internal import Attention

/// How a block of Hopper's forward kernel cuts its work.
package struct HopperForwardTiling: Hashable, Sendable {
  /// Groups of four warps that multiply, 64 query rows each.
  package var groups: Int
  /// Keys of a tile, a multiple of 16.
  package var tileKeys: Int
  /// Tiles of K, and as many of V, under way at once.
  package var stages: Int
  /// Whether there are as many blocks as multiprocessors, which take item after item, or one for each item.
  package var isPersistent: Bool

  /// A tiling of the given sizes.
  package init(groups: Int = 2, tileKeys: Int = 128, stages: Int = 2, isPersistent: Bool = true) {
    (self.groups, self.tileKeys, self.stages, self.isPersistent) = (groups, tileKeys, stages, isPersistent)
  }

  /// Query rows of a block.
  package var rows: Int { groups * 64 }
  /// Threads of a block: those that multiply, and the group that asks for copies.
  package var threads: Int { (groups + 1) * 128 }
  /// Registers of a thread that multiplies, and of one that asks for copies: all that there are.
  var registers: (consumer: Int, producer: Int) { groups == 2 ? (240, 24) : (160, 32) }

  var name: String { "\(rows)x\(tileKeys)_stages\(stages)" }
}

extension HopperForwardTiling: KernelTiling {
  /// What `changed(by:)` reads, for help and errors.
  package static let changeSyntax = "groups=2|3, keys=16...256 in 16s, stages=1...8, persistent=yes|no"

  /// This tiling as a text that makes it of any that a plan chooses by itself.
  package var changes: String { "groups=\(groups),keys=\(tileKeys),stages=\(stages),persistent=\(isPersistent ? "yes" : "no")" }

  /// For a plan's text.
  package var description: String {
    "\(rows) query rows and \(tileKeys) keys a tile, \(groups) groups of four warps that multiply and one that copies, "
      + "\(stages) stages of K and of V, " + (isPersistent ? "blocks that take item after item" : "a block for each item")
  }

  /// One of `changeSyntax`.
  package mutating func change(_ name: String, to value: String) -> Bool {
    if name == "persistent", let isPersistent = ["yes": true, "no": false][value] {
      self.isPersistent = isPersistent
      return true
    }
    guard let number = Int(value) else { return false }
    switch name {
    case "groups" where (2...3).contains(number): groups = number
    case "keys" where number % 16 == 0 && (16...256).contains(number): tileKeys = number
    case "stages" where (1...8).contains(number): stages = number
    default: return false
    }
    return true
  }
}
