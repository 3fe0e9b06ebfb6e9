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
    /// The numbers of its first and its last part: of blocks, or of splits.
    let parts: (first: Register<S32>, last: Register<S32>)
  }

  private let k: KernelBuilder
  private let s: DecodeSpecialization
  private let parameters: DecodeParameters
  private let table: SequenceTable
  private let rule: WorkRule<EmittedNumber>
  private let lane: Register<U32>
  private let share: Register<S32>
  /// The block's places, counted over all units.
  let first, end: Register<S32>

  /// Sequences that are looked at at once: four for each lane.
  private static let atOnce = 4

  init(_ k: KernelBuilder, _ s: DecodeSpecialization, _ parameters: DecodeParameters, lane: Register<U32>) {
    (self.k, self.s, self.parameters, self.lane) = (k, s, parameters, lane)
    func number(_ register: Register<S32>) -> EmittedNumber { EmittedNumber(k: k, register: register) }
    let table = SequenceTable(k, s, parameters)
    self.table = table
    let rule = WorkRule(
      tileKeys: s.tiling.tileKeys, rows: s.tiling.rows, groupSize: s.groupSize,
      keyValueHeads: number(parameters.keyValueHeads.reinterpreted(as: S32.self)),
      left: s.mask.skips(.left) ? number(parameters.left) : nil,
      chunk: s.mask.skips(.chunks) ? number(parameters.chunk) : nil,
      splitTiles: s.hasFixedSplits ? number(parameters.splitTiles) : nil, waves: s.tiling.waves)
    self.rule = rule
    k.comment("this block's share of all tiles")
    let sum = k.variable(k.constant(0, S32.self))
    let step = 32 * Self.atOnce
    let own = lane.reinterpreted(as: S32.self)
    k.loop(from: k.constant(0, S32.self), to: parameters.batch, by: step) { start in
      // Loads first, so that they are under way together.
      let sequences = (0..<Self.atOnce).map { start + own + $0 * 32 }
      let counts = sequences.map { (keys: table.keys(of: $0), queries: table.queries(of: $0)) }
      for (sequence, count) in zip(sequences, counts) {
        let places = Self.places(rule, keys: number(count.keys), queries: number(count.queries))
        k.set(sum, to: sum + k.select(sequence .< parameters.batch, places.ofAll, k.constant(0, S32.self)))
      }
    }
    let ofAll = [1, 2, 4, 8, 16].reduce(sum) { $0 + k.shuffle($0, xor: $1) }
    let block = k.special(.blockX).reinterpreted(as: S32.self)
    let units =
      s.hasPackedQueries
      ? nil
      : number(parameters.batch * (parameters.keyValueHeads * parameters.rowBlocks).reinterpreted(as: S32.self))
    share = rule.share(total: number(ofAll), units: units, blocks: number(parameters.blocks)).register.named("share")
    first = (block * share).named("first_tile")
    end = k.minimum(first + share, ofAll).named("end_tile")
  }

  /// The places of a unit of a sequence, how many of them are tiles, and the places of all of its units.
  private static func places(
    _ rule: WorkRule<EmittedNumber>, keys: EmittedNumber, queries: EmittedNumber
  ) -> (tiles: EmittedNumber, ofUnit: EmittedNumber, ofAll: Register<S32>) {
    let tiles = rule.tiles(length: keys, queries: queries)
    let places = rule.places(tiles: tiles)
    return (tiles, places, places.multiplied(by: rule.units(queries: queries)).register)
  }

  private func number(_ register: Register<S32>) -> EmittedNumber { EmittedNumber(k: k, register: register) }

  /// The places of all units of a sequence; none beyond the last sequence.
  private func places(of sequence: Register<S32>, before end: Register<S32>) -> Register<S32> {
    let places = Self.places(
      rule, keys: number(table.keys(of: sequence)), queries: number(table.queries(of: sequence)))
    return k.select(sequence .< end, places.ofAll, k.constant(0, S32.self))
  }

  /// The unit of a sequence's head that has a block of rows.
  func unit(sequence: Register<S32>, head: Register<U32>, rowBlock: Register<U32>) -> Unit {
    let sum = k.variable(k.constant(0, S32.self))
    k.loop(from: k.constant(0, S32.self), to: sequence, by: 32) { start in
      k.set(sum, to: sum + places(of: start + lane.reinterpreted(as: S32.self), before: sequence))
    }
    let before = [1, 2, 4, 8, 16].reduce(sum) { $0 + k.shuffle($0, xor: $1) }
    return unit(sequence: sequence, placesBefore: before) { _, _ in (head, rowBlock) }
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
    let zero = k.constant(0, S32.self)
    let (sequence, base) = (k.variable(zero), k.variable(zero))
    let isSearching = k.variable(k.constant(1, U32.self))
    k.loop(from: zero, to: parameters.batch, by: 32) { start in
      let own = places(of: start + lane.reinterpreted(as: S32.self), before: parameters.batch)
      // The places up to and with each lane's sequence.
      var ends = own
      for distance in [1, 2, 4, 8, 16] {
        let before = k.shuffle(ends, .up, by: distance)
        ends = k.select(lane .>= distance, ends + before, ends)
      }
      let isBefore = (base + ends) .<= place
      let count = k.population(k.ballot(isBefore))
      let isFound = (isSearching .!= 0) & (count .< 32)
      // The places before the sequence: where it ends, less its own.
      let which = k.minimum(count, k.constant(31, U32.self))
      let beforeIt = k.shuffle(ends - own, lane: which)
      let ofAll = k.shuffle(ends, lane: k.constant(31, U32.self))
      k.set(sequence, to: k.select(isFound, start + count.reinterpreted(as: S32.self), sequence))
      let next = base + k.select(isFound, beforeIt, ofAll)
      k.set(base, to: k.select(isSearching .!= 0, next, base))
      k.set(isSearching, to: k.select(isFound, k.constant(0, U32.self), isSearching))
    }
    return unit(sequence: sequence, placesBefore: base) { ofUnit, rowBlocks in
      let unit = (place - base).reinterpreted(as: U32.self) / ofUnit.reinterpreted(as: U32.self)
      let head = unit / rowBlocks
      return (head, unit - head * rowBlocks)
    }
  }

  /// A unit of a sequence, of which the places of all sequences before are known.
  ///
  /// - Parameter which: its head and its block of rows, from the places of each unit and the sequence's blocks of rows.
  private func unit(
    sequence: Register<S32>, placesBefore base: Register<S32>,
    which: (Register<S32>, Register<U32>) -> (head: Register<U32>, rowBlock: Register<U32>)
  ) -> Unit {
    let (length, queries) = (table.keys(of: sequence), table.queries(of: sequence))
    let places = Self.places(rule, keys: number(length), queries: number(queries))
    let ofUnit = places.ofUnit.register
    // At most as many as there is room for in the list of arrivals.
    let rowBlocks =
      s.hasPackedQueries
      ? rule.rowBlocks(queries: number(queries)).register.reinterpreted(as: U32.self) : parameters.rowBlocks
    let (head, rowBlock) = which(ofUnit, rowBlocks)
    let place = head * rowBlocks + rowBlock
    let firstTile = base + place.reinterpreted(as: S32.self) * ofUnit
    let parts = rule.parts(firstTile: number(firstTile), tiles: places.tiles, share: number(share))
    let unitNumber =
      (sequence.reinterpreted(as: U32.self) * parameters.keyValueHeads + head) * parameters.rowBlocks + rowBlock
    return Unit(
      sequence: sequence, length: length, queries: queries,
      firstKeyTile: rule.firstTile(length: number(length), queries: number(queries)).register,
      firstQuery: table.firstQuery(of: sequence), head: head, rowBlock: rowBlock,
      number: unitNumber.reinterpreted(as: S32.self), firstTile: firstTile, places: ofUnit,
      tiles: places.tiles.register,
      parts: (parts.first.register, parts.last.register))
  }
}
