internal import Attention

/// How a block of Hopper's decode kernel cuts its work.
package struct HopperDecodeTiling: Hashable, Sendable {
  /// How many times 64 packed query rows a block has.
  package var rowGroups: Int
  /// Groups of four warps that multiply each 64 of them, and divide the keys of a tile.
  package var keyGroups: Int
  /// Keys of a tile, a multiple of 16.
  package var tileKeys: Int
  /// Tiles of K, and as many of V, under way at once.
  package var stages: Int
  /// How weights are found.
  package var softmax: HopperForwardTiling.Softmax
  /// Who puts together what several blocks made of one unit.
  package var combination: DecodeTiling.Combination

  /// A tiling of the given sizes.
  package init(
    rowGroups: Int = 1, keyGroups: Int = 1, tileKeys: Int = 64, stages: Int = 2,
    softmax: HopperForwardTiling.Softmax = .lazy,
    combination: DecodeTiling.Combination = .lastBlock
  ) {
    (self.rowGroups, self.keyGroups) = (rowGroups, keyGroups)
    (self.tileKeys, self.stages) = (tileKeys, stages)
    (self.softmax, self.combination) = (softmax, combination)
  }

  /// Packed query rows of a block.
  package var rows: Int { rowGroups * 64 }
  /// Groups of four warps that multiply.
  package var groups: Int { rowGroups * keyGroups }

  var name: String {
    "\(rows)x\(tileKeys)_kv\(stages)" + (keyGroups == 1 ? "" : "_halves") + (softmax == .lazy ? "" : "_\(softmax)")
  }

  /// The shares of work of the decode kernels that have blocks of so many rows and tiles of so many keys.
  var work: DecodeTiling {
    DecodeTiling(
      rowWarps: rows / 16, keyGroups: 1, keysPerStep: tileKeys, stages: stages, blocksPerMultiprocessor: 1,
      keepsQueries: false, combination: combination)
  }
}

extension HopperDecodeTiling: KernelTiling {
  /// What `changed(by:)` reads, for help and errors.
  package static let changeSyntax =
    "groups=1|2|halves (two that divide the keys of a tile) or keys=16...256 in 16s, of bytes 32, 64 or 128 (both with 2 stages of K and "
    + "V, unless these follow), stages=1...8, softmax=lazy|maxima, combine=last|behind"

  /// This tiling as a text that makes it of any that a plan chooses by itself.
  package var changes: String {
    "groups=\(keyGroups == 1 ? "\(rowGroups)" : "halves"),keys=\(tileKeys),stages=\(stages),softmax=\(softmax),combine=\(combination.rawValue)"
  }

  /// For a plan's text.
  package var description: String {
    "\(rows) packed query rows and \(tileKeys) keys a tile, \(groups) \(groups == 1 ? "group" : "groups") of four warps that "
      + (groups == 1 ? "multiplies" : rowGroups == 1 ? "divide these keys" : "multiply")
      + " beside those that bring keys, \(stages) stages, "
      + (softmax == .lazy ? "maxima only where weights outgrow them" : "maxima of each tile")
  }

  /// One of `changeSyntax`.
  package mutating func change(_ name: String, to value: String) -> Bool {
    if name == "softmax", let softmax = HopperForwardTiling.Softmax(rawValue: value) {
      self.softmax = softmax
      return true
    }
    if name == "combine", let combination = DecodeTiling.Combination(rawValue: value) {
      self.combination = combination
      return true
    }
    if (name, value) == ("groups", "halves") {
      (rowGroups, keyGroups, stages) = (1, 2, 2)
      return true
    }
    guard let number = Int(value) else { return false }
    switch name {
    case "groups" where (1...2).contains(number): (rowGroups, keyGroups, stages) = (number, 1, 2)
    case "keys" where number % 16 == 0 && (16...256).contains(number): (tileKeys, stages) = (number, 2)
    case "stages" where (1...8).contains(number): stages = number
    default: return false
    }
    return true
  }
}
