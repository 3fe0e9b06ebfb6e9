internal import PTX

/// Q, K and V of a block in shared memory, in rings, and how they are multiplied: what Hopper's kernels have in common.
///
///     Q, a stage after the other | K | V | barriers of K and V | whatever a kernel has beside
struct HopperTiles: Hashable, Sendable {
  /// The type of Q, K and V.
  let inputs: Matrix.Inputs
  /// D and D_v, multiples of 8.
  let dimension, valueDimension: Int
  /// Groups of four warps that multiply, 64 query rows each; keys of a tile.
  let groups, tileKeys: Int
  /// Tiles of Q, and of K and V each, at once.
  let queryStages, stages: Int
  /// How weights are found.
  let softmax: HopperForwardTiling.Softmax
  /// Whether scores pass through a softcap, and whether the scale is below zero.
  let hasSoftcap, isScaleNegative: Bool

  /// Q, rows of all groups; tiles of K and V, whose rows are keys. Columns beyond D are zeros.
  var queryTile: MatrixTile { MatrixTile(rows: groups * 64, columns: dimension) }
  var keyTile: MatrixTile { MatrixTile(rows: tileKeys, columns: dimension) }
  var valueTile: MatrixTile { MatrixTile(rows: tileKeys, columns: valueDimension) }

  var keysOffset: Int { queryStages * queryTile.byteCount }
  var valuesOffset: Int { keysOffset + stages * keyTile.byteCount }
  var barriersOffset: Int { valuesOffset + stages * valueTile.byteCount }
  /// Behind the barriers of K and V.
  var end: Int { barriersOffset + 4 * stages * BarrierRing.byteCount }

  /// Registers of a thread that multiplies, about: what is not O, S and P as ptxas 13.0 has it.
  func registerEstimate(_ mask: MaskEdges) -> Int {
    valueDimension / 2 + tileKeys / 2 + tileKeys / 4 + 32 + (mask.limitsFirst && mask.rangeCount != 1 ? 8 : 0)
      + (hasSoftcap ? 16 : 0)
  }
}

/// The transaction barriers of K and V, full and empty, as one side sees them.
struct HopperRings {
  let fullKeys, emptyKeys, fullValues, emptyValues: BarrierRing

  init(_ k: KernelBuilder, _ tiles: HopperTiles, _ shared: Register<U32>) {
    var number = 0
    func ring(_ side: BarrierRing.Side) -> BarrierRing {
      defer { number += tiles.stages }
      return BarrierRing(
        k, stages: tiles.stages, at: shared + (tiles.barriersOffset + number * BarrierRing.byteCount), as: side)
    }
    (fullKeys, emptyKeys) = (ring(.consumer), ring(.producer))
    (fullValues, emptyValues) = (ring(.consumer), ring(.producer))
  }

  /// What each barrier of a pair counts in a phase, in the order of their addresses: the producer fills, a lane of each warp
  /// that multiplies gives back.
  static func arrivals(stages: Int, groups: Int) -> [Int] {
    [Int](repeating: 1, count: stages) + [Int](repeating: 4 * groups, count: stages)
  }

  /// Brings a tile of K and one of V into the next stages, by one thread.
  func bring(
    _ k: KernelBuilder, _ tiles: HopperTiles, _ shared: Register<U32>, _ keyMap: TensorMapParameter,
    _ valueMap: TensorMapParameter, _ boxes: KeyBoxes, tile: Register<S32>
  ) {
    let place = boxes.tile(at: tile * tiles.tileKeys)
    func bring(
      _ map: TensorMapParameter, _ tile: MatrixTile, at offset: Int, _ full: BarrierRing, _ empty: BarrierRing,
      _ coordinates: (Int, KeyBoxes.Tile) -> [Register<S32>]
    ) {
      empty.wait()
      full.arrive(expecting: tile.byteCount)
      k.copy(
        map, tile, to: shared + (full.stage * tile.byteCount + offset), barrier: full.current, boxes: place.count
      ) { coordinates($0, place) }
      full.advance()
      empty.advance()
    }
    bring(keyMap, tiles.keyTile, at: tiles.keysOffset, fullKeys, emptyKeys, boxes.keys)
    bring(valueMap, tiles.valueTile, at: tiles.valuesOffset, fullValues, emptyValues, boxes.values)
  }
}

extension KernelBuilder {
  /// Makes barriers from an address on, by one thread, for so many arrivals a phase each.
  func initialize(transactionBarriers address: Register<U32>, arrivals: [Int]) {
    for (number, arrivals) in arrivals.enumerated() {
      initialize(transactionBarrier: address, offset: number * BarrierRing.byteCount, arrivals: arrivals)
    }
    barrierInitializationFence()
  }

  /// Starts the copies of a tile, by one thread: box after box, whose coordinates stand behind that of the column.
  func copy(
    _ map: TensorMapParameter, _ tile: MatrixTile, to place: Register<U32>, barrier: Register<U32>, boxes: Int = 1,
    _ outer: (Int) -> [Register<S32>]
  ) {
    for number in 0..<boxes {
      let outer = outer(number)
      for slab in 0..<tile.slabs {
        copy(
          map, [constant(slab * tile.slabColumns, S32.self)] + outer,
          to: place + (slab * tile.slabByteCount + number * tile.slabByteCount / boxes), barrier: barrier)
      }
    }
  }

  /// Gives a stage back, by a lane of each warp.
  func giveBack(_ full: BarrierRing, _ empty: BarrierRing) {
    `if`(special(.lane) .== 0) { empty.arrive() }
    full.advance()
    empty.advance()
  }
}
