internal import PTX

/// Numbers that the rule of sharing out work is written in: `Int` on the CPU, registers in a kernel. (No operators: more of
/// them would slow down the type checker in every file.)
protocol RuleNumber {
  func adding(_ b: Self) -> Self
  func adding(_ b: Int) -> Self
  func subtracting(_ b: Self) -> Self
  /// The quotient toward zero.
  func divided(by b: Self) -> Self
  func divided(by b: Int) -> Self
  /// The larger of the two.
  func orAtLeast(_ b: Int) -> Self
}

/// How the tiles of all sequences are shared out over the blocks of a grid, so that all end together whatever the lengths are.
///
/// Lay all tiles in a row: sequence after sequence, of each its units (a key/value head and a block of rows) one after the other, of
/// each unit the tiles of its visible keys. Every block takes as many neighbours as every other. A unit that several blocks
/// have parts of is put together at the end.
///
/// Written once: a kernel emits it, and `DecodePlan.splits` runs it on the CPU.
struct WorkRule<Number: RuleNumber> {
  let tileKeys: Int
  /// Queries of a sequence, and how far before its own key a query sees; nil for all the way.
  let queries: Number
  let left: Number?

  /// The first key of a sequence that some query sees, at a tile's start, in tiles.
  func firstTile(length: Number) -> Number {
    guard let left else { return length.subtracting(length) }
    return length.subtracting(queries).subtracting(left).orAtLeast(0).divided(by: tileKeys)
  }

  /// The tiles of a unit: one at least, so that a sequence without keys gets its zeros.
  func tiles(length: Number) -> Number {
    length.adding(tileKeys - 1).divided(by: tileKeys).subtracting(firstTile(length: length)).orAtLeast(1)
  }

  /// The tiles of each block.
  static func share(total: Number, blocks: Number, atLeast: Int) -> Number {
    total.adding(blocks).adding(-1).divided(by: blocks).orAtLeast(atLeast)
  }

  /// The blocks that have the first and the last tile of a unit.
  static func blocks(firstTile: Number, tiles: Number, share: Number) -> (first: Number, last: Number) {
    (firstTile.divided(by: share), firstTile.adding(tiles).adding(-1).divided(by: share))
  }
}

extension Int: RuleNumber {
  func adding(_ b: Int) -> Int { self + b }
  func subtracting(_ b: Int) -> Int { self - b }
  func divided(by b: Int) -> Int { self / b }
  func orAtLeast(_ b: Int) -> Int { Swift.max(self, b) }
}

/// A number that a kernel computes.
struct EmittedNumber: RuleNumber {
  let k: KernelBuilder
  let register: Register<S32>

  private func with(_ register: Register<S32>) -> EmittedNumber { EmittedNumber(k: k, register: register) }
  func adding(_ b: EmittedNumber) -> EmittedNumber { with(register + b.register) }
  func adding(_ b: Int) -> EmittedNumber { with(register + b) }
  func subtracting(_ b: EmittedNumber) -> EmittedNumber { with(register - b.register) }
  func divided(by b: EmittedNumber) -> EmittedNumber { with(register / b.register) }
  func divided(by b: Int) -> EmittedNumber { with(register / b) }
  func orAtLeast(_ b: Int) -> EmittedNumber { with(k.maximum(register, k.constant(b, S32.self))) }
}
