internal import PTX

extension ForwardTiling: KernelTiling {
  /// What `changed(by:)` reads, for help and errors.
  package static let changeSyntax =
    "rung=split-kv|split-q|split-q-shared-kv|split-q-shared-qkv|split-kv-shared-kv|split-kv-shared-qkv, warps=2...16 in 2s, "
    + "columns=1|2|4|8 (warps that share rows), row-tiles=1|2, keys=16...128 in 16s, stages=1...8, slices=1|2|4|8, "
    + "layout=swizzled|padded, queries=registers|shared, store=shared|shuffles, sums=f32|f16, blocks=1...16"

  /// This tiling as a text that makes it of any that a plan chooses by itself.
  package var changes: String {
    let columns = columnWarps > 1 ? "columns=\(columnWarps)," : ""
    let slices = sharing != .none ? "slices=\(slices)," : ""
    let others =
      (layout == .padded ? ",layout=padded" : "") + (store == .byShuffles ? ",store=shuffles" : "")
      + (sums == .f16 ? ",sums=f16" : "")
    return
      "rung=\(rung),warps=\(warps),\(columns)row-tiles=\(rowTilesPerWarp),keys=\(tileKeys),stages=\(stages),\(slices)"
      + "queries=\(keepsQueries ? "registers" : "shared"),blocks=\(blocksPerMultiprocessor)\(others)"
  }

  /// One of `changeSyntax`.
  package mutating func change(_ name: String, to value: String) -> Bool {
    func set<T>(_ path: WritableKeyPath<ForwardTiling, T>, _ value: T?) -> Bool {
      if let value { self[keyPath: path] = value }
      return value != nil
    }
    func number(_ allowed: some Sequence<Int>) -> Int? { Int(value).flatMap { allowed.contains($0) ? $0 : nil } }
    func one<T>(of cases: [T], _ name: (T) -> String) -> T? { cases.first { name($0) == value } }
    switch name {
    case "rung": return set(\.rung, one(of: Rung.allCases, \.description))
    case "warps": return set(\.warps, number(stride(from: 2, through: 16, by: 2)))
    case "columns":
      return set(\.warpTiling, number([1, 2, 4, 8]).map { $0 == 1 ? .queries : .queriesAndKeys(columns: $0) })
    case "row-tiles": return set(\.rowTilesPerWarp, number(1...2))
    case "keys": return set(\.tileKeys, number(stride(from: 16, through: 128, by: 16)))
    case "stages": return set(\.stages, number(1...8))
    case "slices": return set(\.slices, number([1, 2, 4, 8]))
    case "layout": return set(\.layout, one(of: SharedTile.Layout.allCases, \.rawValue))
    case "queries": return set(\.keepsQueries, one(of: [true, false]) { $0 ? "registers" : "shared" })
    case "store": return set(\.store, one(of: Store.allCases, \.rawValue))
    case "sums": return set(\.sums, one(of: [.f32, .f16], \.rawValue))
    case "blocks": return set(\.blocksPerMultiprocessor, number(1...16))
    default: return false
    }
  }
}
