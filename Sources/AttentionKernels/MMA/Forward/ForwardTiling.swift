package import PTX

/// How a forward kernel cuts its work: rows of queries over warps, keys into tiles, and how both pass through shared
/// memory.
///
/// The rungs of the ladder that the origin climbs (Documentation/Ladder.md) are values of this type, and so is
/// everything between them.
package struct ForwardTiling: Hashable, Sendable {
  /// What the warps of a block divide.
  package enum WarpTiling: Hashable, Sendable {
    /// The rows: each warp has rows of its own ("split-Q").
    case queries
    /// Rows, and the keys of a tile and columns of O: this many warps share rows, exchange maxima and weights through
    /// shared memory, and each has a part of O's columns ("split-KV" of FlashAttention 1). The tiling along D for head
    /// dimensions whose O does not fit the registers of a warp.
    case queriesAndKeys(columns: Int)
  }

  /// Which tensors lie in the same bytes of shared memory, one after the other.
  package enum Sharing: String, Hashable, Sendable, CaseIterable {
    /// None: each stage holds K and V of a tile.
    case none
    /// K and V take turns in the stages.
    case keysAndValues = "kv"
    /// K and V take turns in the bytes where Q was, which has moved to registers.
    case queriesKeysAndValues = "qkv"
  }

  /// How O gets from registers to memory, 16 bytes a lane.
  package enum Store: String, Hashable, Sendable, CaseIterable {
    /// Through shared memory, after which neighbouring lanes hold neighbouring chunks.
    case throughSharedMemory = "shared"
    /// By shuffles among the four lanes that hold a row.
    case byShuffles = "shuffles"
  }

  /// Warps of a block.
  package var warps: Int
  /// What they divide.
  package var warpTiling: WarpTiling
  /// What lies in the same shared memory.
  package var sharing: Sharing
  /// 16-row tiles of a warp: with 2, each fragment of K and V that is read from shared memory is used twice.
  package var rowTilesPerWarp: Int
  /// Keys of a tile, a multiple of 16.
  package var tileKeys: Int
  /// Places in the ring of shared memory: for K and V of a tile together, or, where these share bytes, for one of them.
  /// With one, nothing is copied while it is read.
  package var stages: Int
  /// Parts that K (along D) and V (along the keys) of a tile come in, where they share bytes: a place in the ring then
  /// holds no more than a part.
  package var slices: Int
  /// How rows lie in shared memory without bank conflicts.
  package var layout: SharedTile.Layout
  /// Whether the fragments of Q stay in registers, or are read again for each tile.
  package var keepsQueries: Bool
  /// How O is stored.
  package var store: Store
  /// What the tensor cores sum in. With f16, which f16 inputs alone have, scores are rounded to f16 and no larger than
  /// 65504, and the sums of a tile of V too; from tile to tile O is summed in f32.
  package var sums: Matrix.Accumulator
  /// Blocks that should fit a multiprocessor; it bounds the registers.
  package var blocksPerMultiprocessor: Int

  /// A tiling of the given sizes.
  package init(
    warps: Int = 4, warpTiling: WarpTiling = .queries, sharing: Sharing = .none, rowTilesPerWarp: Int = 2,
    tileKeys: Int = 64, stages: Int = 2, slices: Int = 1, layout: SharedTile.Layout = .swizzled,
    keepsQueries: Bool = true, store: Store = .throughSharedMemory, sums: Matrix.Accumulator = .f32,
    blocksPerMultiprocessor: Int = 2
  ) {
    self.warps = warps
    self.warpTiling = warpTiling
    self.sharing = sharing
    self.rowTilesPerWarp = rowTilesPerWarp
    self.tileKeys = tileKeys
    self.stages = stages
    self.slices = slices
    self.layout = layout
    self.keepsQueries = keepsQueries
    self.store = store
    self.sums = sums
    self.blocksPerMultiprocessor = blocksPerMultiprocessor
  }

  /// Packed query rows of a block.
  package var rows: Int { warps / columnWarps * rowsPerWarp }
  /// Warps that share rows.
  package var columnWarps: Int { if case .queriesAndKeys(let columns) = warpTiling { columns } else { 1 } }
  /// Keys of a tile whose scores a warp computes.
  var keysPerWarp: Int { tileKeys / columnWarps }
  /// Packed query rows of a warp.
  package var rowsPerWarp: Int { rowTilesPerWarp * 16 }
  /// Threads of a block.
  package var threads: Int { warps * 32 }
  /// Keys of a slice of V.
  var keysPerSlice: Int { tileKeys / slices }

  /// The keys of a tile in the pieces that scores are computed in: enough for eight independent products. Q that is
  /// read again is read for all keys at once, and so is K that comes in slices.
  var scorePieces: [Range<Int>] {
    let enough = 64 / rowTilesPerWarp
    let isWhole = !keepsQueries || slices > 1
    let piece = isWhole ? keysPerWarp : keysPerWarp % enough == 0 ? enough : 16
    return stride(from: 0, to: keysPerWarp, by: piece).map { $0..<$0 + piece }
  }

  var name: String {
    var name = "\(rows)x\(tileKeys)_warps\(warps)_stages\(stages)"
    if columnWarps > 1 { name += "_columns\(columnWarps)" }
    if sharing != .none { name += "_shared_\(sharing.rawValue)" }
    if slices > 1 { name += "_slices\(slices)" }
    if keepsQueries { name += "_q" }
    if layout == .padded { name += "_padded" }
    if store == .byShuffles { name += "_shuffles" }
    if sums == .f16 { name += "_f16_sums" }
    return name
  }
}

/// A rung of the origin's ladder: what warps divide, and what shares memory. How many stages it has, and everything
/// else, is up to the tiling.
package struct Rung: Hashable, Sendable, CaseIterable, CustomStringConvertible {
  /// Whether warps divide keys as well as rows.
  package let splitsKeys: Bool
  /// What lies in the same shared memory.
  package let sharing: ForwardTiling.Sharing

  /// The origin's four first, then what else their parts make: split-KV with shared memory.
  package static let allCases =
    [Rung(splitsKeys: true, sharing: .none)]
    + ForwardTiling.Sharing.allCases.map { Rung(splitsKeys: false, sharing: $0) }
    + [ForwardTiling.Sharing.keysAndValues, .queriesKeysAndValues].map { Rung(splitsKeys: true, sharing: $0) }

  /// The origin's name.
  package var description: String {
    (splitsKeys ? "split-kv" : "split-q") + (sharing == .none ? "" : "-shared-\(sharing.rawValue)")
  }
}

extension ForwardTiling {
  /// The rung of the ladder. Setting it keeps everything else, but for what the rung needs: four warps for the same
  /// rows, Q in registers, whole tiles.
  package var rung: Rung {
    get { Rung(splitsKeys: columnWarps > 1, sharing: sharing) }
    set {
      sharing = newValue.sharing
      if !newValue.splitsKeys {
        warpTiling = .queries
      } else if columnWarps == 1 {
        warpTiling = .queriesAndKeys(columns: min(4, warps))
      }
      if sharing == .queriesKeysAndValues { keepsQueries = true }
      if sharing == .none { slices = 1 }
    }
  }
}

extension ForwardTiling: CustomStringConvertible {
  /// The cut in words.
  package var description: String {
    let stages = "\(stages) \(stages == 1 ? "stage" : "stages")\(slices > 1 ? " of \(slices) slices a tile" : "")"
    return "\(rung), \(stages): tiles of \(rows) rows x \(tileKeys) keys, \(warps) warps, Q in "
      + (keepsQueries ? "registers" : "shared memory") + (layout == .padded ? ", padded rows" : "")
      + (store == .byShuffles ? ", O stored by shuffles" : "") + (sums == .f16 ? ", sums in f16" : "")
  }
}
