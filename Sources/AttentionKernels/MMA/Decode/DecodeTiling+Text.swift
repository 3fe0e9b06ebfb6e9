extension DecodeTiling: KernelTiling {
  /// What `changed(by:)` reads, for help and errors.
  package static let changeSyntax =
    "row-warps=1|2|4, groups=1...8 (of warps with keys of their own), keys=16...64 in 16s (of a group's step), "
    + "stages=2...8, blocks=1...8, waves=1|2|4|8 (blocks one after the other, of whole units), queries=registers|shared, combine=last|behind (who puts parts together: the last block of a "
    + "unit, or a launch behind)"

  /// This tiling as a text that makes it of any that a plan chooses by itself.
  package var changes: String {
    "row-warps=\(rowWarps),groups=\(keyGroups),keys=\(keysPerStep),stages=\(stages),blocks=\(blocksPerMultiprocessor),"
      + "waves=\(waves),queries=\(keepsQueries ? "registers" : "shared"),combine=\(combination.rawValue)"
  }

  /// One of `changeSyntax`.
  package mutating func change(_ name: String, to value: String) -> Bool {
    func set(_ path: WritableKeyPath<DecodeTiling, Int>, _ allowed: some Sequence<Int>) -> Bool {
      guard let number = Int(value), allowed.contains(number) else { return false }
      self[keyPath: path] = number
      return true
    }
    switch name {
    case "row-warps": return set(\.rowWarps, [1, 2, 4])
    case "groups": return set(\.keyGroups, 1...8)
    case "keys": return set(\.keysPerStep, stride(from: 16, through: 64, by: 16))
    case "stages": return set(\.stages, 2...8)
    case "blocks": return set(\.blocksPerMultiprocessor, 1...8)
    case "waves": return set(\.waves, [1, 2, 4, 8])
    case "combine":
      guard let who = Combination(rawValue: value) else { return false }
      combination = who
      return true
    case "queries":
      guard ["registers", "shared"].contains(value) else { return false }
      keepsQueries = value == "registers"
      return true
    default: return false
    }
  }
}
