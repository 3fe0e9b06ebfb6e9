internal import Attention

/// How a decode call's work is shared out over blocks, for lengths that the host knows: what the kernel decides from
/// the lengths that it finds, by the same rule.
package struct WorkSharing: Sendable {
  /// How the work of some lengths is shared out.
  package struct Shares: Sendable {
    /// A sequence.
    package struct Sequence: Hashable, Sendable {
      /// Its keys; the tiles of each of its units; and the most parts that one of these has.
      package let keys, tiles, parts: Int
    }
    /// One for each length.
    package let sequences: [Sequence]
    /// Units of each sequence, the tiles that a block takes, the blocks that have some, and the keys of a tile.
    package let units, tilesOfBlock, busyBlocks, tileKeys: Int
    /// What the call should take.
    package let cost: KernelCost
  }

  let problem: AttentionProblem
  let specialization: DecodeSpecialization
  let gpu: GPULimits
  /// Blocks of the grid.
  let blocks: Int
  /// Tiles of a split of fixed length; 0 without.
  let splitTiles: Int
  /// The tiling of Hopper's kernel, where that computes the attention.
  var hopper: HopperDecodeTiling?

  private var tiling: DecodeTiling { specialization.tiling }

  private var rule: WorkRule<Int> {
    let words = MaskWords(problem.mask)
    return WorkRule(
      tileKeys: tiling.tileKeys, rows: tiling.rows, groupSize: problem.groupSize, keyValueHeads: problem.keyValueHeads,
      left: specialization.mask.skips(.left) ? words.left : nil,
      chunk: specialization.mask.skips(.chunks) ? words.chunk : nil,
      splitTiles: splitTiles == 0 ? nil : splitTiles, waves: tiling.waves)
  }

  /// The shares of sequences.
  ///
  /// - Parameter lengths: the keys of each sequence, new ones included, without those before its beginning; each has
  ///   the problem's number of queries.
  package func shares(lengths: [Int]) -> Shares {
    let rule = rule
    let units = rule.units(queries: problem.queries)
    // As the kernel holds them.
    let lengths = lengths.map { min(max($0, 0), problem.keys) }
    let tiles = lengths.map { rule.tiles(length: $0, queries: problem.queries) }
    let places = tiles.map { rule.places(tiles: $0) }
    let all = places.reduce(0, +) * units
    let share = rule.share(
      total: all, units: specialization.hasPackedQueries ? nil : lengths.count * units, blocks: max(blocks, 1))
    var before = 0
    let sequences = zip(lengths, zip(tiles, places)).map { keys, counts in
      defer { before += counts.1 * units }
      let parts = (0..<units).map { unit in
        let parts = rule.parts(firstTile: before + unit * counts.1, tiles: counts.0, share: share)
        return parts.last - parts.first + 1
      }
      return Shares.Sequence(keys: keys, tiles: counts.0, parts: parts.max() ?? 0)
    }
    let busyBlocks = (all + share - 1) / share
    return Shares(
      sequences: sequences, units: units, tilesOfBlock: share, busyBlocks: busyBlocks, tileKeys: tiling.tileKeys,
      cost: cost(
        load(
          share: min(share, all), busyBlocks: busyBlocks, tiles: tiles.max() ?? 0,
          parts: sequences.map(\.parts).max() ?? 0)))
  }

  /// What blocks have to do, of which the places of all multiprocessors have some one after the other.
  private func load(share: Int, busyBlocks: Int, tiles: Int, parts: Int) -> DecodeCost.Load {
    let places = max(blocks / tiling.waves, 1)
    return DecodeCost.Load(
      share: share, busyBlocks: min(busyBlocks, places), waves: Double(max(1, (busyBlocks + places - 1) / places)),
      tiles: tiles, parts: parts)
  }

  private func cost(_ load: DecodeCost.Load) -> KernelCost {
    hopper.map { HopperDecodeCost.cost(load, $0, specialization, problem, on: gpu) }
      ?? DecodeCost.cost(load, specialization, problem, on: gpu)
  }

  /// What a call takes whose sequences all have the most keys that there can be.
  var costOfLongest: KernelCost {
    let rule = rule
    let tiles = rule.tiles(length: problem.plannedKeys, queries: problem.queries)
    let (places, units) = (rule.places(tiles: tiles), rule.units(queries: problem.queries))
    guard let all = checkedProduct([places, units, problem.batch]), all <= 4 * GPULimits.lengthLimit else {
      return KernelCost([:], seconds: .infinity)
    }
    let share = rule.share(
      total: all, units: specialization.hasPackedQueries ? nil : problem.batch * units, blocks: max(blocks, 1))
    let isWhole = share % tiles == 0 || tiles % share == 0
    let parts =
      share >= tiles ? (isWhole ? 1 : 2) : (tiles + share - 1) / share + (isWhole ? 0 : 1)
    return cost(
      load(share: min(share, all), busyBlocks: (all + share - 1) / share, tiles: tiles, parts: parts))
  }
}
