internal import PTX

/// A block's share of the work, found from the lengths in the GPU's memory, so that no host ever waits for them.
struct WorkShare {
  /// A unit of which the block has some tiles.
  struct Unit {
    /// The sequence, its keys, and the first tile of them that some query sees.
    let sequence, length, firstKeyTile: Register<S32>
    /// Its number among the units of all sequences, and among those of its own.
    let number, place: Register<S32>
    /// Its first tile, counted over all units, and how many it has.
    let firstTile, tiles: Register<S32>
    /// The blocks that have its first and its last tile.
    let blocks: (first: Register<S32>, last: Register<S32>)
  }

  private let k: KernelBuilder
  private let s: DecodeSpecialization
  private let parameters: DecodeParameters
  private let rule: WorkRule<EmittedNumber>
  private let lane: Register<U32>
  /// Units of a sequence: key/value heads times blocks of rows.
  private let unitsOfSequence: Register<S32>
  private let share: Register<S32>
  /// The block's tiles, counted over all units.
  let first, end: Register<S32>

  /// Sequences that are looked at at once: four for each lane.
  private static let atOnce = 4

  init(_ k: KernelBuilder, _ s: DecodeSpecialization, _ parameters: DecodeParameters, lane: Register<U32>) {
    (self.k, self.s, self.parameters, self.lane) = (k, s, parameters, lane)
    rule = WorkRule(
      tileKeys: s.tiling.tileKeys,
      queries: EmittedNumber(k: k, register: parameters.queries.reinterpreted(as: S32.self)),
      left: s.mask.contains(.left) ? EmittedNumber(k: k, register: parameters.left) : nil)
    unitsOfSequence = (parameters.keyValueHeads * parameters.rowBlocks).reinterpreted(as: S32.self)
    k.comment("this block's share of all tiles")
    let sum = k.variable(k.constant(0, S32.self))
    let step = 32 * Self.atOnce
    let own = lane.reinterpreted(as: S32.self)
    let (rule, unitsOfSequence) = (rule, unitsOfSequence)
    k.loop(from: k.constant(0, S32.self), to: parameters.batch, by: step) { start in
      // Loads first, so that they are under way together.
      let sequences = (0..<Self.atOnce).map { start + own + $0 * 32 }
      let lengths = sequences.map { Self.length(k, s, parameters, of: $0) }
      for (sequence, length) in zip(sequences, lengths) {
        let tiles = k.select(sequence .< parameters.batch, Self.tiles(k, rule, length), k.constant(0, S32.self))
        k.set(sum, to: sum + tiles)
      }
    }
    let ofAll = [1, 2, 4, 8, 16].reduce(sum) { $0 + k.shuffle($0, xor: $1) } * unitsOfSequence
    let block = k.special(.blockX).reinterpreted(as: S32.self)
    let blocks = parameters.blocks
    share = WorkRule.share(
      total: EmittedNumber(k: k, register: ofAll), blocks: EmittedNumber(k: k, register: blocks), atLeast: 1
    ).register.named("share")
    first = (block * share).named("first_tile")
    end = k.minimum(first + share, ofAll).named("end_tile")
  }

  private static func tiles(
    _ k: KernelBuilder, _ rule: WorkRule<EmittedNumber>, _ length: Register<S32>
  ) -> Register<S32> { rule.tiles(length: EmittedNumber(k: k, register: length)).register }

  /// The keys of a sequence, without those before its beginning.
  private static func length(
    _ k: KernelBuilder, _ s: DecodeSpecialization, _ parameters: DecodeParameters, of sequence: Register<S32>
  ) -> Register<S32> {
    // Beyond the last, the last is read, and not used.
    let place = k.multiplyWide(k.minimum(sequence, parameters.batch - 1).reinterpreted(as: U32.self), 4)
    let rows = k.load(S32.self, global: parameters.lengths + place)
    let zero = k.constant(0, S32.self)
    if !s.hasLeftPadding { return k.maximum(rows, zero) }
    return k.maximum(rows - k.load(S32.self, global: parameters.leftPadding + place), zero)
  }

  /// A unit by its number.
  func unit(number: Register<S32>) -> Unit {
    let sequence = number / unitsOfSequence
    let sum = k.variable(k.constant(0, S32.self))
    let zero = k.constant(0, S32.self)
    k.loop(from: zero, to: sequence, by: 32) { start in
      let candidate = start + lane.reinterpreted(as: S32.self)
      let length = Self.length(k, s, parameters, of: candidate)
      k.set(sum, to: sum + k.select(candidate .< sequence, Self.tiles(k, rule, length), zero))
    }
    let before = [1, 2, 4, 8, 16].reduce(sum) { $0 + k.shuffle($0, xor: $1) } * unitsOfSequence
    return unit(sequence: sequence, tilesBefore: before) { _ in number - sequence * unitsOfSequence }
  }

  /// The unit that a tile belongs to.
  func unit(ofTile tile: Register<S32>) -> Unit {
    k.comment("the unit of the next tile")
    let zero = k.constant(0, S32.self)
    let (sequence, base) = (k.variable(zero), k.variable(zero))
    let isSearching = k.variable(k.constant(1, U32.self))
    k.loop(from: zero, to: parameters.batch, by: 32) { start in
      let candidate = start + lane.reinterpreted(as: S32.self)
      let length = Self.length(k, s, parameters, of: candidate)
      let tiles =
        k.select(candidate .< parameters.batch, Self.tiles(k, rule, length), k.constant(0, S32.self)) * unitsOfSequence
      // The tiles up to and with each lane's sequence.
      var ends = tiles
      for distance in [1, 2, 4, 8, 16] {
        let before = k.shuffle(ends, .up, by: distance)
        ends = k.select(lane .>= distance, ends + before, ends)
      }
      let isBefore = (base + ends) .<= tile
      let count = k.population(k.ballot(isBefore))
      let isFound = (isSearching .!= 0) & (count .< 32)
      // The tiles before the sequence: where it ends, less its own.
      let place = k.minimum(count, k.constant(31, U32.self))
      let beforeIt = k.shuffle(ends - tiles, lane: place)
      let ofAll = k.shuffle(ends, lane: k.constant(31, U32.self))
      k.set(sequence, to: k.select(isFound, start + count.reinterpreted(as: S32.self), sequence))
      let next = base + k.select(isFound, beforeIt, ofAll)
      k.set(base, to: k.select(isSearching .!= 0, next, base))
      k.set(isSearching, to: k.select(isFound, k.constant(0, U32.self), isSearching))
    }
    return unit(sequence: sequence, tilesBefore: base) { tiles in (tile - base) / tiles }
  }

  /// A unit of a sequence, of which the tiles of all sequences before are known.
  ///
  /// - Parameter place: which of the sequence's units, each of so many tiles.
  private func unit(
    sequence: Register<S32>, tilesBefore base: Register<S32>, place: (Register<S32>) -> Register<S32>
  ) -> Unit {
    let length = Self.length(k, s, parameters, of: sequence)
    let tiles = Self.tiles(k, rule, length)
    let place = place(tiles)
    let firstTile = base + place * tiles
    func number(_ register: Register<S32>) -> EmittedNumber { EmittedNumber(k: k, register: register) }
    let blocks = WorkRule.blocks(firstTile: number(firstTile), tiles: number(tiles), share: number(share))
    return Unit(
      sequence: sequence, length: length, firstKeyTile: rule.firstTile(length: number(length)).register,
      number: sequence * unitsOfSequence + place, place: place, firstTile: firstTile, tiles: tiles,
      blocks: (blocks.first.register, blocks.last.register))
  }
}
