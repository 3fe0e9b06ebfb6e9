internal import Attention

/// How a block of Hopper's forward kernel cuts its work.
package struct HopperForwardTiling: Hashable, Sendable {
  /// How a group finds the weights of a tile, while P V of the tile before runs.
  package enum Softmax: String, CaseIterable, Hashable, Sendable {
    /// After its maxima.
    case maxima
    /// By the maxima that there are; from new scores, with their maxima, where weights came out too large.
    case lazy
  }

  /// Groups of four warps that multiply, 64 query rows each.
  package var groups: Int
  /// Keys of a tile, a multiple of 16.
  package var tileKeys: Int
  /// Tiles of K, and as many of V, under way at once.
  package var stages: Int
  /// How weights are found.
  package var softmax: Softmax
  /// Tiles of Q at once, so that the next item's can come early.
  package var queryStages: Int

  /// A tiling of the given sizes.
  package init(groups: Int = 2, tileKeys: Int = 128, stages: Int = 2, softmax: Softmax = .lazy, queryStages: Int = 1) {
    (self.groups, self.tileKeys, self.stages) = (groups, tileKeys, stages)
    (self.softmax, self.queryStages) = (softmax, queryStages)
  }

  /// Query rows of a block.
  package var rows: Int { groups * 64 }

  var name: String {
    "\(rows)x\(tileKeys)_q\(queryStages)_kv\(stages)" + (softmax == .lazy ? "" : "_\(softmax)")
  }
}

extension HopperForwardTiling: KernelTiling {
  /// What `changed(by:)` reads, for help and errors.
  package static let changeSyntax =
    "groups=2|3 or keys=16...256 in 16s, of bytes 32, 64 or 128 (both with 2 stages of K and V and 1 of Q, unless these follow), stages=1...8, "
    + "query-stages=1|2, softmax=lazy|maxima"

  /// This tiling as a text that makes it of any that a plan chooses by itself.
  package var changes: String {
    "groups=\(groups),keys=\(tileKeys),stages=\(stages),query-stages=\(queryStages),softmax=\(softmax)"
  }

  /// For a plan's text.
  package var description: String {
    "\(rows) query rows and \(tileKeys) keys a tile, \(groups) groups of four warps that multiply beside those that bring keys, "
      + "\(queryStages) \(queryStages == 1 ? "stage" : "stages") of Q and \(stages) of K and of V, "
      + (softmax == .lazy ? "maxima only where weights outgrow them" : "maxima of each tile")
  }

  /// One of `changeSyntax`.
  package mutating func change(_ name: String, to value: String) -> Bool {
    if name == "softmax", let softmax = Softmax(rawValue: value) {
      self.softmax = softmax
      return true
    }
    guard let number = Int(value) else { return false }
    switch name {
    case "groups" where (2...3).contains(number): (groups, stages, queryStages) = (number, 2, 1)
    case "keys" where number % 16 == 0 && (16...256).contains(number): (tileKeys, stages, queryStages) = (number, 2, 1)
    case "stages" where (1...8).contains(number): stages = number
    case "query-stages" where (1...2).contains(number): queryStages = number
    default: return false
    }
    return true
  }
}
