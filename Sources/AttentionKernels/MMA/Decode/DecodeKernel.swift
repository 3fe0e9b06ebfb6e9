internal import Attention
package import PTX

/// Exact attention of a few queries over a long cache: parallel over the cache ("Flash-Decoding"), and over the query
/// heads that share a key/value head.
///
///     this block's share of all tiles, from the lengths
///     for each unit (sequence, key/value head, 16 rows or more) that it has tiles of:
///       each group of warps, for its own keys of each tile:
///         S = Q K^T;  mask;  softmax;  O += P V
///       O of all groups, put together by their maxima
///       all tiles of the unit?  write O:  write a part and its log-sum-exp
///     the last to write a part of a unit puts its parts together, unless a second launch does, or the caller
///
/// Each byte of K and V is read once from memory, by the one group that multiplies it, and groups wait for each other
/// only at the end of a unit. So much is under way all the time: (stages - 1) steps of each group.
///
/// Budget of a step of 16 keys x 16 rows: (D + D_v) / 4 `mma`, 16 (D + D_v) * 2 bytes.
package struct DecodeKernel: KernelSource {
  /// What the kernel is made for.
  package let specialization: DecodeSpecialization

  /// The kernel of a specialization.
  package init(_ specialization: DecodeSpecialization) { self.specialization = specialization }

  /// The entry point's name.
  package var name: String { specialization.name }

  /// The kernel, with the parameters of `DecodeParameters`.
  package func kernel() throws(KernelError) -> Kernel {
    let tiling = specialization.tiling
    return try Kernel.build(
      name, threadsPerBlock: tiling.threads, blocksPerMultiprocessor: tiling.blocksPerMultiprocessor
    ) { k in DecodeBody(k, specialization).emit() }
  }
}

/// The kernel while it is emitted.
final class DecodeBody {
  let k: KernelBuilder
  let s: DecodeSpecialization
  let tiling: DecodeTiling
  let memory: DecodeMemoryPlan
  let parameters: DecodeParameters
  /// The warps of a group share rows with those of others, which have other keys of a tile.
  let place: WarpPlace
  /// The thread among those that have the same keys.
  let groupThread: Register<U32>
  let products: WarpProducts

  init(_ k: KernelBuilder, _ s: DecodeSpecialization) {
    var products = WarpProducts(k: k, inputs: s.inputs)
    if case .e4m3(let hasConversion) = s.cache {
      products.bytes = E4M3Operands(inputs: s.inputs, hasConversion: hasConversion)
    }
    self.products = products
    (self.k, self.s, tiling, memory) = (k, s, s.tiling, DecodeMemoryPlan(s))
    parameters = DecodeParameters(ParameterList(k), s.parameterParts)
    let (shared, thread, lane) = (k.dynamicShared(), k.special(.threadX), k.special(.lane))
    let keyGroup = (thread / tiling.groupThreads).named("key_group")
    groupThread = (thread % tiling.groupThreads).named("group_thread")
    place = WarpPlace(
      shared: shared, thread: thread, lane: lane, firstRow: ((groupThread / 32) * 16).named("warp_row"),
      sharer: keyGroup)
  }

  func emit() {
    if s.combination == .dependentLaunch { k.launchDependents() }
    let share = WorkShare(k, s, parameters, lane: place.lane)
    if s.waitsForPreparation { k.waitForPrerequisites() }
    share.forEachPiece { attend($0, of: share, part: $1, tiles: $2) }
  }

  /// A piece of work: some tiles of a unit, or all.
  private func attend(
    _ unit: WorkShare.Unit, of share: WorkShare, part: Register<S32>,
    tiles piece: (first: Register<S32>, end: Register<S32>)
  ) {
    let unitRows = UnitRows(k, s, parameters, unit, firstRow: unit.rowBlock * tiling.rows)
    let rows = unitRows.packed
    let firstOwn = rows.firstRow + place.firstRow + place.lane / 4
    let ownRows = [firstOwn, firstOwn + 8]
    let mask = parameters.mask(
      k, s, unit, rows: rows, ownRows: ownRows, tileRows: tiling.rows, lane: place.lane)
    let tiles = mask.limit(piece, from: unit.firstKeyTile, of: tiling.tileKeys)

    k.comment("the first steps of K and V, as early as possible, and Q; all have read what was here before")
    k.barrier()
    let ring = CacheRing(k, s, memory, parameters, place, groupThread: groupThread, unit: unit, tiles: tiles)
    ring.start {
      rows.load(
        memory.queries, from: unitRows.address(in: parameters.queryBase, parameters.queryStrides),
        parameters.queryStrides, to: place.shared, thread: place.thread, threads: tiling.threads)
    }
    // Nothing needs them before the end. (ptxas puts some of it before the copies nevertheless.)
    let parts = share.parts(of: unit)
    let scales = parameters.scales(k, s, unit)
    let softmax = OnlineSoftmax(
      k, rows: ownRows.count, scale: s.hasSoftcap ? k.constant(1) : scales.softmax.scale, sums: .f32)
    let output = Accumulators(k, rowTiles: 1, columns: s.valueDimension, named: "o")
    let scores = Accumulators(k, rowTiles: 1, columns: tiling.keysPerStep, named: "s")
    k.waitForCopies(pending: tiling.stages - 2)
    k.barrier()
    let queries = QueryFragments(
      k, memory.queries, at: place.shared, firstRow: place.firstRow, lane: place.lane, rowTiles: 1,
      areKept: tiling.keepsQueries, isNegated: s.isScaleNegative, matchesBytes: products.bytes != nil)
    let ownStart = (place.sharer * tiling.keysPerStep).reinterpreted(as: S32.self)
    k.loop(from: tiles.first, to: tiles.end) { tile in
      k.comment("a step: scores, weights, its share of O")
      ring.wait()
      multiply(queries, ring.keys, into: scores, scales)
      // Behind the reads of K, which would queue up behind the copies.
      ring.refill()
      let start = (unit.firstKeyTile + tiles.place(tile)) * tiling.tileKeys + ownStart
      let columnTiles = 0..<scores.columnTiles
      softmax.update(
        softmax.largest(of: scores, columnTiles: columnTiles), of: scores, rescaling: output,
        isMasked: mask.isNeeded(tileStart: start, size: tiling.keysPerStep)
      ) {
        mask.apply(to: scores, tileStart: start)
        return softmax.largest(of: scores, columnTiles: columnTiles)
      }
      for chunk in 0..<tiling.keysPerStep / 16 {
        let weights = softmax.weights(scores, chunk: chunk, as: s.inputs)
        let values = ring.values
        for pair in 0..<memory.values.steps {
          if let bytes = products.bytes {
            products.addOutput(weights, bytes: bytes, values, row: chunk * 16, pair: pair, to: output)
          } else {
            products.addOutput(weights, values, row: chunk * 16, pair: pair, to: output)
          }
        }
      }
      ring.advance()
    }

    let merge = KeyGroupMerge(
      k, s, memory, parameters, place, rows: unitRows, ownRows: ownRows, scales: scales)
    merge.merge(output, products.columnsOfLane(output), softmax)
    if s.combination == .caller { return merge.leavePart(softmax, part: part, of: parts) }
    let isWhole = parts.first .== parts.last
    k.if(isWhole) {
      merge.storeOutput(softmax)
    } else: {
      let combine = SplitCombine(k, s, parameters, parts: parts)
      let own = combine.place(of: part)
      merge.storePart(softmax, output: own.output, logSumExps: own.logSumExps)
      if s.combination != .lastBlock { return }
      combine.ifLast(unit, thread: place.thread, word: place.shared + memory.wordOffset, barrier: { k.barrier() }) {
        combine.storeSums(unitRows, thread: place.thread)
      }
    }
  }

  /// S = Q K^T of a step, softcapped.
  private func multiply(
    _ queries: QueryFragments, _ tile: TileReader, into scores: Accumulators, _ scales: CacheScales
  ) {
    k.comment("S = Q K^T")
    scores.clear(columnTiles: 0..<scores.columnTiles)
    for step in 0..<memory.keys.steps {
      if let bytes = products.bytes {
        let sixteens = 2 * step..<min(2 * step + 2, s.dimension / 16)
        products.addScores(
          sixteens.map { queries.atStep($0) }, bytes: bytes, tile, step: step, keys: 0..<tiling.keysPerStep, to: scores)
      } else {
        products.addScores(queries.atStep(step), tile, step: step, keys: 0..<tiling.keysPerStep, to: scores)
      }
    }
    if s.hasSoftcap {
      ScoreCap(inner: scales.softmax.capScale, outer: scales.softmax.scale)
        .apply(to: scores, columnTiles: 0..<scores.columnTiles, k)
    }
  }
}
