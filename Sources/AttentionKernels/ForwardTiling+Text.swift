extension ForwardTiling {
  /// This tiling, changed as a text says that has been checked; nil changes nothing.
  public func changed(byOption text: String?) -> ForwardTiling { text.flatMap { changed(by: $0) } ?? self }

  /// Changes this tiling as a text says: `warps=8,row-tiles=1,keys=64,stages=2,queries=registers,blocks=2`, any
  /// of them. Returns nil for a text that says anything else.
  public func changed(by text: String) -> ForwardTiling? {
    var tiling = self
    for part in text.split(separator: ",", omittingEmptySubsequences: false) {
      let sides = part.split(separator: "=", maxSplits: 1).map(String.init)
      guard sides.count == 2 else { return nil }
      let number = Int(sides[1]) ?? 0
      switch (sides[0], sides[1]) {
      case ("warps", _) where [2, 4, 8, 12, 16].contains(number): tiling.warps = number
      case ("row-tiles", _) where [1, 2].contains(number): tiling.rowTilesPerWarp = number
      case ("keys", _) where [16, 32, 48, 64, 80, 96, 128].contains(number): tiling.tileKeys = number
      case ("stages", _) where [2, 3, 4].contains(number): tiling.stages = number
      case ("blocks", _) where (1...16).contains(number): tiling.blocksPerMultiprocessor = number
      case ("queries", "registers"): tiling.keepsQueries = true
      case ("queries", "shared"): tiling.keepsQueries = false
      default: return nil
      }
    }
    return tiling
  }
}
