/// How the gradients' kernels cut their work. There are two kinds of them: one keeps keys and values and lets the queries pass
/// by, for dK and dV; one keeps queries and lets the keys pass by, for dQ. Each kind is cut for itself. Or the first adds up dQ in
/// memory on its way, and there is no second.
package struct BackwardTiling: Hashable, Sendable {
  /// How one kind is cut.
  package struct Cut: Hashable, Sendable {
    /// Warps of a block.
    package var warps: Int
    /// 16-row tiles of what a warp keeps.
    package var rowTilesPerWarp: Int
    /// Warps that share rows: of the scores each makes those of some rows that pass, of the sums some columns.
    package var sharers: Int
    /// Rows of a tile that passes by, a multiple of 16.
    package var passingRows: Int
    /// Places in the ring of shared memory for what passes by.
    package var stages: Int
    /// Whether what is kept stays in registers, or is read again from shared memory for each tile that passes.
    package var keepsOperands: Bool
    /// Blocks that should fit a multiprocessor; it bounds the registers.
    package var blocksPerMultiprocessor: Int

    package init(
      warps: Int = 4, rowTilesPerWarp: Int = 1, sharers: Int = 1, passingRows: Int = 64, stages: Int = 2,
      keepsOperands: Bool = false, blocksPerMultiprocessor: Int = 1
    ) {
      (self.warps, self.rowTilesPerWarp, self.sharers) = (warps, rowTilesPerWarp, sharers)
      self.passingRows = passingRows
      (self.stages, self.keepsOperands) = (stages, keepsOperands)
      self.blocksPerMultiprocessor = blocksPerMultiprocessor
    }

    /// Rows that a warp, and that a block, keeps.
    package var rowsPerWarp: Int { rowTilesPerWarp * 16 }
    package var rows: Int { warps / sharers * rowsPerWarp }
    package var threads: Int { warps * 32 }
    /// Of the rows that pass, those whose scores a warp makes.
    package var passingRowsPerWarp: Int { passingRows / sharers }

    var name: String {
      "\(rows)x\(passingRows)_warps\(warps)_stages\(stages)" + (keepsOperands ? "_registers" : "")
        + (sharers > 1 ? "_sharers\(sharers)" : "")
    }
  }

  /// Of the kernels that keep keys and values.
  package var keys: Cut
  /// Of those that keep queries.
  package var queries: Cut
  /// Whether dK and dV come from a launch each, and the scores are computed once more: their sums then need not fit the
  /// registers together.
  package var separatesKeysAndValues: Bool
  /// Whether blocks of keys add up dQ in memory, in whatever order they come: five products instead of seven. The cut of those
  /// that keep queries then is nobody's.
  package var addsQueries: Bool

  /// A tiling of the given cuts.
  package init(
    keys: Cut = Cut(), queries: Cut = Cut(), separatesKeysAndValues: Bool = false, addsQueries: Bool = false
  ) {
    (self.keys, self.queries) = (keys, queries)
    (self.separatesKeysAndValues, self.addsQueries) = (separatesKeysAndValues, addsQueries)
  }
}

extension BackwardTiling: KernelTiling {
  /// What `changed(by:)` reads, for help and errors.
  package static let changeSyntax =
    "products=5|7, dkv-warps=1|2|4|8, dkv-row-tiles=1|2, dkv-sharers=1|2|4, dkv-rows=16...128 in 16s (of queries: 16|32|64|128), "
    + "dkv-stages=1|2|3, dkv-operands=registers|shared, dkv-blocks=1...4, dkv-launches=1|2, and the same of dq (but launches)"

  /// This tiling as a text that makes it of any that a plan chooses by itself.
  package var changes: String {
    func text(_ cut: Cut, _ name: String) -> String {
      "\(name)-warps=\(cut.warps),\(name)-row-tiles=\(cut.rowTilesPerWarp),\(name)-sharers=\(cut.sharers),"
        + "\(name)-rows=\(cut.passingRows),"
        + "\(name)-stages=\(cut.stages),\(name)-operands=\(cut.keepsOperands ? "registers" : "shared"),"
        + "\(name)-blocks=\(cut.blocksPerMultiprocessor)"
    }
    return "products=\(addsQueries ? 5 : 7)," + text(keys, "dkv") + ",dkv-launches=\(separatesKeysAndValues ? 2 : 1)"
      + (addsQueries ? "" : "," + text(queries, "dq"))
  }

  /// One of `changeSyntax`.
  package mutating func change(_ name: String, to value: String) -> Bool {
    if name == "products" {
      guard let products = Int(value), [5, 7].contains(products) else { return false }
      addsQueries = products == 5
      return true
    }
    let parts = name.split(separator: "-", maxSplits: 1).map(String.init)
    guard parts.count == 2, let cut = ["dkv": \Self.keys, "dq": \Self.queries][parts[0]] else { return false }
    func set<T>(_ path: WritableKeyPath<Cut, T>, _ value: T?) -> Bool {
      if let value { self[keyPath: cut][keyPath: path] = value }
      return value != nil
    }
    func number(_ allowed: some Sequence<Int>) -> Int? { Int(value).flatMap { allowed.contains($0) ? $0 : nil } }
    switch parts[1] {
    case "warps": return set(\.warps, number([1, 2, 4, 8]))
    case "row-tiles": return set(\.rowTilesPerWarp, number([1, 2]))
    case "sharers": return set(\.sharers, number([1, 2, 4]))
    case "rows": return set(\.passingRows, number(stride(from: 16, through: 128, by: 16)))
    case "stages": return set(\.stages, number(1...3))
    case "operands": return set(\.keepsOperands, ["registers": true, "shared": false][value])
    case "blocks": return set(\.blocksPerMultiprocessor, number(1...4))
    case "launches" where cut == \Self.keys:
      guard let launches = number(1...2) else { return false }
      separatesKeysAndValues = launches == 2
      return true
    default: return false
    }
  }
}

extension BackwardTiling: CustomStringConvertible {
  /// The cuts in words.
  package var description: String {
    func text(_ cut: Cut, _ kept: String, _ passing: String) -> String {
      "blocks of \(cut.rows) \(kept) pass tiles of \(cut.passingRows) \(passing), \(cut.warps) warps, \(cut.stages) "
        + (cut.stages == 1 ? "stage" : "stages") + (cut.keepsOperands ? ", kept in registers" : "")
        + (cut.sharers > 1 ? ", \(cut.sharers) warps share rows" : "")
    }
    if addsQueries {
      return "five products, dQ by f32 atomics in any order; all: " + text(keys, "keys", "rows")
    }
    return "seven products, no atomics; dK and dV\(separatesKeysAndValues ? " by a launch each" : ""): "
      + text(keys, "keys", "rows") + "; dQ: " + text(queries, "rows", "keys")
  }
}
