internal import PTX

/// The ring of what passes by in shared memory: while a tile is read, the copies of those behind it are under way. A barrier a
/// tile says both that it has arrived for all and that all have read the one before, whose place is filled then; with one
/// place, a second one has to say the latter, and nothing is copied meanwhile.
final class PassingTiles {
  /// A tensor of which rows pass: where its first is, and the strides of rows and heads.
  typealias Source = (base: Register<U64>, strides: StrideParameters)

  private let k: KernelBuilder
  private let s: BackwardSpecialization
  private let memory: BackwardMemory
  private let place: WarpPlace
  private let rows: (groupSize: Int, count: Register<U32>)
  private let sources: (scores: Source, weights: Source)
  /// The statistics of row 0; nil where they do not pass.
  private let statistics: Register<U64>?
  private let tiles: KeyTiles
  /// The first place, and the end of the last.
  private let first, end: Register<U32>
  /// The places of the tile that is read, and of the one that is filled.
  private let readPlace, writePlace: Register<U32>

  private var stages: Int { s.cut.stages }
  private var size: Int { s.cut.passingRows }

  /// - Parameters:
  ///   - rows: how rows are packed, and how many of queries (or keys) there are.
  ///   - tiles: those that the block needs.
  init(
    _ k: KernelBuilder, _ s: BackwardSpecialization, _ memory: BackwardMemory, _ place: WarpPlace,
    rows: (groupSize: Int, count: Register<U32>), sources: (scores: Source, weights: Source),
    statistics: Register<U64>?, tiles: KeyTiles
  ) {
    (self.k, self.s, self.memory, self.place, self.rows) = (k, s, memory, place, rows)
    (self.sources, self.statistics, self.tiles) = (sources, statistics, tiles)
    first = (place.shared + memory.ringOffset).named("first_place")
    end = first + s.cut.stages * memory.placeByteCount
    readPlace = k.variable(first).named("read_place")
    writePlace = k.variable(first + (s.cut.stages - 1) * memory.placeByteCount).named("write_place")
  }

  /// Starts the copies of the first tiles; those that were started before belong to the first of them.
  func start() {
    for number in 0..<stages - 1 { copy(tiles.first + number, to: first + number * memory.placeByteCount) }
  }

  /// Waits for a tile, and starts the copies of a later one; all have then read the tile before. The place of the tile.
  func next(_ tile: Register<S32>) -> Register<U32> {
    if stages == 1 {
      copy(tile, to: first)
      k.waitForCopies(pending: 0)
      k.barrier()
      return first
    }
    k.waitForCopies(pending: stages - 2)
    k.barrier()
    copy(tile + (stages - 1), to: writePlace)
    return readPlace
  }

  /// The warp has read a tile.
  func finish() {
    if stages == 1 { return k.barrier() }
    for place in [readPlace, writePlace] {
      let following = place + memory.placeByteCount
      k.set(place, to: k.select(following .== end, first, following))
    }
  }

  private func copy(_ tile: Register<S32>, to place: Register<U32>) {
    k.if(tile .< tiles.end) {
      let start = (tiles.place(tile) * size).reinterpreted(as: U32.self)
      let packed = PackedQueries(k, groupSize: rows.groupSize, firstRow: start, queries: rows.count)
      for (tile, source, offset) in [
        (memory.passing.scores, sources.scores, 0), (memory.passing.weights, sources.weights, memory.passingOffset),
      ] {
        packed.load(
          tile, from: source.base, source.strides, to: offset == 0 ? place : place + offset, thread: self.place.thread,
          threads: s.cut.threads)
      }
      if let statistics { copy(statistics + k.wide(start) * RowStatistics.byteCount, to: place) }
    }
    k.commitCopies()
  }

  /// The statistics of a tile, 16 bytes a thread.
  private func copy(_ source: Register<U64>, to place: Register<U32>) {
    let chunks = size * RowStatistics.byteCount / 16
    let from = source + k.wide(self.place.thread * 16)
    let to = place + memory.statisticsOffset + self.place.thread * 16
    for first in stride(from: 0, to: chunks, by: s.cut.threads) {
      func copy() {
        k.copyAsync(to: to, offset: first * 16, from: from, offset: first * 16, sourceBytes: k.constant(16, U32.self))
      }
      if first + s.cut.threads > chunks { k.when(self.place.thread .< (chunks - first), copy) } else { copy() }
    }
  }
}
