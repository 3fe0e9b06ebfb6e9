/// Changes of a tiling, for experiments: `keys=64,stages=2`.
public struct TilingChanges: Hashable, Sendable, CustomStringConvertible {
  /// As it was written.
  public let description: String
  package let all: [(name: String, value: String)]

  /// - Throws: `AttentionError.tiling` for a text that is no list of names and values. Whether a tiling knows them, a
  ///   plan says.
  public init(_ text: String) throws(AttentionError) {
    description = text
    var all: [(String, String)] = []
    for part in text.split(separator: ",", omittingEmptySubsequences: false) {
      let sides = part.split(separator: "=", maxSplits: 1).map(String.init)
      guard sides.count == 2 else {
        throw .tiling(text, reason: "cannot be read; write names and values with commas, such as stages=2,keys=64")
      }
      all.append((sides[0], sides[1]))
    }
    self.all = all
  }

  /// Whether one is of a name.
  package func names(_ name: String) -> Bool { all.contains { $0.name == name } }

  /// The same text.
  public static func == (a: TilingChanges, b: TilingChanges) -> Bool { a.description == b.description }
  /// By the text.
  public func hash(into hasher: inout Hasher) { hasher.combine(description) }
}

/// What an experiment asks of a plan's kernels; the plan is free in what is nil.
public struct KernelOptions: Hashable, Sendable {
  /// Only the kernels of this family: `forward`, `decode` or `hopper`.
  public var family: String?
  /// Changes of the tiling that suits.
  public var tiling: TilingChanges?

  /// Free in both, without arguments.
  public init(family: String? = nil, tiling: TilingChanges? = nil) { (self.family, self.tiling) = (family, tiling) }
}
