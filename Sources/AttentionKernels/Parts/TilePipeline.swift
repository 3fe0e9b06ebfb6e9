internal import PTX

/// The ring of K and V in shared memory: while a place in it is read, the copies of what comes next are under way.
///
/// What is copied together, and then waited for together, is an item: K and V of a tile; or, where these share bytes,
/// one of them or a slice of it, in the order in which they are read. Item i is in place `i % stages`. With more than
/// one place a single barrier an item says both that it has arrived for all and that all have read the one before,
/// whose place is then filled. With one place another barrier has to say the latter, and nothing is copied meanwhile.
final class TilePipeline {
  /// What a product reads.
  enum Part: Hashable {
    case keys(slice: Int)
    case values(slice: Int)
  }

  private let k: KernelBuilder
  private let tiling: ForwardTiling
  private let memory: SharedMemoryPlan
  /// The items of a tile.
  private let items: [[Part]]
  private let keyLoader, valueLoader: TileLoader
  private let keyReader, valueReader: TileReader
  /// The first place, and the end of the last.
  private let first, end: Register<U32>
  /// The places of the item that is read and of the one before, where these differ from tile to tile.
  private let readPlace, writePlace: Register<U32>?
  /// Rows of K and V that there are, and where the last tile ends that the block needs.
  private let presentKeys, needed: Register<S32>
  private let tiles: KeyTiles
  /// Bytes from the first panel of V to the warp's, where warps divide the columns.
  private let ownPanel: Register<U32>?

  private var stages: Int { tiling.stages }

  /// Keys or values in memory: the first row of the sequence's head, and the bytes to the next.
  typealias Source = (base: Register<U64>, rowStride: Register<U64>)

  /// - Parameters:
  ///   - present: rows of K and V that there are.
  ///   - tiles: those that some row of the block sees.
  init(
    _ k: KernelBuilder, _ tiling: ForwardTiling, _ memory: SharedMemoryPlan, _ warp: WarpPlace,
    keys: @autoclosure () -> Source,
    values: @autoclosure () -> Source, present: Register<S32>, tiles: KeyTiles
  ) {
    (self.k, self.tiling, self.memory) = (k, tiling, memory)
    let (keySlices, valueSlices) = (memory.keySlices.indices, 0..<tiling.slices)
    items =
      tiling.sharing == .none
      ? [[.keys(slice: 0), .values(slice: 0)]]
      : keySlices.map { [.keys(slice: $0)] } + valueSlices.map { [.values(slice: $0)] }
    // The first stretch begins with the first tile.
    let start = k.wide((tiles.first * tiling.tileKeys).named("first_key"))
    func loader(_ tile: SharedTile, _ tensor: Source) -> TileLoader {
      TileLoader(
        k, tile, source: tensor.base + start * tensor.rowStride, rowStride: tensor.rowStride, thread: warp.thread,
        threads: tiling.threads)
    }
    keyLoader = loader(memory.keys, keys())
    valueLoader = loader(memory.values, values())
    let sharesRows = tiling.columnWarps > 1
    keyReader = TileReader(
      k, memory.keys, .chunksFirst, lane: warp.lane,
      firstRow: sharesRows ? warp.sharer * tiling.keysPerWarp : nil)
    // A warp's columns are a part of a panel, or whole panels, which lie behind each other.
    let isPart = sharesRows && memory.output.chunks < memory.values.panels[0].width
    valueReader = TileReader(
      k, memory.values, .rowsFirst, lane: warp.lane,
      firstChunk: isPart ? (warp.sharer * memory.output.chunks) % memory.values.panels[0].width : nil)
    ownPanel =
      sharesRows
      ? ((warp.sharer * memory.output.chunks) / memory.values.panels[0].width)
        * (memory.values.rows * memory.values.panels[0].rowBytes) : nil
    first = (warp.shared + memory.ringOffset).named("first_place")
    end = first + tiling.stages * memory.placeByteCount
    (presentKeys, needed, self.tiles) = (present, tiles.end * tiling.tileKeys, tiles)
    let isFixed = items.count % tiling.stages == 0
    readPlace = isFixed ? nil : k.variable(first).named("read_place")
    writePlace =
      isFixed ? nil : k.variable(first + (tiling.stages - 1) * memory.placeByteCount).named("write_place")
  }

  /// Starts the copies of the first items; those that were started before belong to the first of them.
  func start() {
    for item in 0..<max(1, stages - 1) {
      for copy in copies(item: item, ofTile: tiles.first, to: place(item)) { copy() }
    }
  }

  /// Waits until the first item has arrived, and all copies that were started before it, for all threads.
  func waitForFirst() {
    k.waitForCopies(pending: stages == 1 ? items[0].count - 1 : stages - 2)
    k.barrier()
  }

  /// Whether all threads wait for each other where this part is waited for.
  func synchronizes(_ part: Part) -> Bool { stages == 1 || place(of: part).number == 0 }

  /// Waits for a part of a tile, which is read in the order of the items. All have then read the item before.
  func wait(for part: Part) -> TileReader {
    let (item, number) = place(of: part)
    if stages == 1 {
      k.waitForCopies(pending: items[item].count - 1 - number)
      k.barrier()
    } else if number == 0 {
      k.waitForCopies(pending: stages - 2)
      k.barrier()
    }
    let place = readPlace ?? self.place(item)
    switch part {
    case .keys(let slice): return keyReader.at(place, skipping: memory.keySlices[slice].offset)
    case .values:
      let values = place + memory.valuesOffset
      return valueReader.at(ownPanel.map { values + $0 } ?? values)
    }
  }

  /// The copies that may be under way while this part is read, to be emitted between other instructions; of nothing
  /// beyond the last tile.
  func copies(beside part: Part, of tile: Register<S32>) -> [() -> Void] {
    let (item, number) = place(of: part)
    if stages == 1 || number > 0 { return [] }
    let next = item + stages - 1
    return copies(item: next, ofTile: tile, to: writePlace ?? place(next))
  }

  /// The warp has read a part of a tile.
  func finish(_ part: Part, of tile: Register<S32>) {
    let (item, number) = place(of: part)
    if number < items[item].count - 1 { return }
    if stages == 1 {
      k.barrier()
      for copy in copies(item: item + 1, ofTile: tile, to: first) { copy() }
    } else if let readPlace, let writePlace {
      for place in [readPlace, writePlace] {
        let following = place + memory.placeByteCount
        k.set(place, to: k.select(following .== end, first, following))
      }
    }
  }

  private func place(of part: Part) -> (item: Int, number: Int) {
    let item = items.firstIndex { $0.contains(part) }!
    return (item, items[item].firstIndex(of: part)!)
  }

  /// Where an item is, counted from the first tile on; right for all tiles where these have a multiple of `stages`
  /// items.
  private func place(_ item: Int) -> Register<U32> {
    item % stages == 0 ? first : first + item % stages * memory.placeByteCount
  }

  /// The copies of an item that is counted from a tile's first, and may be one of a later tile.
  private func copies(item: Int, ofTile tile: Register<S32>, to place: Register<U32>) -> [() -> Void] {
    let (tilesOn, parts) = (item / items.count, items[item % items.count])
    let start = tile * tiling.tileKeys + tilesOn * tiling.tileKeys
    let isWanted = start .< needed
    var first = start
    var jump: (if: Predicate, rows: Register<S32>)?
    if let gap = tiles.gap {
      let own = tile + tilesOn
      first = tiles.place(own) * tiling.tileKeys
      jump = ((own + 1) .== gap.at, gap.width * tiling.tileKeys)
    }
    let copies = parts.map { part in
      switch part {
      case .keys(let slice):
        keyLoader.copies(
          of: memory.keySlices[slice], to: place, rowsLeft: presentKeys - first, isWanted: isWanted, jump: jump)
      case .values(let slice):
        valueLoader.copies(
          to: memory.valuesOffset == 0 ? place : place + memory.valuesOffset,
          rowsLeft: presentKeys - (first + slice * tiling.keysPerSlice), isWanted: isWanted,
          jump: slice == tiling.slices - 1 ? jump : nil)
      }
    }
    // With one place, K is waited for before V.
    return stages == 1
      ? copies.flatMap { $0 + [{ self.k.commitCopies() }] } : copies.flatMap { $0 } + [{ self.k.commitCopies() }]
  }
}
