internal import Attention

/// How the tiles of all sequences are shared out over the blocks of a grid, so that all end together whatever the
/// lengths are.
///
/// Lay all tiles in a row: sequence after sequence, of each its units (a key/value head and a block of rows) one after
/// the other, of each unit the tiles of its visible keys. Every block takes as many neighbours as every other. A unit
/// that several blocks have parts of is put together at the end.
///
/// With splits of a fixed length, each unit is cut into parts of so many tiles from its first on, and blocks take whole
/// parts: what is computed together then does not depend on other sequences, nor on the grid.
///
/// Written once: a kernel emits it, and `KernelPlan.splits` runs it on the CPU.
struct WorkRule<Number: RuleNumber> {
  let tileKeys: Int
  /// Rows of a block of rows, and rows of each query.
  let rows, groupSize: Int
  let keyValueHeads: Number
  /// How far before its own key a query sees, and the size of chunks; nil for all the way, and none.
  let left, chunk: Number?
  /// Tiles of a split of fixed length; nil for splits as the grid has them.
  let splitTiles: Number?
  /// Blocks one after the other, as `DecodeTiling.waves` has them.
  let waves: Int

  /// The first key of a sequence that some query sees, at a tile's start, in tiles.
  func firstTile(length: Number, queries: Number) -> Number {
    let diagonal = length.subtracting(queries)
    let seen = VisibleKeys(
      keys: length, left: left.map(diagonal.subtracting), right: nil, diagonal: diagonal, chunk: chunk)
    return seen.first(ofQuery: length.constant(0)).divided(by: tileKeys)
  }

  /// The tiles of a unit: one at least, so that a sequence without keys gets its zeros.
  func tiles(length: Number, queries: Number) -> Number {
    length.dividedUp(by: tileKeys).subtracting(firstTile(length: length, queries: queries)).orAtLeast(1)
  }

  /// Blocks of rows of a head.
  func rowBlocks(queries: Number) -> Number { queries.multiplied(by: groupSize).dividedUp(by: rows) }

  /// The units of a sequence.
  func units(queries: Number) -> Number { rowBlocks(queries: queries).multiplied(by: keyValueHeads) }

  /// The places that a unit of so many tiles takes in the row: whole splits.
  func places(tiles: Number) -> Number {
    guard let splitTiles else { return tiles }
    return tiles.dividedUp(by: splitTiles).multiplied(by: splitTiles)
  }

  /// Of a share, the part by which it may be longer than an even one; shares of up to so many tiles then cannot be.
  private static var slack: Int { 16 }

  /// The places of each block: as many as every other, or up to a sixteenth more, where units have a whole number of
  /// tiles on the average, as those that are alike do, and blocks then have whole units of that size or whole parts of
  /// one: what begins and ends in the middle of a unit costs a block some microseconds (NVIDIA H200, 2026-11-21, `bench
  /// decode`, Documentation/GPULog.md).
  ///
  /// Of several waves, each block has whole units; where units have no whole number of tiles on the average, there is but one
  /// wave of blocks that have something to do, because parts cost more than waves give.
  ///
  /// - Parameters:
  ///   - units: of all sequences; nil where only the sequences tell.
  ///   - blocks: of all waves.
  func share(total: Number, units: Number?, blocks: Number) -> Number {
    if let splitTiles {
      return total.divided(by: splitTiles).dividedUp(by: blocks).orAtLeast(1).multiplied(by: splitTiles)
    }
    let even = total.dividedUp(by: waves == 1 ? blocks : blocks.divided(by: waves).orAtLeast(1)).orAtLeast(1)
    guard let units else { return even }
    if waves > 1 {
      let tiles = total.divided(by: units.orAtLeast(1))
      return total.subtracting(tiles.multiplied(by: units))
        .whereZero(units.dividedUp(by: blocks).multiplied(by: tiles).orAtLeast(1), else: even)
    }
    return even.refined(above: Self.slack) {
      let tiles = total.divided(by: units)
      let parts = tiles.divided(by: even).orAtLeast(1)
      let part = tiles.dividedUp(by: parts).orAtLeast(1)
      let whole = even.dividedUp(by: part).multiplied(by: part)
      // What must be zero: what is left over units, what is left over parts, and what is too much.
      let differences = total.subtracting(tiles.multiplied(by: units))
        .adding(part.multiplied(by: parts).subtracting(tiles))
        .adding(whole.subtracting(even).subtracting(even.divided(by: Self.slack)).orAtLeast(0))
      return differences.whereZero(whole, else: even)
    }
  }

  /// The parts of a unit: numbers of blocks, or of splits.
  func parts(firstTile: Number, tiles: Number, share: Number) -> (first: Number, last: Number) {
    let size = splitTiles ?? share
    return (firstTile.divided(by: size), firstTile.adding(tiles).adding(-1).divided(by: size))
  }
}
