internal import PTX

/// Numbers that the rule of sharing out work is written in: `Int` on the CPU, registers in a kernel. What is divided is never
/// negative. (No operators: more of them would slow down the type checker in every file.)
protocol RuleNumber {
  func adding(_ b: Self) -> Self
  func adding(_ b: Int) -> Self
  func subtracting(_ b: Self) -> Self
  func multiplied(by b: Self) -> Self
  func multiplied(by b: Int) -> Self
  /// The quotient, rounded down.
  func divided(by b: Self) -> Self
  func divided(by b: Int) -> Self
  /// The larger of the two.
  func orAtLeast(_ b: Int) -> Self
  func orAtLeast(_ b: Self) -> Self
}

extension RuleNumber {
  /// The quotient, rounded up.
  func dividedUp(by b: Self) -> Self { adding(b).adding(-1).divided(by: b) }
  func dividedUp(by b: Int) -> Self { adding(b - 1).divided(by: b) }
}

/// How the tiles of all sequences are shared out over the blocks of a grid, so that all end together whatever the lengths are.
///
/// Lay all tiles in a row: sequence after sequence, of each its units (a key/value head and a block of rows) one after the other, of
/// each unit the tiles of its visible keys. Every block takes as many neighbours as every other. A unit that several blocks
/// have parts of is put together at the end.
///
/// With splits of a fixed length, each unit is cut into parts of so many tiles from its first on, and blocks take whole parts: what
/// is computed together then does not depend on other sequences, nor on the grid.
///
/// Written once: a kernel emits it, and `DecodePlan.splits` runs it on the CPU.
struct WorkRule<Number: RuleNumber> {
  let tileKeys: Int
  /// Rows of a block of rows, and rows of each query.
  let rows, groupSize: Int
  let keyValueHeads: Number
  /// How far before its own key a query sees, and the size of chunks; nil for all the way, and none.
  let left, chunk: Number?
  /// Tiles of a split of fixed length; nil for splits as the grid has them.
  let splitTiles: Number?

  /// The first key of a sequence that some query sees, at a tile's start, in tiles.
  func firstTile(length: Number, queries: Number) -> Number {
    let place = length.subtracting(queries)
    var first = length.subtracting(length)
    if let left { first = place.subtracting(left).orAtLeast(0) }
    if let chunk { first = first.orAtLeast(place.orAtLeast(0).divided(by: chunk).multiplied(by: chunk)) }
    return first.divided(by: tileKeys)
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

  /// The places of each block.
  func share(total: Number, blocks: Number) -> Number {
    guard let splitTiles else { return total.dividedUp(by: blocks).orAtLeast(1) }
    return total.divided(by: splitTiles).dividedUp(by: blocks).orAtLeast(1).multiplied(by: splitTiles)
  }

  /// The parts of a unit: numbers of blocks, or of splits.
  func parts(firstTile: Number, tiles: Number, share: Number) -> (first: Number, last: Number) {
    let size = splitTiles ?? share
    return (firstTile.divided(by: size), firstTile.adding(tiles).adding(-1).divided(by: size))
  }
}

extension Int: RuleNumber {
  func adding(_ b: Int) -> Int { self + b }
  func subtracting(_ b: Int) -> Int { self - b }
  func multiplied(by b: Int) -> Int { self * b }
  func divided(by b: Int) -> Int { self / b }
  func orAtLeast(_ b: Int) -> Int { Swift.max(self, b) }
}

/// A number that a kernel computes.
struct EmittedNumber: RuleNumber {
  let k: KernelBuilder
  let register: Register<S32>

  private func with(_ register: Register<S32>) -> EmittedNumber { EmittedNumber(k: k, register: register) }
  func adding(_ b: EmittedNumber) -> EmittedNumber { with(register + b.register) }
  func adding(_ b: Int) -> EmittedNumber { b == 0 ? self : with(register + b) }
  func subtracting(_ b: EmittedNumber) -> EmittedNumber { with(register - b.register) }
  func multiplied(by b: EmittedNumber) -> EmittedNumber { with(register * b.register) }
  func multiplied(by b: Int) -> EmittedNumber { b == 1 ? self : with(register * b) }
  // Without a sign, which costs instructions.
  func divided(by b: EmittedNumber) -> EmittedNumber {
    with((register.reinterpreted(as: U32.self) / b.register.reinterpreted(as: U32.self)).reinterpreted(as: S32.self))
  }
  func divided(by b: Int) -> EmittedNumber {
    with((register.reinterpreted(as: U32.self) / b).reinterpreted(as: S32.self))
  }
  func orAtLeast(_ b: Int) -> EmittedNumber { with(k.maximum(register, k.constant(b, S32.self))) }
  func orAtLeast(_ b: EmittedNumber) -> EmittedNumber { with(k.maximum(register, b.register)) }
}
