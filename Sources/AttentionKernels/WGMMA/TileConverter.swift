internal import PTX

/// Makes operands of `wgmma` of K and V that come as bytes of e4m3: the role of the three warps of the producer's group that
/// copy nothing.
///
///     for each tile that the copy engine brings, until it is told that there are no more:
///       K, V:  16 bytes of a row at a time, where there is a free stage for what they become
///
/// `wgmma` multiplies bytes by bytes only, with k along the rows of memory, which V has not; and queries of 16 bits stay what
/// they are. Eight lanes have as many rows of the same chunk, which the swizzle has in different banks on both sides.
struct TileConverter {
  /// Warps that convert.
  static let warps = 3

  private let k: KernelBuilder
  private let tiles: HopperTiles
  private let shared: Register<U32>
  /// Among those of these warps.
  private let thread: Register<U32>
  private let operands: E4M3Operands

  /// - Parameter thread: among those of these warps.
  init(_ k: KernelBuilder, _ tiles: HopperTiles, _ shared: Register<U32>, thread: Register<U32>) {
    (self.k, self.tiles, self.shared, self.thread) = (k, tiles, shared, thread)
    operands = E4M3Operands(inputs: tiles.inputs, hasConversion: true)
  }

  /// Makes room for the words, by one thread, before anybody looks.
  static func initialize(_ k: KernelBuilder, _ tiles: HopperTiles, _ shared: Register<U32>) {
    for stage in 0..<tiles.stages {
      k.store(k.constant(0, U32.self), shared: shared + tiles.endsOffset, offset: stage * 4)
    }
  }

  /// Tells them that there are no more tiles, by the thread that brings these.
  static func finish(_ k: KernelBuilder, _ tiles: HopperTiles, _ shared: Register<U32>, _ rings: HopperRings) {
    rings.emptyKeys.wait()
    k.store(k.constant(1, U32.self), shared: shared + rings.fullKeys.stage * 4, offset: tiles.endsOffset)
    rings.fullKeys.arrive()
  }

  /// Converts all that comes.
  func convert() {
    let (from, to) = (HopperRings(k, tiles.brought, shared), HopperRings(k, tiles.operands, shared))
    k.loop {
      from.fullKeys.wait()
      // The same in all lanes, and known to be.
      let word = k.load(U32.self, shared: shared + from.fullKeys.stage * 4, offset: tiles.endsOffset)
      let isTile = k.shuffle(word, lane: k.constant(0, U32.self)) .== 0
      k.if(isTile) {
        k.comment("K of a tile")
        to.emptyKeys.wait()
        convert(from.tiles.keys, at: from.keys(shared), to: to.tiles.keys, at: to.keys(shared))
        k.handOver(to.fullKeys, to.emptyKeys)
        k.giveBack(from.fullKeys, from.emptyKeys)
        k.comment("V of a tile")
        from.fullValues.wait()
        to.emptyValues.wait()
        convert(from.tiles.values, at: from.values(shared), to: to.tiles.values, at: to.values(shared))
        k.handOver(to.fullValues, to.emptyValues)
        k.giveBack(from.fullValues, from.emptyValues)
      }
      return isTile
    }
  }

  /// One tile: all lanes have written, and read, before one says so.
  private func convert(_ bytes: MatrixTile, at source: Register<U32>, to tile: MatrixTile, at place: Register<U32>) {
    let (rows, chunks) = (bytes.rows, tile.columns / 16)
    let (threads, all) = (Self.warps * 32, bytes.rows * chunks)
    // A row's own among the eight that have the pattern; steps from place to place are multiples of eight.
    let turn = (thread % 8) * 16
    func convert(_ numbers: Range<Int>) {
      let parts = numbers.map { number in
        let own = thread + number * threads
        let (row, chunk) = ((own % rows) * 128, own / rows)
        func slab(_ chunksOfSlab: Int, _ tile: MatrixTile) -> Register<U32> {
          tile.slabs == 1 ? row : row + (chunk / chunksOfSlab) * tile.slabByteCount
        }
        let words = k.load(
          U32.self, count: 4, shared: source + slab(8, bytes) + (((chunk % 8) * 16) ^ turn))
        return (words, place + slab(4, tile) + (((chunk % 4) * 32) ^ turn))
      }
      for (words, address) in parts {
        let halves = words.map { operands.unpack(k, $0) }
        for (half, address) in [address, address ^ 16].enumerated() {
          k.store(halves[2 * half..<2 * half + 2].flatMap { [$0.low, $0.high] }, shared: address)
        }
      }
    }
    let whole = all / threads
    for first in stride(from: 0, to: whole, by: 4) { convert(first..<min(first + 4, whole)) }
    if all % threads > 0 { k.if(thread .< all - whole * threads) { convert(whole..<whole + 1) } }
    k.proxyFence()
    k.warpBarrier()
  }
}
