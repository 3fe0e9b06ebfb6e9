internal import PTX

/// Makes operands of `wgmma` of K and V that come as bytes of e4m3: the role of groups of four warps, of which one converts both,
/// or one K and another V.
///
///     for each tile that the copy engine brings, until it is told that there are no more:
///       16 bytes of a row at a time, where there is a free stage for what they become
///
/// `wgmma` multiplies bytes by bytes only, with k along the rows of memory, which V has not; and queries of 16 bits stay what
/// they are. Eight lanes have as many rows of the same chunk, which the swizzle has in different banks on both sides.
struct TileConverter {
  /// Threads, and warps, that convert a tile.
  static let threads = 128, warps = 4
  /// Rows of tiles that they divide evenly.
  static let rows = [32, 64, 128]

  /// Cycles that so many groups take for a tile of K and V, by their bytes: one as on an NVIDIA H200, 2026-11-29, in chunked prefill of
  /// 2048 queries on 30 000 keys and decoding with 128 packed rows, D 128, tiles of 64 and 128 keys; two, who wait for the same shared
  /// memory, as on 2026-12-01 in decoding with 32 and 64 rows, tiles of 32 to 128 keys (Documentation/GPULog.md).
  static func cycles(bytes: Double, groups: Int) -> Double {
    groups == 1 ? 500 + 0.076 * bytes : 700 + 0.0545 * bytes
  }

  private let k: KernelBuilder
  private let tiles: HopperTiles
  private let shared: Register<U32>
  private let operands: E4M3Operands

  /// nil where there is nothing to convert.
  init?(_ k: KernelBuilder, _ tiles: HopperTiles, _ shared: Register<U32>) {
    if !tiles.convertsBytes { return nil }
    (self.k, self.tiles, self.shared) = (k, tiles, shared)
    operands = E4M3Operands(inputs: tiles.inputs, hasConversion: true)
  }

  /// The role, of so many registers a thread.
  func role(registers: Int) -> WarpRole {
    WarpRole("converters", warpgroups: tiles.converters, registers: registers) { convert(group: $0) }
  }

  /// A ring of bytes, and that of what becomes of them, as those who convert see them.
  private struct Side {
    let bytes, operands: MatrixTile
    /// Where the next of each is.
    let source, place: () -> Register<U32>
    let fullBytes, emptyBytes, full, empty: BarrierRing
    /// Where its words are.
    let ends: Register<U32>
  }

  private func sides() -> (keys: Side, values: Side) {
    let (from, to) = (HopperRings(k, tiles.brought, shared), HopperRings(k, tiles.operands, shared))
    let ends = shared + tiles.endsOffset
    return (
      Side(
        bytes: from.tiles.keys, operands: to.tiles.keys, source: { from.keys(shared) }, place: { to.keys(shared) },
        fullBytes: from.fullKeys, emptyBytes: from.emptyKeys, full: to.fullKeys, empty: to.emptyKeys, ends: ends),
      Side(
        bytes: from.tiles.values, operands: to.tiles.values, source: { from.values(shared) },
        place: { to.values(shared) }, fullBytes: from.fullValues, emptyBytes: from.emptyValues, full: to.fullValues,
        empty: to.emptyValues, ends: ends + tiles.stages * 4)
    )
  }

  /// Clears the words, by one thread, before anybody looks.
  func clearEnds() {
    for word in 0..<tiles.converters * tiles.stages {
      k.store(k.constant(0, U32.self), shared: shared + tiles.endsOffset, offset: word * 4)
    }
  }

  /// Tells each group that converts that there are no more tiles, by the thread that brings these.
  func finish(_ rings: HopperRings) {
    let sides = [(rings.fullKeys, rings.emptyKeys), (rings.fullValues, rings.emptyValues)]
    for (number, (full, empty)) in sides.prefix(tiles.converters).enumerated() {
      empty.wait()
      k.store(
        k.constant(1, U32.self), shared: shared + full.stage * 4, offset: tiles.endsOffset + number * tiles.stages * 4)
      full.arrive()
    }
  }

  /// Converts all that comes.
  ///
  /// - Parameter group: the number of the group among those that convert.
  private func convert(group: Register<U32>) {
    let (keys, values) = sides()
    if tiles.converters == 1 { return convert([keys, values]) }
    k.if(group .== 0) {
      convert([keys])
    } else: {
      convert([values])
    }
  }

  private func convert(_ sides: [Side]) {
    k.loop {
      sides[0].fullBytes.wait()
      // The same in all lanes, and known to be.
      let word = k.load(U32.self, shared: sides[0].ends + sides[0].fullBytes.stage * 4)
      let isTile = k.shuffle(word, lane: k.constant(0, U32.self)) .== 0
      k.if(isTile) {
        for (number, side) in sides.enumerated() {
          if number > 0 { side.fullBytes.wait() }
          side.empty.wait()
          convert(side)
          // All lanes have read, and written, before one says so.
          k.proxyFence()
          k.warpBarrier()
          k.handOver(side.full, side.empty)
          k.giveBack(side.fullBytes, side.emptyBytes)
        }
      }
      return isTile
    }
  }

  /// One tile. A thread has a row, and every so many chunks of it as there are threads for each row.
  private func convert(_ side: Side) {
    let (rows, chunks) = (side.bytes.rows, side.operands.columns / 16)
    let (step, thread) = (Self.threads / rows, k.special(.threadX) % Self.threads)
    let (row, first) = ((thread % rows) * 128, thread / rows)
    // A row's own among the eight that have the pattern. Chunks are turned by an exclusive or, and steps leave the first's bits alone.
    let turn = (thread % 8) * 16
    let source = side.source() + row + ((first * 16) ^ turn)
    let place = side.place() + row + ((first * 32) ^ turn)
    func convert(_ numbers: [Int]) {
      let loads = numbers.map { chunk in
        k.load(U32.self, count: 4, shared: source ^ (chunk % 8 * 16), offset: chunk / 8 * side.bytes.slabByteCount)
      }
      for (chunk, words) in zip(numbers, loads) {
        let (halves, own) = (words.map { operands.unpack(k, $0) }, place ^ (chunk % 4 * 32))
        for (half, address) in [own, own ^ 16].enumerated() {
          k.store(
            halves[2 * half..<2 * half + 2].flatMap { [$0.low, $0.high] }, shared: address,
            offset: chunk / 4 * side.operands.slabByteCount)
        }
      }
    }
    let whole = stride(from: 0, to: chunks / step * step, by: step).map { $0 }
    for start in stride(from: 0, to: whole.count, by: 4) { convert(Array(whole[start..<min(start + 4, whole.count)])) }
    if chunks % step > 0 { k.if(first .< chunks % step) { convert([chunks / step * step]) } }
  }
}
