internal import Attention
package import PTX

/// Exact attention of many packed query rows over long caches, in blocks of 64, by Hopper's own instructions: parallel over the cache
/// as `DecodeKernel` is, with the copy engine, `wgmma` and warps with roles.
///
///     this block's share of all tiles, from the lengths
///     producer, one thread, for each unit (sequence, key/value head, block of rows) that the block has tiles of:
///       K, V of each tile, into rings
///     converters, where K and V come as bytes (`TileConverter`):  operands of these, into other rings
///     consumers, groups of four warps, 64 rows each, or the same rows and half of each tile's keys, for each unit:
///       Q, as rows of all heads that share the key/value head
///       S, its softmax, O, tile by tile, as in `HopperForwardKernel`
///       halves of the keys?  one of O and O (`KeyHalves`)
///       all tiles of the unit?  write O:  write a part and its log-sum-exp
///     the last to write a part of a unit puts its parts together, unless a second launch does
package struct HopperDecodeKernel: KernelSource {
  /// What the kernel is made for.
  package let specialization: HopperDecodeSpecialization

  /// The kernel of a specialization.
  package init(_ specialization: HopperDecodeSpecialization) { self.specialization = specialization }

  /// The entry point's name.
  package var name: String { specialization.name }

  /// The kernel, with the parameters of `HopperDecodeParameters`.
  package func kernel() throws(KernelError) -> Kernel {
    // One block a multiprocessor, so that ptxas knows the registers at entry, which setmaxnreg changes.
    try Kernel.build(name, threadsPerBlock: specialization.tiles.threads, blocksPerMultiprocessor: 1) { k in
      HopperDecodeBody(k, specialization).emit()
    }
  }
}

/// The kernel while it is emitted.
struct HopperDecodeBody {
  private let k: KernelBuilder
  private let s: HopperDecodeSpecialization
  private let tiles: HopperTiles
  private let p: HopperDecodeParameters
  private let shared: Register<U32>

  /// Tiles of a unit, counted from its first.
  private typealias Piece = (first: Register<S32>, end: Register<S32>)

  init(_ k: KernelBuilder, _ s: HopperDecodeSpecialization) {
    (self.k, self.s, tiles, p) = (
      k, s, s.tiles, HopperDecodeParameters(ParameterList(k), s.work.parameterParts)
    )
    shared = k.dynamicShared(alignment: 1024)
  }

  func emit() {
    if s.work.combination == .dependentLaunch { k.launchDependents() }
    let (thread, tiling) = (k.special(.threadX), s.tiling)
    k.if(thread .== 0) {
      k.initialize(transactionBarriers: shared + tiles.barriersOffset, arrivals: tiles.arrivals)
      converter?.clearEnds()
    }
    k.barrier()
    if s.work.waitsForPreparation { k.waitForPrerequisites() }
    let roles = [
      WarpRole("consumers", warpgroups: tiling.groups, registers: s.registers.consumer) { group in
        let rings = HopperRings(k, tiles.operands, shared)
        let share = findShare()
        let place = s.tiling.keyGroups == 1 ? (rows: group, keys: nil) : (rows: k.constant(0, U32.self), keys: group)
        share.forEachPiece { consume($0, of: share, part: $1, $2, place, rings) }
      },
      WarpRole("producer", registers: s.registers.producer) { _ in
        k.if((thread / 32) .== tiling.groups * 4) {
          let rings = HopperRings(k, tiles.brought, shared)
          k.if(k.elect()) { for map in [p.keyMap, p.valueMap] { k.prefetch(map) } }
          findShare().forEachPiece { unit, _, piece in produce(unit, piece, rings) }
          if let converter { k.if(k.elect()) { converter.finish(rings) } }
        }
      },
    ]
    k.roles(roles + (converter.map { [$0.role(registers: s.registers.converter)] } ?? []))
  }

  // MARK: - What both roles know

  private var converter: TileConverter? { TileConverter(k, tiles, shared) }
  /// Emits what finds the block's share.
  private func findShare() -> WorkShare { WorkShare(k, s.work, p.work, lane: k.special(.lane)) }

  /// What rows of a unit see, from `first` of its block on.
  private func mask(
    _ unit: WorkShare.Unit, _ rows: UnitRows, ownRows: [Register<U32>], tileRows: Int
  ) -> ScoreMask {
    p.work.mask(
      k, s.work, unit, rows: rows.packed, ownRows: ownRows, tileRows: tileRows, lane: k.special(.lane))
  }

  private func rows(_ unit: WorkShare.Unit, from first: Register<U32>? = nil) -> UnitRows {
    let block = unit.rowBlock * s.tiling.rows
    return UnitRows(k, s.work, p.work, unit, firstRow: first.map { block + $0 } ?? block)
  }

  /// The tiles of a piece that some row of the unit's block sees, counted over all keys; none of a sequence without keys, which
  /// has a tile for its zeros alone.
  private func seen(_ unit: WorkShare.Unit, _ piece: Piece) -> KeyTiles {
    let mask = mask(unit, rows(unit), ownRows: [], tileRows: s.tiling.rows)
    let seen = mask.limit(piece, from: unit.firstKeyTile, of: tiles.tileKeys)
    let all = seen.moved(by: unit.firstKeyTile)
    return KeyTiles(all, first: all.first, end: k.select(unit.length .> 0, all.end, all.first))
  }

  // MARK: - The producer

  private func produce(_ unit: WorkShare.Unit, _ piece: Piece, _ rings: HopperRings) {
    let table = SequenceTable(k, s.work, p.work)
    let place = table.cachePlace(of: unit.sequence)
    // Of packed keys all lie in one place, and of those on pages each page says where.
    let isThere = s.work.paging == .none ? place .< p.work.cachePlaces : nil
    let firstKey = table.firstRow(of: unit.sequence).reinterpreted(as: U32.self)
    let boxes = KeyBoxes(
      k, s.keys, p.keyBoxes, head: unit.head, batch: place,
      sequence: s.work.hasLengths
        ? KeyBoxes.Sequence(
          number: unit.sequence.reinterpreted(as: U32.self), place: place,
          firstKey: table.firstKey(of: unit.sequence).map { $0 + firstKey } ?? firstKey,
          keys: isThere.map { k.select($0, unit.length, k.constant(0, S32.self)) } ?? unit.length) : nil)
    let seen = seen(unit, piece)
    k.if(k.elect()) {
      k.loop(from: seen.first, to: seen.end) {
        rings.bring(k, shared, p.keyMap, p.valueMap, boxes, tile: seen.place($0))
      }
    }
  }

  // MARK: - The consumers

  private func consume(
    _ unit: WorkShare.Unit, of share: WorkShare, part: Register<S32>, _ piece: Piece,
    _ group: (rows: Register<U32>, keys: Register<U32>?), _ rings: HopperRings
  ) {
    let (thread, lane) = (k.special(.threadX), k.special(.lane))
    let (ofGroup, warpRow) = (group.rows * 64, ((thread / 32) % 4) * 16)
    let rows = rows(unit, from: ofGroup)
    let ownRows = [0, 8].map { rows.packed.firstRow + warpRow + lane / 4 + $0 }
    let mask = mask(unit, rows, ownRows: ownRows, tileRows: 64)
    let seen = seen(unit, piece)
    let scales = p.work.scales(k, s.work, unit)
    let softmax = OnlineSoftmax(
      k, rows: 2, scale: s.work.hasSoftcap ? k.constant(1) : scales.softmax.scale, sums: .f32, rescalesLate: true)
    let output = Accumulators(k, rowTiles: 1, columns: tiles.valueDimension, named: "o")
    loadQueries(rows, ofGroup, group.rows)
    k.if(seen.first .< seen.end) {
      WarpgroupAttention(k, tiles, shared, rings, scales.softmax).attend(
        seen,
        WarpgroupAttention.Rows(
          queries: shared, group: group.rows, warpRow: warpRow, keyGroup: group.keys, mask: mask, softmax: softmax,
          output: output))
    }
    func write() {
      let logSumExps = softmax.normalize(output, ln2: scales.softmax.ln2, scale: scales.values)
      let results = UnitResults(
        k: k, rows: rows, ownRows: ownRows, output: output, logSumExps: logSumExps, lane: lane)
      let parts = share.parts(of: unit)
      k.if(parts.first .== parts.last) {
        k.comment("all tiles of the unit were here: O")
        results.store(s.work, warpRow: warpRow, p.work)
      } else: {
        let combine = SplitCombine(k, s.work, p.work, parts: parts)
        results.storePart(combine.place(of: part), from: ofGroup + warpRow)
        if s.work.combination != .lastBlock { return }
        combine.ifLast(
          unit, thread: thread, word: shared + s.wordOffset,
          barrier: { k.barrier(id: 3, threads: s.tiling.rowGroups * 128) }
        ) { combine.storeSums(self.rows(unit), thread: thread) }
      }
    }
    guard let half = group.keys else { return write() }
    KeyHalves(
      k: k, half: half, room: shared, roomByteCount: tiles.queryTile.byteCount, barrier: { barrier(of: group.rows) }
    ).merge(softmax, output)
    k.if(half .== 0, write)
  }

  /// Where those wait for each other who share rows of Q.
  private func barrier(of rowGroup: Register<U32>) { k.barrier(id: rowGroup + 1, threads: s.tiling.keyGroups * 128) }

  /// Brings 64 rows of Q to where `wgmma` reads them, by all who share them: rows beyond the end, and columns beyond D, are zeros.
  private func loadQueries(_ rows: UnitRows, _ firstRow: Register<U32>, _ rowGroup: Register<U32>) {
    k.comment("Q; all have read the one before")
    let strides = p.work.queryStrides
    let base = rows.address(in: p.work.queryBase, strides)
    // Chunks of 16 bytes of a row, as many as products look at.
    let (chunks, threads) = ((tiles.dimension + 15) / 16 * 2, s.tiling.keyGroups * 128)
    let thread = k.special(.threadX) % threads
    barrier(of: rowGroup)
    let (turns, atOnce) = ((64 * chunks + threads - 1) / threads, 8)
    for first in stride(from: 0, to: turns, by: atOnce) {
      let loads = (first..<min(first + atOnce, turns)).map { turn in
        let left = 64 * chunks - turn * threads
        let isPlace = left < threads ? thread .< left : nil
        let place = thread + turn * threads
        // Eight lanes store to eight banks: chunks of a row where these are whole rows of the pattern, or one chunk of rows.
        let (row, chunk) = chunks % 8 == 0 ? (place / chunks, place % chunks) : (place % 64, place / 64)
        let values = (0..<4).map { _ in k.variable(k.constant(0, U32.self)) }
        var exists = (rows.packed.firstRow + row) .< rows.packed.count
        if tiles.dimension % 16 != 0 { exists = exists & (chunk .< tiles.dimension / 8) }
        if let isPlace { exists = exists & isPlace }
        k.if(exists) {
          let address = base + rows.packed.distance(ofRow: rows.packed.firstRow + row, strides) + k.wide(chunk * 16)
          for (value, word) in zip(values, k.load(U32.self, count: 4, global: address)) { k.set(value, to: word) }
        }
        return (isPlace: isPlace, row: row, chunk: chunk, values: values)
      }
      for (isPlace, row, chunk, values) in loads {
        let inSlab = (firstRow + row) * 128 + ((chunk % 8) ^ (row % 8)) * 16
        let place = shared + (chunk / 8) * tiles.queryTile.slabByteCount + inSlab
        if let isPlace { k.if(isPlace) { k.store(values, shared: place) } } else { k.store(values, shared: place) }
      }
    }
    k.proxyFence()
    barrier(of: rowGroup)
  }
}
