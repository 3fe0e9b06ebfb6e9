internal import Attention
internal import CPUMicrokernels

/// Computes blocks of at most 8 query rows of each of some heads: the dimension across lanes, online softmax over the tiles of
/// keys. K and V are read once, in their own type, where they are.
struct RowWorker: ~Copyable {
  private let plan: CPUPlan
  private let functions: UnsafePointer<CPUMicrokernels>
  private let scratch: Scratch
  /// 1, 2, 4 or 8: the rows of a block rounded up to what the kernels are made for.
  private let paddedRows: Int
  private let heads: UnsafeMutablePointer<Head>
  private let scores: UnsafeMutablePointer<Float>
  /// Factors of rows whose output nothing rescales.
  private let ones: UnsafeMutablePointer<Float>
  private let firstVisible: UnsafeMutablePointer<Int32>
  private let endVisible: UnsafeMutablePointer<Int32>
  /// Of the tile that is read, and of the one behind it.
  private let runs: (UnsafeMutablePointer<Run>, UnsafeMutablePointer<Run>)

  /// What is kept of a head.
  private struct Head {
    /// `[rows][D]`; of pairs, half as much.
    let queries: UnsafeMutablePointer<Float>
    /// `[rows][D_v]`
    let output: UnsafeMutablePointer<Float>
    let state: FASoftmaxState
    var transform: FAScoreTransform
  }

  /// Keys of a tile whose rows are one stride apart, of the first head.
  private struct Run {
    /// The first, counted from the tile's first.
    let place: Int
    let count: Int32
    let keys, values: UnsafeRawPointer
  }

  private var isPaired: Bool { plan.path == .pairRows }

  private static func pairs(_ words: UnsafeMutablePointer<Float>) -> UnsafeMutablePointer<UInt32> {
    UnsafeMutableRawPointer(words).assumingMemoryBound(to: UInt32.self)
  }

  /// Floats from one row of a buffer to the next.
  static func padded(_ dimension: Int) -> Int { (dimension + 31) / 32 * 32 }

  private static func paddedRows(_ plan: CPUPlan) -> Int {
    var rows = 1
    while rows < plan.blockRows { rows *= 2 }
    return rows
  }

  /// Bytes that one worker needs.
  static func scratchByteCount(_ plan: CPUPlan) -> Int {
    let rows = paddedRows(plan)
    let ofHead =
      Scratch.byteCount(rows * padded(plan.problem.dimension), of: Float.self)
      + Scratch.byteCount(rows * padded(plan.problem.valueDimension), of: Float.self)
      + 3 * Scratch.byteCount(rows, of: Float.self)
    return plan.headsTogether * ofHead + Scratch.byteCount(plan.headsTogether, of: Head.self)
      + Scratch.byteCount(plan.tileKeys * rows + 32, of: Float.self) + Scratch.byteCount(rows, of: Float.self)
      + 2 * Scratch.byteCount(rows, of: Int32.self) + 2 * Scratch.byteCount(plan.tileKeys, of: Run.self)
  }

  init(_ plan: CPUPlan) {
    self.plan = plan
    functions = plan.instructionSet.functions
    paddedRows = Self.paddedRows(plan)
    var scratch = Scratch(byteCount: Self.scratchByteCount(plan))
    heads = scratch.take(plan.headsTogether, of: Head.self)
    for head in 0..<plan.headsTogether {
      let queries = scratch.take(paddedRows * Self.padded(plan.problem.dimension), of: Float.self)
      let output = scratch.take(paddedRows * Self.padded(plan.problem.valueDimension), of: Float.self)
      let state = FASoftmaxState(
        maximum: scratch.take(paddedRows, of: Float.self), sum: scratch.take(paddedRows, of: Float.self),
        rescale: scratch.take(paddedRows, of: Float.self))
      heads[head] = Head(queries: queries, output: output, state: state, transform: FAScoreTransform())
    }
    scores = scratch.take(plan.tileKeys * paddedRows + 32, of: Float.self)
    ones = scratch.take(paddedRows, of: Float.self)
    ones.update(repeating: 1, count: paddedRows)
    firstVisible = scratch.take(paddedRows, of: Int32.self)
    endVisible = scratch.take(paddedRows, of: Int32.self)
    runs = (scratch.take(plan.tileKeys, of: Run.self), scratch.take(plan.tileKeys, of: Run.self))
    self.scratch = scratch
  }

  /// Computes the block of all heads of a unit, of each tile one head after the other.
  func compute(_ unit: CPUPlan.Unit, _ operands: Operands, to destination: borrowing RowDestination) {
    let rows = unit.rows
    for head in 0..<unit.heads { start(head, rows.ofHead(head), operands) }
    let ofRows = SeenByRows(rows)
    let seen = rows.parts.map { ofRows.any(of: rows.rows, part: $0) }
    let seenByAll = rows.parts.map { ofRows.all(of: rows.rows, part: $0) }
    let present = seen.filter { !$0.isEmpty }
    let all = (present.map(\.lowerBound).min() ?? 0)..<(present.map(\.upperBound).max() ?? 0)
    let tiles = plan.tiles(over: seen, split: unit.split)
    /// Keys of a tile, without those that no row sees, which are not even read.
    func ofTile(_ number: Int) -> Range<Int> {
      number == tiles.count
        ? 0..<0 : (tiles[number] * plan.tileKeys..<(tiles[number] + 1) * plan.tileKeys).clamped(to: all)
    }
    let reader = Reader(operands)
    var (keys, here, there) = (ofTile(0), runs.0, runs.1)
    var count = find(keys, rows, operands, here)
    for number in 0..<tiles.count {
      let next = ofTile(number + 1)
      let following = find(next, rows, operands, there)
      let (own, ahead) = (
        UnsafeBufferPointer(start: here, count: count), UnsafeBufferPointer(start: there, count: following)
      )
      for part in rows.parts where seen[part].overlaps(keys) {
        var visible = FAVisibleKeys(first: nil, end: nil)
        if keys.clamped(to: seenByAll[part]) != keys {
          for r in 0..<paddedRows {
            let row = rows.rows.lowerBound + r
            let seen = row < rows.rows.upperBound ? ofRows[row, part] : 0..<0
            firstVisible[r] = Int32(min(max(seen.lowerBound - keys.lowerBound, 0), keys.count))
            endVisible[r] = Int32(min(max(seen.upperBound - keys.lowerBound, 0), keys.count))
          }
          visible = FAVisibleKeys(first: UnsafePointer(firstVisible), end: UnsafePointer(endVisible))
        }
        for head in 0..<unit.heads {
          let isLast = head + 1 == unit.heads
          add(own, Int32(keys.count), head, visible, reader, ahead: isLast ? ahead : own, of: isLast ? 0 : head + 1)
        }
      }
      (keys, here, there, count) = (next, there, here, following)
    }
    for head in 0..<unit.heads {
      let (rows, own) = (rows.ofHead(head), heads[head])
      let stride = Self.padded(plan.problem.valueDimension)
      operands.scale(own.output, count: paddedRows * stride, head: rows.keyValueHead)
      destination.storeRows(own.output, stride: stride, own.state, rows)
    }
  }

  /// A head that has seen nothing yet.
  private func start(_ head: Int, _ rows: PackedRows, _ operands: Operands) {
    let (own, d) = (heads[head], plan.problem.dimension)
    let units = operands.scoreUnits(plan.problem, head: rows.keyValueHead)
    heads[head].transform = units.microkernels
    own.queries.update(repeating: 0, count: paddedRows * Self.padded(d))
    own.output.update(repeating: 0, count: paddedRows * Self.padded(plan.problem.valueDimension))
    own.state.maximum.update(repeating: -.infinity, count: paddedRows)
    own.state.sum.update(repeating: 0, count: paddedRows)
    for (r, row) in rows.rows.enumerated() {
      functions.pointee.load_row(
        operands.queries.row(batch: rows.batch, head: rows.head(row), token: rows.query(row)),
        operands.queries.scalarType.microkernelType, Int32(d), Int32(Self.padded(d)), own.queries + r * Self.padded(d))
    }
    if units.isNegated {
      for i in 0..<paddedRows * Self.padded(d) { own.queries[i].negate() }
    }
    if isPaired {
      functions.pointee.pair_pack_rows(own.queries, Int32(paddedRows * Self.padded(d)), Self.pairs(own.queries))
    }
  }

  /// Where some keys are; how many runs they are in. (Those of K and V end where pages do, and these are of one size.)
  private func find(
    _ keys: Range<Int>, _ rows: PackedRows, _ operands: Operands, _ runs: UnsafeMutablePointer<Run>
  ) -> Int {
    var count = 0
    for run in operands.keys.runs(of: keys) {
      runs[count] = Run(
        place: run.lowerBound - keys.lowerBound, count: Int32(run.count),
        keys: operands.keys.row(rows, run.lowerBound), values: operands.values.row(rows, run.lowerBound))
      count += 1
    }
    return count
  }

  /// How rows of K and V are read.
  private struct Reader {
    let keyType, valueType: FAScalarType
    let keyStride, valueStride, keyHeadStride, valueHeadStride: Int

    init(_ operands: Operands) {
      (keyType, valueType) = (operands.keys.type, operands.values.type)
      (keyStride, valueStride) = (operands.keys.stride, operands.values.stride)
      (keyHeadStride, valueHeadStride) = (operands.keys.headStride, operands.values.headStride)
    }
  }

  /// Adds a tile to a head.
  ///
  /// - Parameters:
  ///   - count: keys of the tile.
  ///   - ahead: where the keys are that come next, and of which head.
  private func add(
    _ runs: UnsafeBufferPointer<Run>, _ count: Int32, _ head: Int, _ visible: FAVisibleKeys, _ reader: Reader,
    ahead: UnsafeBufferPointer<Run>, of nextHead: Int
  ) {
    let (own, rows) = (heads[head], Int32(paddedRows))
    let (d, dv) = (Int32(plan.problem.dimension), Int32(plan.problem.valueDimension))
    let (paddedD, paddedDv) = (Self.padded(plan.problem.dimension), Self.padded(plan.problem.valueDimension))
    let (keyOffset, valueOffset) = (head * reader.keyHeadStride, head * reader.valueHeadStride)
    /// Rows to ask for, of K or of V.
    func asking(_ runs: UnsafeBufferPointer<Run>, _ number: Int, ofKeys: Bool, head: Int) -> FAPrefetch {
      guard number < runs.count else { return FAPrefetch(rows: runs.baseAddress, stride: 0, count: 0, is_far: 0) }
      let (run, isFar) = (runs[number], Int32(plan.asksFar ? 1 : 0))
      return ofKeys
        ? FAPrefetch(
          rows: run.keys + head * reader.keyHeadStride, stride: reader.keyStride, count: run.count, is_far: isFar)
        : FAPrefetch(
          rows: run.values + head * reader.valueHeadStride, stride: reader.valueStride, count: run.count, is_far: isFar)
    }
    for (number, run) in runs.enumerated() {
      let (keys, out) = (run.keys + keyOffset, scores + run.place * paddedRows)
      let next =
        plan.asksFar
        ? asking(ahead, number, ofKeys: true, head: nextHead) : asking(runs, number, ofKeys: false, head: head)
      if isPaired {
        functions.pointee.pair_row_scores(
          keys, reader.keyStride, reader.keyType, run.count, Self.pairs(own.queries), rows, d, Int32(paddedD), out, next
        )
      } else {
        functions.pointee.row_scores(
          keys, reader.keyStride, reader.keyType, run.count, own.queries, rows, d, Int32(paddedD), out, next)
      }
    }
    functions.pointee.row_softmax(scores, count, rows, own.transform, visible, own.state)
    var rescale = own.state.rescale
    for (number, run) in runs.enumerated() {
      let (values, weights) = (run.values + valueOffset, scores + run.place * paddedRows)
      if visible.first != nil
        && functions.pointee.has_nonfinite(values, reader.valueStride, reader.valueType, run.count, dv) != 0
      {
        functions.pointee.accumulate_carefully(
          values, reader.valueStride, reader.valueType, run.count, weights, rows, dv, rescale, own.output, paddedDv, 1)
      } else {
        let accumulate = (isPaired ? functions.pointee.pair_row_accumulate : functions.pointee.row_accumulate)!
        accumulate(
          values, reader.valueStride, reader.valueType, run.count, weights, rows, dv, Int32(paddedDv), rescale,
          own.output, asking(ahead, number, ofKeys: !plan.asksFar, head: nextHead))
      }
      rescale = ones
    }
  }
}
