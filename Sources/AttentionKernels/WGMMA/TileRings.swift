internal import PTX

/// A ring of tiles of K and one of V in shared memory, and where their barriers are.
struct TileRings: Hashable, Sendable {
  let keys, values: MatrixTile
  /// Tiles of K, and of V, at once.
  let stages: Int
  /// Where K begins, and the barriers.
  let keysOffset, barriersOffset: Int

  var valuesOffset: Int { keysOffset + stages * keys.byteCount }
  var end: Int { valuesOffset + stages * values.byteCount }
  /// Of the barriers of both.
  var barriersByteCount: Int { 4 * stages * BarrierRing.byteCount }
}

/// The transaction barriers of a ring of K and one of V, full and empty, as one side sees them.
struct HopperRings {
  let tiles: TileRings
  let fullKeys, emptyKeys, fullValues, emptyValues: BarrierRing

  init(_ k: KernelBuilder, _ tiles: TileRings, _ shared: Register<U32>) {
    var number = 0
    func ring(_ side: BarrierRing.Side) -> BarrierRing {
      defer { number += tiles.stages }
      return BarrierRing(
        k, stages: tiles.stages, at: shared + (tiles.barriersOffset + number * BarrierRing.byteCount), as: side)
    }
    self.tiles = tiles
    (fullKeys, emptyKeys) = (ring(.consumer), ring(.producer))
    (fullValues, emptyValues) = (ring(.consumer), ring(.producer))
  }

  /// What each barrier of a pair counts in a phase, in the order of their addresses: the one that copies or a lane of each warp
  /// that fills, and a lane of each warp that gives back.
  static func arrivals(stages: Int, full: Int = 1, empty: Int) -> [Int] {
    [Int](repeating: full, count: stages) + [Int](repeating: empty, count: stages)
  }

  /// Where the next tile of K is, or of V.
  func keys(_ shared: Register<U32>) -> Register<U32> {
    shared + (fullKeys.stage * tiles.keys.byteCount + tiles.keysOffset)
  }
  func values(_ shared: Register<U32>) -> Register<U32> {
    shared + (fullValues.stage * tiles.values.byteCount + tiles.valuesOffset)
  }

  /// Brings a tile of K and one of V into the next stages, by one thread.
  func bring(
    _ k: KernelBuilder, _ shared: Register<U32>, _ keyMap: TensorMapParameter, _ valueMap: TensorMapParameter,
    _ boxes: KeyBoxes, tile: Register<S32>
  ) {
    let place = boxes.tile(at: tile * tiles.keys.rows)
    func bring(
      _ map: TensorMapParameter, _ tile: MatrixTile, to address: Register<U32>, _ full: BarrierRing,
      _ empty: BarrierRing, _ coordinates: (Int, KeyBoxes.Tile) -> [Register<S32>]
    ) {
      empty.wait()
      full.arrive(expecting: tile.byteCount)
      k.copy(map, tile, to: address, barrier: full.current, boxes: place.count) { coordinates($0, place) }
      full.advance()
      empty.advance()
    }
    bring(keyMap, tiles.keys, to: keys(shared), fullKeys, emptyKeys, boxes.keys)
    bring(valueMap, tiles.values, to: values(shared), fullValues, emptyValues, boxes.values)
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

  /// Says that a stage is full, by a lane of each warp that filled it.
  func handOver(_ full: BarrierRing, _ empty: BarrierRing) {
    `if`(special(.lane) .== 0) { full.arrive() }
    full.advance()
    empty.advance()
  }
}
