internal import PTX

/// Q, K and V of a block in shared memory, in rings, and how they are multiplied: what Hopper's kernels have in common.
///
///     Q, a stage after the other | K | V | K and V as bytes, where they come so, and words | barriers | what a kernel has beside
struct HopperTiles: Hashable, Sendable {
  /// The type of Q, K and V as they are multiplied.
  let inputs: Matrix.Inputs
  /// Groups of four warps that convert K and V, which come as bytes of e4m3 (`TileConverter`); 0 where they do not.
  let converters: Int
  /// D and D_v, multiples of 8; of bytes, of 16.
  let dimension, valueDimension: Int
  /// How many times 64 query rows there are.
  let rowGroups: Int
  /// Groups of four warps for each 64 rows, which divide the keys of a tile.
  var keyGroups = 1
  /// Keys of a tile.
  let tileKeys: Int
  /// Tiles of Q, and of K and V each, at once.
  let queryStages, stages: Int
  /// How weights are found.
  let softmax: HopperForwardTiling.Softmax
  /// Whether scores pass through a softcap, and whether the scale is below zero.
  let hasSoftcap, isScaleNegative: Bool

  /// Q, rows of all groups. Columns beyond D are zeros, here and in K and V.
  var queryTile: MatrixTile { MatrixTile(rows: rowGroups * 64, columns: dimension) }
  /// Groups of four warps that multiply.
  var groups: Int { rowGroups * keyGroups }
  /// Keys of a tile that one of them multiplies.
  var groupKeys: Int { tileKeys / keyGroups }

  /// K and V as products read them.
  var operands: TileRings {
    rings(dimension, valueDimension, from: queryStages * queryTile.byteCount, barriers: barriersOffset)
  }
  /// K and V as copies bring them: operands, or bytes, of which two count as an element.
  var brought: TileRings {
    convertsBytes
      ? rings(
        dimension / 2, valueDimension / 2, from: operandsEnd,
        barriers: barriersOffset + 4 * stages * BarrierRing.byteCount)
      : operands
  }

  private func rings(_ columns: Int, _ valueColumns: Int, from offset: Int, barriers: Int) -> TileRings {
    TileRings(
      keys: MatrixTile(rows: tileKeys, columns: columns), values: MatrixTile(rows: tileKeys, columns: valueColumns),
      stages: stages, keysOffset: offset, barriersOffset: barriers)
  }

  private var operandsEnd: Int {
    rings(dimension, valueDimension, from: queryStages * queryTile.byteCount, barriers: 0).end
  }
  var convertsBytes: Bool { converters > 0 }
  /// A word for each stage of bytes that a group looks at first: whether, instead of a tile, there is none any more.
  var endsOffset: Int {
    convertsBytes ? rings(dimension / 2, valueDimension / 2, from: operandsEnd, barriers: 0).end : operandsEnd
  }
  var barriersOffset: Int { endsOffset + (converters * stages + 3) / 4 * 16 }
  /// Behind the barriers of K and V.
  var end: Int { brought.barriersOffset + brought.barriersByteCount }

  /// What the barriers of K and V count in a phase, in the order of their addresses.
  var arrivals: [Int] {
    let (all, converters) = (4 * groups, TileConverter.warps)
    func twice(_ full: Int, _ empty: Int) -> [Int] {
      let one = HopperRings.arrivals(stages: stages, full: full, empty: empty)
      return one + one
    }
    return convertsBytes ? twice(converters, all) + twice(1, converters) : twice(1, all)
  }

  /// Threads of a block: those that multiply, the group that asks for copies, and those that convert bytes.
  var threads: Int { (groups + 1 + converters) * 128 }

  /// What stands against the tiles, as the end of a sentence about a tiling.
  var obstacle: String? {
    if groupKeys % 16 != 0 {
      return "divides \(tileKeys) keys between \(keyGroups) groups, which have a multiple of 16 each"
    }
    if !convertsBytes { return nil }
    if !TileConverter.rows.contains(tileKeys) {
      return
        "converts bytes in tiles of \(TileConverter.rows.map(String.init).joined(separator: ", ")) keys, not of \(tileKeys)"
    }
    let product = Self.product(columns: max(valueDimension, groupKeys), threads: threads)
    return product.fits
      ? nil : "begins with \(product.atFirst) registers a thread, of which a product needs \(product.needed)"
  }

  /// The registers that a thread of a block of so many begins with, and those that a product takes. (C7602: whatever there will be, ptxas
  /// 13.0 counts the first for the operands of one instruction.)
  static func product(columns: Int, threads: Int) -> (atFirst: Int, needed: Int, fits: Bool) {
    let atFirst = Kernel.registersAtFirst(threadsPerBlock: threads, blocksPerMultiprocessor: 1)
    let needed = columns / 2 + 30
    return (atFirst, needed, needed <= atFirst)
  }

  /// Registers of a thread that multiplies, about: what is not O, S and P as ptxas 13.0 has it.
  func registerEstimate(_ mask: MaskEdges) -> Int {
    valueDimension / 2 + groupKeys / 2 + groupKeys / 4 + 32 + (mask.limitsFirst && mask.rangeCount != 1 ? 8 : 0)
      + (hasSoftcap ? 16 : 0)
  }
}
