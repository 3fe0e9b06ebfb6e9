/// How a block of Hopper's gradients' kernel cuts its work, and who makes dQ.
package struct HopperBackwardTiling: Hashable, Sendable {
  /// What the two groups of four warps of a block divide.
  package enum Share: String, CaseIterable, Hashable, Sendable {
    /// The keys, 64 each: weights stay in the registers that they were made in, which hold all columns of dK and dV.
    case keys
    /// Of 64 keys, the rows that pass, and the columns of the sums: weights go through shared memory.
    case columns
  }

  /// How parts of dQ come to memory.
  package enum Adding: String, CaseIterable, Hashable, Sendable {
    /// Through shared memory, from which the copy engine adds them while the next tile is at work.
    case copies
    /// From registers, by atomics that everything waits behind.
    case atomics
  }

  /// What the groups divide.
  package var share: Share
  /// How parts of dQ come to memory, where they do.
  package var adding: Adding
  /// Tiles of Q, and as many of dO, under way at once.
  package var stages: Int
  /// Whether blocks of keys add up dQ in memory, in whatever order they come; otherwise it has kernels of its own (`mma.sync`), cut so.
  package var addsQueries: Bool
  /// Of dQ's kernel; nobody's where there is none.
  package var queries: BackwardTiling.Cut

  /// A tiling of the given sizes.
  package init(
    share: Share = .keys, adding: Adding = .copies, stages: Int = 2, addsQueries: Bool = false,
    queries: BackwardTiling.Cut = BackwardTiling.Cut()
  ) {
    (self.share, self.adding, self.stages, self.addsQueries, self.queries) = (
      share, adding, stages, addsQueries, queries
    )
  }

  /// Groups of four warps that multiply.
  static let groups = 2
  /// Packed rows of queries of a tile that passes.
  static let rows = 64

  /// Keys of a block.
  package var keys: Int { share == .keys ? 128 : 64 }
  /// Of the rows that pass, those whose scores a group makes.
  var ownRows: Int { share == .keys ? Self.rows : Self.rows / Self.groups }

  var name: String {
    "\(keys)x\(Self.rows)_\(share)_stages\(stages)" + (addsQueries && adding == .atomics ? "_atomics" : "")
  }
}

extension HopperBackwardTiling: KernelTiling {
  /// What `changed(by:)` reads, for help and errors.
  package static let changeSyntax =
    "share=keys|columns, passing=1...4 (tiles of Q and of dO at once), adding=copies|atomics (of dQ)"

  /// This tiling as a text that makes it of any that a plan chooses by itself.
  package var changes: String { "share=\(share),passing=\(stages)" + (addsQueries ? ",adding=\(adding)" : "") }

  /// For a plan's text.
  package var description: String {
    "\(addsQueries ? "five products, dQ added up in any order by \(adding == .copies ? "the copy engine" : "f32 atomics")" : "seven products, no atomics, dQ by mma.sync"); "
      + "blocks of \(keys) keys pass tiles of \(Self.rows) rows, two groups of four warps that divide "
      + (share == .keys ? "the keys" : "rows and columns") + ", beside one that brings them, \(stages) "
      + (stages == 1 ? "stage" : "stages")
  }

  /// One of `changeSyntax`.
  package mutating func change(_ name: String, to value: String) -> Bool {
    switch name {
    case "share":
      guard let share = Share(rawValue: value) else { return false }
      self.share = share
    case "passing":
      guard let number = Int(value), (1...4).contains(number) else { return false }
      stages = number
    case "adding":
      guard let adding = Adding(rawValue: value) else { return false }
      self.adding = adding
    default: return false
    }
    return true
  }
}
