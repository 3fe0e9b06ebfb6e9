/// A tiling that can be changed by a text of names and values: `keys=64,stages=2`.
protocol TilingText {
  /// Changes what a name says; false for a name that is none, or a value that it does not take.
  mutating func change(_ name: String, to value: String) -> Bool
}

extension TilingText {
  /// The tiling changed from left to right; nil for a text that says anything else than changes.
  func changed(byText text: String) -> Self? {
    var tiling = self
    for part in text.split(separator: ",", omittingEmptySubsequences: false) {
      let sides = part.split(separator: "=", maxSplits: 1).map(String.init)
      guard sides.count == 2, tiling.change(sides[0], to: sides[1]) else { return nil }
    }
    return tiling
  }
}
