internal import Attention
internal import PTX

/// The kernel while it is emitted: its roles, and what they wait for.
struct HopperForwardBody {
  let k: KernelBuilder
  let s: HopperForwardSpecialization
  let tiling: HopperForwardTiling
  let parameters: HopperForwardParameters
  private let shared: Register<U32>

  init(_ k: KernelBuilder, _ s: HopperForwardSpecialization) {
    (self.k, self.s, tiling, parameters) = (
      k, s, s.tiling,
      HopperForwardParameters(
        ParameterList(k), ParameterParts(sinkType: s.sinkType, s.mask, hasScales: s.convertsBytes))
    )
    shared = k.dynamicShared(alignment: 1024)
  }

  func emit() {
    k.if(k.special(.threadX) .== 0) {
      k.initialize(
        transactionBarriers: shared + tiles.barriersOffset, arrivals: tiles.arrivals + Rings.queryArrivals(tiling))
      converter?.clearEnds()
    }
    k.barrier()
    let roles = [
      WarpRole("consumers", warpgroups: tiling.groups, registers: s.registers.consumer) { consume(group: $0) },
      WarpRole("producer", registers: s.registers.producer) { _ in
        k.if((k.special(.threadX) / 32) .== tiling.groups * 4, produce)
      },
    ]
    k.roles(roles + (converter.map { [$0.role(registers: s.registers.converter)] } ?? []))
  }

  // MARK: - What both roles know

  /// The transaction barriers, as one side sees them: of K and V, and behind them those of Q.
  private struct Rings {
    let keysAndValues: HopperRings
    let fullQueries, emptyQueries: BarrierRing

    init(_ k: KernelBuilder, _ tiles: HopperTiles, _ keysAndValues: TileRings, _ shared: Register<U32>) {
      self.keysAndValues = HopperRings(k, keysAndValues, shared)
      fullQueries = BarrierRing(k, stages: tiles.queryStages, at: shared + tiles.end, as: .consumer)
      emptyQueries = BarrierRing(
        k, stages: tiles.queryStages, at: shared + (tiles.end + tiles.queryStages * BarrierRing.byteCount),
        as: .producer)
    }

    static func queryArrivals(_ tiling: HopperForwardTiling) -> [Int] {
      HopperRings.arrivals(stages: tiling.queryStages, empty: 4 * tiling.groups)
    }
  }

  private var tiles: HopperTiles { s.tiles }
  private var converter: TileConverter? { TileConverter(k, tiles, shared) }

  /// What rows of an item see, from `first` on.
  private func mask(
    _ item: HopperItem, first: Register<U32>, rows: Int, ownRows: [Register<U32>], if isThere: Predicate? = nil
  ) -> (ScoreMask, PackedQueries) {
    let queries = PackedQueries(k, groupSize: 1, firstRow: first, queries: item.queries)
    let keys = parameters.mask.seenKeys(
      k, s.mask, keys: item.keys, diagonal: item.diagonal, batch: item.batch, firstQuery: item.firstQuery)
    return (
      ScoreMask(
        k, s.mask, keys, rows: queries, ownRows: ownRows, tileRows: rows, lane: k.special(.lane), if: isThere), queries
    )
  }

  /// The tiles of keys that some row of an item sees.
  private func tiles(of item: HopperItem, if isThere: Predicate? = nil) -> KeyTiles {
    mask(item, first: item.firstRow, rows: tiling.rows, ownRows: [], if: isThere).0.tiles(of: tiling.tileKeys)
  }

  private func keyValueHead(of item: HopperItem) -> Register<U32> {
    s.isGrouped ? (item.head / parameters.groupSize).named("key_value_head") : item.head
  }

  /// What an item's numbers are multiplied by.
  private func scales(of item: HopperItem) -> CacheScales {
    guard let lists = parameters.cacheScales else { return CacheScales(parameters.softmax) }
    let heads = s.isGrouped ? parameters.queryHeads / parameters.groupSize : parameters.queryHeads
    return CacheScales(
      k, parameters.softmax, lists, at: item.batch * heads + keyValueHead(of: item), hasSoftcap: s.hasSoftcap)
  }

  // MARK: - The producer

  /// One lane, of which ptxas knows that it is one, waits and copies. Where sequences have lengths of their own, or queries ranges of
  /// keys, all find its items; where they have not, that one does, because the copies are late otherwise (D 64, 8192 keys: 1.75 ms became 1.79,
  /// NVIDIA H200, 2026-11-29, `bench`).
  private func produce() {
    let (rings, p) = (Rings(k, tiles, tiles.brought, shared), parameters)
    func forOneLane(_ body: () -> Void) { k.if(k.elect(), body) }
    func produce(_ forCopies: (() -> Void) -> Void) {
      forCopies { for map in [p.queryMap, p.keyMap, p.valueMap] { k.prefetch(map) } }
      let queue = HopperItemQueue(k, s, parameters)
      k.loop {
        let (isThere, item, sequence) = queue.next()
        let tiles = tiles(of: item, if: isThere)
        forCopies {
          rings.emptyQueries.wait()
          tell(item, tiles, if: isThere, rings)
          k.if(isThere) {
            bring(item, sequence, tiles, rings)
          } else: {
            rings.fullQueries.arrive()
          }
          rings.fullQueries.advance()
          rings.emptyQueries.advance()
        }
        queue.advance(if: isThere)
        return isThere
      }
      if let converter { forCopies { converter.finish(rings.keysAndValues) } }
    }
    if s.producerIsWarp { produce(forOneLane) } else { forOneLane { produce { $0() } } }
  }

  /// Tells the groups of an item, or that there is none.
  private func tell(_ item: HopperItem, _ tiles: KeyTiles, if isThere: Predicate, _ rings: Rings) {
    let words = [k.select(isThere, 1, 0, U32.self)] + item.words + (s.tileWordCount > 0 ? tiles.words : [])
    let place = shared + (rings.fullQueries.stage * s.itemByteCount + s.itemsOffset)
    for first in stride(from: 0, to: s.itemByteCount / 4, by: 4) {
      k.store((first..<first + 4).map { words[min($0, words.count - 1)] }, shared: place, offset: first * 4)
    }
  }

  /// Asks for Q of an item, and for K and V of all its tiles.
  private func bring(_ item: HopperItem, _ sequence: ForwardSequence?, _ tiles: KeyTiles, _ rings: Rings) {
    let p = parameters
    func signed(_ number: Register<U32>) -> Register<S32> { number.reinterpreted(as: S32.self) }
    rings.fullQueries.arrive(expecting: self.tiles.queryTile.byteCount)
    // Rows behind a sequence's last are another's, and nobody's in the end.
    k.copy(
      p.queryMap, self.tiles.queryTile, to: shared + rings.fullQueries.stage * self.tiles.queryTile.byteCount,
      barrier: rings.fullQueries.current
    ) { _ in
      [
        signed(item.head), signed(sequence.map { $0.firstQuery + item.firstRow } ?? item.firstRow),
        signed(sequence == nil ? item.batch : item.batch * p.queryBatchStep),
      ]
    }
    let boxes = KeyBoxes(
      k, s.keys, p.keyBoxes, head: keyValueHead(of: item),
      batch: item.batch,
      sequence: sequence.map {
        KeyBoxes.Sequence(number: item.batch, place: $0.keyBatch, firstKey: $0.firstKey, keys: $0.presentKeys)
      })
    k.loop(from: tiles.first, to: tiles.end) {
      rings.keysAndValues.bring(k, shared, p.keyMap, p.valueMap, boxes, tile: tiles.place($0))
    }
  }

  // MARK: - The consumers

  private func consume(group: Register<U32>) {
    let rings = Rings(k, tiles, tiles.operands, shared)
    k.loop {
      rings.fullQueries.wait()
      // The same in all lanes, and known to be.
      let place = shared + (rings.fullQueries.stage * s.itemByteCount + s.itemsOffset)
      let words = stride(from: 0, to: s.itemByteCount, by: 16).flatMap {
        k.load(U32.self, count: 4, shared: place, offset: $0)
      }.map { k.shuffle($0, lane: k.constant(0, U32.self)) }
      // All have read it before a lane gives it back.
      k.warpBarrier()
      let isThere = words[0] .!= 0
      k.if(isThere) {
        let own = Array(words[1...])
        let item = HopperItem(own, parameters, hasSequences: s.hasSequences)
        let told = own.dropFirst(HopperItem.wordCount(hasSequences: s.hasSequences)).prefix(s.tileWordCount)
        consume(item, told.isEmpty ? nil : KeyTiles(k, words: Array(told)), group, rings)
      }
      return isThere
    }
  }

  /// - Parameter told: the item's tiles, where the producer tells them.
  private func consume(_ item: HopperItem, _ told: KeyTiles?, _ group: Register<U32>, _ rings: Rings) {
    let (thread, lane) = (k.special(.threadX), k.special(.lane))
    let ownFirst = item.firstRow + group * 64
    let warpRow = ((thread / 32) % 4) * 16
    let ownRows = [0, 8].map { ownFirst + warpRow + lane / 4 + $0 }
    let (mask, rows) = mask(item, first: ownFirst, rows: 64, ownRows: ownRows)
    let scales = scales(of: item)
    let softmax = OnlineSoftmax(
      k, rows: 2, scale: s.hasSoftcap ? k.constant(1) : scales.softmax.scale, sums: .f32, rescalesLate: true)
    let output = Accumulators(k, rowTiles: 1, columns: s.valueDimension, named: "o")
    let all = told ?? tiles(of: item)
    let own = tiles(ofGroup: mask, rows, among: all)
    if s.mask.limitsFirst { pass(all.first, own.first, rings) }
    k.if(own.first .< own.end) {
      let ofGroup = WarpgroupAttention.Rows(
        queries: shared + rings.fullQueries.stage * tiles.queryTile.byteCount, group: group, warpRow: warpRow,
        mask: mask, softmax: softmax, output: output)
      let attention = WarpgroupAttention(k, tiles, shared, rings.keysAndValues, scales.softmax)
      let own = attendToFirstKeys(attention, own, all, ofGroup, rings)
      attention.attend(own, ofGroup) {
        k.comment("Q of the next item may come")
        k.giveBack(rings.fullQueries, rings.emptyQueries)
      }
    } else: {
      k.giveBack(rings.fullQueries, rings.emptyQueries)
    }
    var logSumExps = softmax.normalize(output, ln2: scales.softmax.ln2, scale: scales.values)
    if let sinks = AttentionSinks(k, parameters.sinkBase, type: s.sinkType) {
      logSumExps = sinks.finish(output, logSumExps) { _ in item.head }
    }
    let epilogue = Epilogue(
      k: k, inputs: s.inputs, tile: SharedTile(rows: 64, columns: s.valueDimension), firstRow: warpRow,
      lane: lane, rows: rows)
    /// Of the item's sequence and head.
    func place(
      _ base: Register<U64>, batch: Register<U64>, head: Register<U64>, row: @autoclosure () -> Register<U64>
    ) -> Register<U64> {
      let ofHead = base + k.wide(item.batch) * batch + k.wide(item.head) * head
      return item.firstQuery.map { ofHead + k.wide($0) * row() } ?? ofHead
    }
    let p = parameters
    epilogue.store(
      logSumExps: logSumExps, ownRows: ownRows,
      to: place(
        p.logSumExpBase, batch: p.logSumExpBatchStride, head: p.logSumExpHeadStride, row: k.constant(4, U64.self)),
      headStride: p.logSumExpHeadStride, if: p.logSumExpBase .!= 0, groupSize: 1)
    epilogue.store(
      output,
      to: place(
        p.outputBase, batch: p.outputStrides.batch, head: p.outputStrides.head, row: p.outputStrides.row),
      p.outputStrides, .byShuffles)
    pass(own.end, all.end, rings)
  }

  /// Attends to the first keys beside a window where they are few and apart, and lets those tiles pass that lie between; the tiles that are
  /// left.
  private func attendToFirstKeys(
    _ attention: WarpgroupAttention, _ own: KeyTiles, _ all: KeyTiles, _ rows: WarpgroupAttention.Rows, _ rings: Rings
  ) -> KeyTiles {
    guard
      let few = rows.mask.fewFirstKeys(atMost: WarpgroupAttention.fewKeys, tileKeys: tiling.tileKeys)
    else { return own }
    let first = k.variable(own.first).named("first_tile")
    k.if(few.areApart) {
      attention.attendToFew(of: own.first, own, rows)
      k.set(first, to: all.number(of: few.behind))
      pass(own.first + 1, first, rings)
    }
    return KeyTiles(own, first: first, end: own.end)
  }

  /// The tiles that a group's own rows see, of those of the item; none where no row of the group exists.
  private func tiles(ofGroup mask: ScoreMask, _ rows: PackedQueries, among all: KeyTiles) -> KeyTiles {
    let own = mask.tiles(of: tiling.tileKeys).numbered(as: all)
    let first = s.mask.limitsFirst ? k.minimum(k.maximum(own.first, all.first), all.end) : all.first
    let end = s.mask.limitsEnd ? k.maximum(k.minimum(own.end, all.end), first) : k.maximum(all.end, first)
    return KeyTiles(all, first: first, end: k.select(rows.firstRow .< rows.count, end, first))
  }

  /// Lets tiles pass that only rows of other groups see. (A stage is given back once it is full: earlier, it would count for
  /// the tile before.)
  private func pass(_ first: Register<S32>, _ end: Register<S32>, _ rings: Rings) {
    let rings = rings.keysAndValues
    k.loop(from: first, to: end) { _ in
      for (full, empty) in [(rings.fullKeys, rings.emptyKeys), (rings.fullValues, rings.emptyValues)] {
        full.wait()
        // All lanes have waited before one lets the next phase begin.
        k.warpBarrier()
        k.giveBack(full, empty)
      }
    }
  }
}
