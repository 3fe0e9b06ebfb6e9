internal import Attention
internal import CPUMicrokernels

/// Computes blocks of at most 8 query rows: the dimension across lanes, online softmax over the tiles of keys. K and V
/// are read once, in their own type, where they are.
struct RowWorker: ~Copyable {
  private let plan: CPUPlan
  private let scratch: Scratch
  /// 1, 2, 4 or 8: the rows of a block rounded up to what the kernels are made for.
  private let paddedRows: Int
  private let queries: UnsafeMutablePointer<Float>
  private let output: UnsafeMutablePointer<Float>
  private let statistics: UnsafeMutablePointer<Float>
  private let scores: UnsafeMutablePointer<Float>
  /// Factors of rows whose output nothing rescales.
  private let ones: UnsafeMutablePointer<Float>
  private let firstVisible: UnsafeMutablePointer<Int32>
  private let endVisible: UnsafeMutablePointer<Int32>

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
    return Scratch.byteCount(rows * padded(plan.problem.dimension), of: Float.self)
      + Scratch.byteCount(rows * padded(plan.problem.valueDimension), of: Float.self)
      + Scratch.byteCount(3 * rows, of: Float.self)
      + Scratch.byteCount(plan.tileKeys * rows + 32, of: Float.self) + Scratch.byteCount(rows, of: Float.self)
      + 2 * Scratch.byteCount(rows, of: Int32.self)
  }

  init(_ plan: CPUPlan) {
    self.plan = plan
    paddedRows = Self.paddedRows(plan)
    var scratch = Scratch(byteCount: Self.scratchByteCount(plan))
    queries = scratch.take(paddedRows * Self.padded(plan.problem.dimension), of: Float.self)
    output = scratch.take(paddedRows * Self.padded(plan.problem.valueDimension), of: Float.self)
    statistics = scratch.take(3 * paddedRows, of: Float.self)
    scores = scratch.take(plan.tileKeys * paddedRows + 32, of: Float.self)
    ones = scratch.take(paddedRows, of: Float.self)
    ones.update(repeating: 1, count: paddedRows)
    firstVisible = scratch.take(paddedRows, of: Int32.self)
    endVisible = scratch.take(paddedRows, of: Int32.self)
    self.scratch = scratch
  }

  func compute(_ rows: PackedRows, split: Int, _ operands: Operands, to destination: borrowing RowDestination) {
    let functions = plan.instructionSet.functions.pointee
    let problem = plan.problem
    let (d, dv) = (Int32(problem.dimension), Int32(problem.valueDimension))
    let (paddedD, paddedDv) = (Self.padded(problem.dimension), Self.padded(problem.valueDimension))
    let (k, v) = (operands.keys, operands.values)
    let units = operands.scoreUnits(problem, head: rows.keyValueHead)
    let transform = units.microkernels
    let state = FASoftmaxState(
      maximum: statistics, sum: statistics + paddedRows, rescale: statistics + 2 * paddedRows)

    queries.update(repeating: 0, count: paddedRows * paddedD)
    output.update(repeating: 0, count: paddedRows * paddedDv)
    for r in 0..<paddedRows {
      state.maximum[r] = -.infinity
      state.sum[r] = 0
    }
    for (r, row) in rows.rows.enumerated() {
      functions.load_row(
        operands.queries.row(batch: rows.batch, head: rows.head(row), token: rows.query(row)),
        operands.queries.scalarType.microkernelType, d, Int32(paddedD), queries + r * paddedD)
    }

    if units.isNegated {
      for i in 0..<paddedRows * paddedD { queries[i].negate() }
    }

    let ofRows = SeenByRows(rows)
    let seen = rows.parts.map { ofRows.any(of: rows.rows, part: $0) }
    let seenByAll = rows.parts.map { ofRows.all(of: rows.rows, part: $0) }
    let present = seen.filter { !$0.isEmpty }
    let all = (present.map(\.lowerBound).min() ?? 0)..<(present.map(\.upperBound).max() ?? 0)
    let tiles = plan.tiles(over: seen, split: split)
    /// Keys of a tile, without those that no row sees, which are not even read.
    func ofTile(_ tile: Int) -> Range<Int> { (tile * plan.tileKeys..<(tile + 1) * plan.tileKeys).clamped(to: all) }
    for (number, tile) in tiles.enumerated() {
      let keys = ofTile(tile)
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
        for run in k.runs(of: keys) {
          functions.row_scores(
            k.row(rows, run.lowerBound), k.stride, k.type, Int32(run.count), queries, Int32(paddedRows), d,
            Int32(paddedD), scores + (run.lowerBound - keys.lowerBound) * paddedRows, FAPrefetch(v, rows, run))
        }
        functions.row_softmax(scores, Int32(keys.count), Int32(paddedRows), transform, visible, state)
        let next = number + 1 < tiles.count ? ofTile(tiles[number + 1]) : keys.upperBound..<keys.upperBound
        var rescale = state.rescale!
        for run in v.runs(of: keys) {
          let (values, weights) = (
            v.row(rows, run.lowerBound), scores + (run.lowerBound - keys.lowerBound) * paddedRows
          )
          if visible.first != nil && functions.has_nonfinite(values, v.stride, v.type, Int32(run.count), dv) != 0 {
            functions.accumulate_carefully(
              values, v.stride, v.type, Int32(run.count), weights, Int32(paddedRows), dv, rescale, output, paddedDv, 1)
          } else {
            let ahead = min(next.lowerBound + run.lowerBound - keys.lowerBound, next.upperBound)..<next.upperBound
            functions.row_accumulate(
              values, v.stride, v.type, Int32(run.count), weights, Int32(paddedRows), dv, Int32(paddedDv), rescale,
              output, FAPrefetch(k, rows, k.run(of: ahead)))
          }
          rescale = ones
        }
      }
    }
    operands.scale(output, count: paddedRows * paddedDv, head: rows.keyValueHead)
    destination.storeRows(output, stride: paddedDv, state, rows)
  }
}

extension FAPrefetch {
  /// The rows of the given keys, which lie one after the other.
  init(_ keys: KeyRows, _ rows: PackedRows, _ run: Range<Int>) {
    self.init(
      rows: run.isEmpty ? keys.base : keys.row(rows, run.lowerBound), stride: keys.stride, count: Int32(run.count))
  }
}
