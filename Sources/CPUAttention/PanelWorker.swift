internal import Attention
internal import CPUMicrokernels

/// Computes blocks of many query rows: rows across lanes, online softmax over the tiles of keys.
///
///     for each tile of keys:                       K, V as f32 (or V as bfloat16 pairs)
///       for each panel of the block that sees it:
///         S = K Q^T                                [keys][rows]
///         P, m, l, rescale = softmax step of S
///         O = O * rescale + V^T P                  [Dv][rows]
///     store O / l and m + log l
struct PanelWorker: ~Copyable {
  /// One panel of a block: up to `panelVectors` vectors of rows.
  private struct Panel {
    let rows: Range<Int>
    let vectors: Int
    /// What its rows' first ranges of keys span and have in common, and their second.
    let seen, seenByAll: [Range<Int>]
    /// [D][rows] of f32, or [D/2][rows] of pairs.
    let queries: UnsafeMutablePointer<Float>
    /// [Dv][rows].
    let output: UnsafeMutablePointer<Float>
    let state: FASoftmaxState
  }

  private let plan: CPUPlan
  private let scratch: Scratch
  private let width: Int
  private let panelsAtMost: Int
  private let queries: UnsafeMutablePointer<Float>
  private let output: UnsafeMutablePointer<Float>
  private let statistics: UnsafeMutablePointer<Float>
  private let scores: UnsafeMutablePointer<Float>
  /// The staged tile: K and V in f32, or V in pairs; and rows of bfloat16 from pages.
  private let keyTile: UnsafeMutablePointer<Float>
  private let valueTile: UnsafeMutablePointer<Float>
  private let pageRows: UnsafeMutablePointer<UInt16>
  private let weightPairs: UnsafeMutablePointer<UInt32>
  private let firstVisible: UnsafeMutablePointer<Int32>
  private let endVisible: UnsafeMutablePointer<Int32>

  private static func panels(_ plan: CPUPlan) -> Int {
    let width = plan.instructionSet.lanes * plan.instructionSet.panelVectors
    return (plan.blockRows + width - 1) / width
  }

  /// Bytes that one worker needs.
  static func scratchByteCount(_ plan: CPUPlan) -> Int {
    let (d, dv, keys) = (plan.problem.dimension, plan.problem.valueDimension, plan.tileKeys)
    let width = plan.instructionSet.lanes * plan.instructionSet.panelVectors
    let panels = panels(plan)
    return Scratch.byteCount(panels * d * width, of: Float.self)
      + Scratch.byteCount(panels * dv * width, of: Float.self)
      + Scratch.byteCount(panels * 3 * width, of: Float.self) + Scratch.byteCount(keys * width, of: Float.self)
      + Scratch.byteCount(keys * d, of: Float.self) + Scratch.byteCount(keys * dv, of: Float.self)
      + Scratch.byteCount(keys * dv, of: UInt16.self)
      + Scratch.byteCount(keys * width, of: UInt32.self) + 2 * Scratch.byteCount(width, of: Int32.self)
  }

  init(_ plan: CPUPlan) {
    self.plan = plan
    let (d, dv, keys) = (plan.problem.dimension, plan.problem.valueDimension, plan.tileKeys)
    width = plan.instructionSet.lanes * plan.instructionSet.panelVectors
    panelsAtMost = Self.panels(plan)
    var scratch = Scratch(byteCount: Self.scratchByteCount(plan))
    queries = scratch.take(panelsAtMost * d * width, of: Float.self)
    output = scratch.take(panelsAtMost * dv * width, of: Float.self)
    statistics = scratch.take(panelsAtMost * 3 * width, of: Float.self)
    scores = scratch.take(keys * width, of: Float.self)
    keyTile = scratch.take(keys * d, of: Float.self)
    valueTile = scratch.take(keys * dv, of: Float.self)
    pageRows = scratch.take(keys * dv, of: UInt16.self)
    weightPairs = scratch.take(keys * width, of: UInt32.self)
    firstVisible = scratch.take(width, of: Int32.self)
    endVisible = scratch.take(width, of: Int32.self)
    self.scratch = scratch
  }

  /// Computes the tiles of one unit and hands each panel's rows to `finish`.
  func compute(_ rows: PackedRows, split: Int, _ operands: Operands, to destination: borrowing RowDestination) {
    let transform = operands.scoreUnits(plan.problem, head: rows.keyValueHead).microkernels
    let seen = SeenByRows(rows)
    let panels = makePanels(rows, seen, operands)
    let tiles = plan.tiles(over: rows.parts.map { seen.any(of: rows.rows, part: $0) }, split: split)
    for tile in tiles {
      let keys = tile * plan.tileKeys..<min((tile + 1) * plan.tileKeys, plan.problem.keys)
      var tile = stage(keys, rows, operands)
      for panel in panels {
        for part in rows.parts where panel.seen[part].overlaps(keys) {
          step(panel, keys, &tile, seen, part, transform)
        }
      }
    }
    for panel in panels {
      let count = plan.problem.valueDimension * panel.vectors * plan.instructionSet.lanes
      operands.scale(panel.output, count: count, head: rows.keyValueHead)
      destination.store(panel.output, panel.state, panel.rows, vectors: panel.vectors, rows)
    }
  }

  private func makePanels(_ rows: PackedRows, _ seen: SeenByRows, _ operands: Operands) -> [Panel] {
    let functions = plan.instructionSet.functions
    let (d, dv) = (plan.problem.dimension, plan.problem.valueDimension)
    let isNegated = operands.scoreUnits(plan.problem, head: rows.keyValueHead).isNegated
    var panels: [Panel] = []
    for start in stride(from: rows.rows.lowerBound, to: rows.rows.upperBound, by: width) {
      let range = start..<min(start + width, rows.rows.upperBound)
      let base = statistics + panels.count * 3 * width
      let panel = Panel(
        rows: range, vectors: (range.count + plan.instructionSet.lanes - 1) / plan.instructionSet.lanes,
        seen: rows.parts.map { seen.any(of: range, part: $0) },
        seenByAll: rows.parts.map { seen.all(of: range, part: $0) },
        queries: queries + panels.count * d * width, output: output + panels.count * dv * width,
        state: FASoftmaxState(maximum: base, sum: base + width, rescale: base + 2 * width))
      for lane in 0..<width {
        panel.state.maximum[lane] = -.infinity
        panel.state.sum[lane] = 0
      }
      panel.output.update(repeating: 0, count: dv * panel.vectors * plan.instructionSet.lanes)
      let pointers: [UnsafeRawPointer?] = range.map {
        operands.queries.row(batch: rows.batch, head: rows.head($0), token: rows.query($0))
      }
      if plan.path == .pairPanels {
        panel.queries.withMemoryRebound(to: UInt32.self, capacity: d * width) {
          functions.pointee.pair_pack_queries(pointers, Int32(range.count), Int32(d), Int32(panel.vectors), $0)
          if isNegated { for i in 0..<d / 2 * panel.vectors * plan.instructionSet.lanes { $0[i] ^= 0x8000_8000 } }
        }
      } else {
        functions.pointee.pack_queries(
          pointers, Int32(range.count), operands.queries.scalarType.microkernelType, Int32(d), Int32(panel.vectors),
          panel.queries)
        if isNegated { for i in 0..<d * panel.vectors * plan.instructionSet.lanes { panel.queries[i].negate() } }
      }
      panels.append(panel)
    }
    return panels
  }

  /// Rows of a tile where the products read them.
  private struct Tile {
    let keys, values: (rows: UnsafeRawPointer, stride: Int, type: FAScalarType)
    /// Whether V holds an infinity or a NaN; nil before somebody has asked.
    var holdsNonfinite: Bool?
  }

  /// Whether tiles of f32 are copied, too: their rows are then near for all panels but the first.
  private var stagesFloats: Bool { plan.instructionSet.functions.pointee.stages_floats != 0 && panelsAtMost > 1 }

  /// Brings a tile into the form that the products read. Pairs of K, and f32 where it is not copied, are read where they are,
  /// but for pages.
  private func stage(_ keys: Range<Int>, _ rows: PackedRows, _ operands: Operands) -> Tile {
    let functions = plan.instructionSet.functions
    func staged(
      _ own: KeyRows, _ dimension: Int, in tile: UnsafeMutableRawPointer
    ) -> (rows: UnsafeRawPointer, stride: Int, type: FAScalarType) {
      let isPairs = plan.path == .pairPanels
      if own.areNeighbours && (isPairs || own.scalarType == .f32 && !stagesFloats) {
        return (own.row(rows, keys.lowerBound), own.stride, own.type)
      }
      let type = isPairs ? own.scalarType : .f32
      for run in own.runs(of: keys) {
        let to = tile + (run.lowerBound - keys.lowerBound) * dimension * type.byteCount
        if isPairs {
          for key in run {
            (to + (key - run.lowerBound) * dimension * 2).copyMemory(from: own.row(rows, key), byteCount: dimension * 2)
          }
        } else {
          functions.pointee.widen(
            own.row(rows, run.lowerBound), own.stride, own.type, Int32(run.count), Int32(dimension),
            to.assumingMemoryBound(to: Float.self))
        }
      }
      return (UnsafeRawPointer(tile), dimension * type.byteCount, type.microkernelType)
    }
    let (d, dv) = (plan.problem.dimension, plan.problem.valueDimension)
    guard plan.path == .pairPanels else {
      return Tile(keys: staged(operands.keys, d, in: keyTile), values: staged(operands.values, dv, in: valueTile))
    }
    let tile = Tile(keys: staged(operands.keys, d, in: keyTile), values: staged(operands.values, dv, in: pageRows))
    valueTile.withMemoryRebound(to: UInt32.self, capacity: plan.tileKeys * dv) {
      functions.pointee.pair_panel_values(tile.values.rows, tile.values.stride, Int32(keys.count), Int32(dv), $0)
    }
    return tile
  }

  /// A tile and a panel: the keys of the tile that the panel's first ranges span, or its second; of pairs as many more as products need.
  private func step(
    _ panel: Panel, _ ofTile: Range<Int>, _ tile: inout Tile, _ seen: SeenByRows, _ part: Int,
    _ transform: FAScoreTransform
  ) {
    let functions = plan.instructionSet.functions
    let (d, dv) = (plan.problem.dimension, plan.problem.valueDimension)
    let seenOfTile = panel.seen[part].clamped(to: ofTile)
    // Pairs of keys are those of the tile.
    let atOnce = plan.path == .pairPanels ? Int(functions.pointee.pair_keys) : 1
    let before = (seenOfTile.lowerBound - ofTile.lowerBound) / atOnce * atOnce
    let end = (seenOfTile.upperBound - ofTile.lowerBound + atOnce - 1) / atOnce * atOnce
    let keys = ofTile.lowerBound + before..<min(ofTile.lowerBound + end, ofTile.upperBound)
    let (k, v) = (tile.keys, tile.values)
    let (keyRows, valueRows) = (k.rows + before * k.stride, v.rows + before * v.stride)
    let count = Int32(keys.count)
    let vectors = Int32(panel.vectors)
    var visible = FAVisibleKeys(first: nil, end: nil)
    let isMasked = keys.clamped(to: panel.seenByAll[part]) != keys
    if isMasked {
      for lane in 0..<panel.vectors * plan.instructionSet.lanes {
        let row = panel.rows.lowerBound + lane
        let own = row < panel.rows.upperBound ? seen[row, part] : 0..<0
        firstVisible[lane] = Int32(min(max(own.lowerBound - keys.lowerBound, 0), keys.count))
        endVisible[lane] = Int32(min(max(own.upperBound - keys.lowerBound, 0), keys.count))
      }
      visible = FAVisibleKeys(first: UnsafePointer(firstVisible), end: UnsafePointer(endVisible))
    }
    // An infinity or a NaN in V must not reach the rows that do not see it.
    var isCareful = false
    if isMasked {
      let holds =
        tile.holdsNonfinite
        ?? (functions.pointee.has_nonfinite(v.rows, v.stride, v.type, Int32(ofTile.count), Int32(dv)) != 0)
      (tile.holdsNonfinite, isCareful) = (holds, holds)
    }

    if plan.path == .pairPanels {
      panel.queries.withMemoryRebound(to: UInt32.self, capacity: d * width) {
        functions.pointee.pair_scores(keyRows, k.stride, count, $0, vectors, Int32(d), scores)
      }
      if isCareful {
        functions.pointee.softmax(scores, count, vectors, transform, visible, panel.state)
        accumulateCarefully(panel, valueRows, v.stride, v.type, count)
        return
      }
      functions.pointee.pair_softmax(scores, count, vectors, transform, visible, panel.state, weightPairs)
      valueTile.withMemoryRebound(to: UInt32.self, capacity: plan.tileKeys * dv) {
        functions.pointee.pair_accumulate(
          $0, Int32(ofTile.count + 1) / 2, Int32(before / 2), (count + 1) / 2, weightPairs, vectors, Int32(dv),
          panel.state.rescale, panel.output)
      }
      return
    }
    functions.pointee.scores(
      keyRows.assumingMemoryBound(to: Float.self), k.stride / 4, count, panel.queries, vectors, Int32(d), scores)
    functions.pointee.softmax(scores, count, vectors, transform, visible, panel.state)
    if isCareful {
      accumulateCarefully(panel, valueRows, v.stride, v.type, count)
      return
    }
    functions.pointee.accumulate(
      valueRows.assumingMemoryBound(to: Float.self), v.stride / 4, count, scores, vectors, Int32(dv),
      panel.state.rescale,
      panel.output)
  }

  private func accumulateCarefully(
    _ panel: Panel, _ values: UnsafeRawPointer, _ stride: Int, _ type: FAScalarType, _ count: Int32
  ) {
    let rows = panel.vectors * plan.instructionSet.lanes
    plan.instructionSet.functions.pointee.accumulate_carefully(
      values, stride, type, count, scores, Int32(rows),
      Int32(plan.problem.valueDimension), panel.state.rescale, panel.output, 1, rows)
  }
}
