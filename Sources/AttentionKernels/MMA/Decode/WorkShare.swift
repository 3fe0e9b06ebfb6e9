internal import PTX

/// A block's share of the work, found from the lengths in the GPU's memory, so that no host ever waits for them.
final class WorkShare {
  /// A unit of which the block has some tiles.
  struct Unit {
    /// The sequence, its keys and queries, and the first tile of keys that some query sees.
    let sequence, length, queries, firstKeyTile: Register<S32>
    /// The row of its first query, where queries are packed.
    let firstQuery: Register<U32>?
    /// Its key/value head, and its block of rows.
    let head, rowBlock: Register<U32>
    /// Its number among the units of all sequences.
    let number: Register<S32>
    /// Its first place, counted over all units, how many it has, and how many of them are tiles.
    let firstTile, places, tiles: Register<S32>
  }
  /// The numbers of a unit's first and its last part: of blocks, or of splits.
  typealias Parts = (first: Register<S32>, last: Register<S32>)

  private let k: KernelBuilder
  private let s: DecodeSpecialization
  private let parameters: DecodeParameters
  private let table: SequenceTable
  private let rule: WorkRule<EmittedNumber>
  private let places: SequencePlaces
  private let share: Register<S32>
  /// The block's places, counted over all units.
  let first, end: Register<S32>

  init(_ k: KernelBuilder, _ s: DecodeSpecialization, _ parameters: DecodeParameters, lane: Register<U32>) {
    (self.k, self.s, self.parameters) = (k, s, parameters)
    func number(_ register: Register<S32>) -> EmittedNumber { EmittedNumber(k: k, register: register) }
    table = SequenceTable(k, s, parameters)
    rule = WorkRule(
      tileKeys: s.tiling.tileKeys, rows: s.tiling.rows, groupSize: s.groupSize,
      keyValueHeads: number(parameters.keyValueHeads.reinterpreted(as: S32.self)),
      left: s.mask.skips(.left) ? number(parameters.left) : nil,
      chunk: s.mask.skips(.chunks) ? number(parameters.chunk) : nil,
      splitTiles: s.hasFixedSplits ? number(parameters.splitTiles) : nil, waves: s.tiling.waves)
    k.comment("this block's share of all tiles")
    places = SequencePlaces(k, s, parameters, rule, lane: lane)
    share = rule.share(
      total: number(places.total), units: s.hasPackedQueries ? nil : EmittedNumber(k: k, parameters.units),
      blocks: EmittedNumber(k: k, parameters.blocks)
    ).register.named("share")
    first = (k.special(.blockX).reinterpreted(as: S32.self) * share).named("first_tile")
    end = k.minimum(first + share, places.total).named("end_tile")
  }

  private func number(_ register: Register<S32>) -> EmittedNumber { EmittedNumber(k: k, register: register) }

  /// The unit of a sequence's head that has a block of rows.
  func unit(sequence: Register<S32>, head: Register<U32>, rowBlock: Register<U32>) -> Unit {
    unit(places.sequence(sequence)) { _ in (head, rowBlock) }
  }

  /// Emits what is done with a piece of the block's work: the rest of a unit or a split of it, of which `body` gets the
  /// number of the part and the tiles, counted from the unit's first.
  func forEachPiece(
    _ body: (Unit, Register<S32>, (first: Register<S32>, end: Register<S32>)) -> Void
  ) {
    let tile = k.variable(first).named("tile")
    k.if(first .< end) {
      k.loop {
        let unit = unit(ofPlace: tile)
        var behind = unit.firstTile + unit.places
        var part = k.special(.blockX).reinterpreted(as: S32.self)
        if s.hasFixedSplits {
          part = tile / parameters.splitTiles
          behind = (part + 1) * parameters.splitTiles
        }
        let last = k.minimum(k.minimum(unit.firstTile + unit.tiles, behind), end)
        body(unit, part, (tile - unit.firstTile, last - unit.firstTile))
        k.set(tile, to: behind)
        return tile .< end
      }
    }
  }

  /// The unit that a place belongs to.
  func unit(ofPlace place: Register<S32>) -> Unit {
    k.comment("the unit of the next tile")
    let sequence = places.sequence(ofPlace: place)
    return unit(sequence) { ofUnit in
      let unit = (place - sequence.before).reinterpreted(as: U32.self) / ofUnit.reinterpreted(as: U32.self)
      guard s.hasPackedQueries else {
        let (head, rowBlock) = k.division(unit, by: parameters.rowBlocks)
        return (head, rowBlock)
      }
      let rowBlocks = rowBlocks(of: sequence)
      let head = unit / rowBlocks
      return (head, unit - head * rowBlocks)
    }
  }

  /// The blocks of rows of a sequence's heads: at most as many as there is room for in the list of arrivals.
  private func rowBlocks(of sequence: SequencePlaces.Sequence) -> Register<U32> {
    s.hasPackedQueries
      ? rule.rowBlocks(queries: number(sequence.queries)).register.reinterpreted(as: U32.self)
      : parameters.rowBlocks.number
  }

  /// A unit of a sequence.
  ///
  /// - Parameter which: its head and its block of rows, from the places of each of the sequence's units.
  private func unit(
    _ sequence: SequencePlaces.Sequence,
    which: (Register<S32>) -> (head: Register<U32>, rowBlock: Register<U32>)
  ) -> Unit {
    let (keys, queries) = (number(sequence.keys), number(sequence.queries))
    let tiles = rule.tiles(length: keys, queries: queries)
    let ofUnit = rule.places(tiles: tiles).register
    let (head, rowBlock) = which(ofUnit)
    let place = head * rowBlocks(of: sequence) + rowBlock
    let unitNumber =
      (sequence.number.reinterpreted(as: U32.self) * parameters.keyValueHeads + head) * parameters.rowBlocks.number
      + rowBlock
    return Unit(
      sequence: sequence.number, length: sequence.keys, queries: sequence.queries,
      firstKeyTile: rule.firstTile(length: keys, queries: queries).register,
      firstQuery: table.firstQuery(of: sequence.number), head: head, rowBlock: rowBlock,
      number: unitNumber.reinterpreted(as: S32.self),
      firstTile: sequence.before + place.reinterpreted(as: S32.self) * ofUnit, places: ofUnit, tiles: tiles.register)
  }

  /// The numbers of a unit's first and its last part: of blocks, or of splits.
  func parts(of unit: Unit) -> Parts {
    let parts = rule.parts(firstTile: number(unit.firstTile), tiles: number(unit.tiles), share: number(share))
    return (parts.first.register, parts.last.register)
  }
}
