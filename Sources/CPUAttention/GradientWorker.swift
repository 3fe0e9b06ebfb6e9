internal import Attention
internal import CPUMicrokernels

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// Computes the gradients of units, one after the other, in scratch memory of its own.
final class GradientWorker {
  private let plan: CPUGradientPlan
  private let problem: AttentionProblem
  private let functions: CPUMicrokernels
  private let transform: FAGradientTransform
  /// What dK is multiplied by at its end.
  private let scale: Float
  private let scratch: Scratch
  private let visible: UnsafeMutablePointer<Int32>
  /// Q and dO of all rows of a unit, [rows][padded]: every tile of keys passes over them, and where they come from,
  /// neighbouring rows of a head may lie pages of memory apart.
  private let queries, given: UnsafeMutablePointer<Float>
  /// The log-sum-exp and delta of all rows of a unit.
  private let logSumExps, deltas: UnsafeMutablePointer<Float>
  // [tile][padded]: O, K, V, dK, dV; transposed K and V; [tile][tile]: P, dS.
  private let output, keys, values, keySums, valueSums: UnsafeMutablePointer<Float>
  private let keysTransposed, valuesTransposed, weights, gradients: UnsafeMutablePointer<Float>

  private var tile: Int { CPUGradientPlan.tile }
  private var depth: Int { plan.padded(problem.dimension) }
  private var width: Int { plan.padded(problem.valueDimension) }

  /// Floats that a worker keeps of each row of a unit.
  static func floatsOfRow(_ plan: CPUGradientPlan) -> Int {
    plan.padded(plan.problem.dimension) + plan.padded(plan.problem.valueDimension) + 2
  }

  /// - Parameter room: `floatsOfRow` for each row of a unit, zeros.
  init(_ plan: CPUGradientPlan, room: UnsafeMutablePointer<Float>) {
    (self.plan, problem, functions) = (plan, plan.problem, plan.instructionSet.functions.pointee)
    scale = Float(plan.problem.scale)
    transform = FAGradientTransform(
      scale: scale, scale_rest: Float(plan.problem.scale - Double(scale)), cap: Float(plan.problem.softcap ?? 0),
      scale_over_cap: Float(plan.problem.scoreUnits.cap ?? 0))
    let (tile, depth, width) = (
      CPUGradientPlan.tile, plan.padded(plan.problem.dimension), plan.padded(plan.problem.valueDimension)
    )
    // Zeros behind a row's last element stay.
    queries = room
    given = queries + plan.rows * depth
    logSumExps = given + plan.rows * width
    deltas = logSumExps + plan.rows
    let bytes =
      3 * Scratch.byteCount(tile * depth, of: Float.self) + 4 * Scratch.byteCount(tile * width, of: Float.self)
      + 2 * Scratch.byteCount(tile * tile, of: Float.self) + Scratch.byteCount(2 * tile, of: Int32.self)
    var scratch = Scratch(byteCount: bytes)
    keys = scratch.take(tile * depth, of: Float.self)
    keySums = scratch.take(tile * depth, of: Float.self)
    keysTransposed = scratch.take(tile * depth, of: Float.self)
    output = scratch.take(tile * width, of: Float.self)
    values = scratch.take(tile * width, of: Float.self)
    valueSums = scratch.take(tile * width, of: Float.self)
    valuesTransposed = scratch.take(tile * width, of: Float.self)
    weights = scratch.take(tile * tile, of: Float.self)
    gradients = scratch.take(tile * tile, of: Float.self)
    keys.initialize(repeating: 0, count: tile * depth)
    for buffer in [output, values] { buffer.initialize(repeating: 0, count: tile * width) }
    visible = scratch.take(2 * tile, of: Int32.self)
    self.scratch = scratch
  }

  /// - Parameter sums: where dQ of this part is added up, `[rows][padded]`; of no meaning where nobody wants it.
  func compute(
    batch: Int, keyValueHead: Int, part: Int, _ operands: GradientOperands, sums: UnsafeMutablePointer<Float>
  ) {
    let tensors = operands.tensors
    let rows = PackedRows(
      problem: problem, batch: batch, keyValueHead: keyValueHead, rows: 0..<plan.rows, ranges: tensors.entries.ranges)
    let queryGradient = tensors.queryGradient == nil ? nil : sums
    queryGradient?.update(repeating: 0, count: plan.rows * depth)
    prepare(rows, tensors)
    if part == 0, let ofSinks = operands.ofSinks, let sinks = tensors.entries.sinks {
      for row in 0..<plan.rows where logSumExps[row] != -.infinity {
        let head = rows.head(row)
        let weight = exp(Double(sinks[head]) - Double(logSumExps[row]))
        ofSinks[batch * problem.queryHeads + head] -= weight * Double(deltas[row])
      }
    }
    for start in stride(from: part * tile, to: problem.keys, by: plan.parts * tile) {
      attend(start..<min(start + tile, problem.keys), rows, tensors, queryGradient)
    }
  }

  /// Q, dO, log-sum-exps and deltas of all rows.
  private func prepare(_ rows: PackedRows, _ tensors: GradientTensors<HostMemory>) {
    for start in stride(from: 0, to: plan.rows, by: tile) {
      let block = start..<min(start + tile, plan.rows)
      stage(tensors.queries, rows, block, depth, to: queries + start * depth)
      stage(tensors.outputGradient, rows, block, width, to: given + start * width)
      stage(tensors.output, rows, block, width, to: output)
      functions.dots(
        given + start * width, output, width, Int32(block.count), Int32(problem.valueDimension), deltas + start)
      for row in block {
        let place = rows.index(row)
        logSumExps[row] = tensors.logSumExp[place]
        if let given = tensors.logSumExpGradient { deltas[row] -= given[place] }
      }
    }
  }

  /// Rows of queries, or of what has their shape, widened.
  private func stage(
    _ view: TensorView, _ rows: PackedRows, _ block: Range<Int>, _ columns: Int, to buffer: UnsafeMutablePointer<Float>
  ) {
    for (i, row) in block.enumerated() {
      functions.widen(
        view.row(batch: rows.batch, head: rows.head(row), token: rows.query(row)), 0, view.scalarType.microkernelType,
        1,
        Int32(view.shape.dimension), buffer + i * columns)
    }
  }

  /// A tile of keys or values, widened; zeros behind the last.
  private func stage(
    _ view: TensorView, _ rows: PackedRows, keys block: Range<Int>, _ columns: Int,
    to buffer: UnsafeMutablePointer<Float>
  ) {
    for (i, key) in block.enumerated() {
      functions.widen(
        view.row(batch: rows.batch, head: rows.keyValueHead, token: key), 0, view.scalarType.microkernelType, 1,
        Int32(view.shape.dimension), buffer + i * columns)
    }
    (buffer + block.count * columns).update(repeating: 0, count: (tile - block.count) * columns)
  }

  /// A tile of keys and all rows that see some of it.
  private func attend(
    _ block: Range<Int>, _ rows: PackedRows, _ tensors: GradientTensors<HostMemory>,
    _ queryGradient: UnsafeMutablePointer<Float>?
  ) {
    stage(tensors.keys, rows, keys: block, depth, to: keys)
    stage(tensors.values, rows, keys: block, width, to: values)
    functions.transposed(keys, depth, Int32(tile), Int32(depth), keysTransposed, tile)
    functions.transposed(values, width, Int32(tile), Int32(width), valuesTransposed, tile)
    keySums.update(repeating: 0, count: tile * depth)
    valueSums.update(repeating: 0, count: tile * width)
    let all = rowsSeeing(block, rows)
    for start in stride(from: all.lowerBound, to: all.upperBound, by: tile) {
      for part in rows.parts {
        pass(start..<min(start + tile, all.upperBound), block, rows, part: part, tensors, queryGradient)
      }
    }
    let type = problem.scalarType.microkernelType
    for (i, key) in block.enumerated() {
      if let gradient = tensors.keyGradient {
        functions.store_scaled(
          keySums + i * depth, scale, Int32(problem.dimension), type,
          gradient.row(batch: rows.batch, head: rows.keyValueHead, token: key))
      }
      if let gradient = tensors.valueGradient {
        functions.store_scaled(
          valueSums + i * width, 1, Int32(problem.valueDimension), type,
          gradient.row(batch: rows.batch, head: rows.keyValueHead, token: key))
      }
    }
  }

  /// The rows from the first that sees a key of a tile to the last.
  private func rowsSeeing(_ block: Range<Int>, _ rows: PackedRows) -> Range<Int> {
    let group = problem.groupSize
    if problem.ranges != nil {
      let seeing = (0..<problem.queries).filter {
        let visible = rows.visibleKeys($0 * group)
        return visible.first.overlaps(block) || visible.second.overlaps(block)
      }
      return seeing.isEmpty ? 0..<0 : seeing[0] * group..<(seeing[seeing.count - 1] + 1) * group
    }
    // Some key of the tile may be seen by none, and the others still by some.
    let seen = block.map {
      problem.mask.seeingQueries(ofKey: $0, queries: problem.queries, keys: problem.keys)
    }.filter { !$0.isEmpty }
    guard let first = seen.map(\.lowerBound).min(), let end = seen.map(\.upperBound).max() else { return 0..<0 }
    return first * group..<end * group
  }

  /// A pair of tiles: the rows' first ranges of the tile's keys, or their second.
  private func pass(
    _ block: Range<Int>, _ keyBlock: Range<Int>, _ rows: PackedRows, part: Int,
    _ tensors: GradientTensors<HostMemory>, _ queryGradient: UnsafeMutablePointer<Float>?
  ) {
    let (count, size) = (Int32(block.count), Int32(tile))
    var (seesAll, seesSome) = (true, false)
    for (i, row) in block.enumerated() {
      let own = rows.visibleKeys(row)[part].clamped(to: keyBlock)
      seesSome = seesSome || !own.isEmpty
      visible[i] = Int32(own.isEmpty ? 0 : own.lowerBound - keyBlock.lowerBound)
      visible[tile + i] = Int32(own.isEmpty ? 0 : own.upperBound - keyBlock.lowerBound)
      seesAll = seesAll && own.count == keyBlock.count
    }
    if !seesSome { return }
    let seen = FAVisibleKeys(first: visible, end: visible + tile)
    let (queries, given) = (queries + block.lowerBound * depth, given + block.lowerBound * width)
    func rowMajor(_ elements: UnsafeMutablePointer<Float>, _ row: Int) -> FAFactor {
      FAFactor(elements: elements, row: row, step: 1)
    }
    functions.product(
      rowMajor(queries, depth), keysTransposed, tile, count, size, Int32(problem.dimension), 0, weights, tile)
    functions.product(
      rowMajor(given, width), valuesTransposed, tile, count, size, Int32(problem.valueDimension), 0, gradients, tile)
    functions.score_gradients(
      weights, gradients, count, size, transform, logSumExps + block.lowerBound, deltas + block.lowerBound, seen)

    /// Products of which the first factor is 0 where the second must not be looked at.
    func add(
      _ factor: FAFactor, _ other: UnsafeMutablePointer<Float>, _ columns: Int, rows: Int, depth: Int,
      to sums: UnsafeMutablePointer<Float>
    ) {
      let isCareful =
        !seesAll
        && functions.has_nonfinite(other, columns * 4, FA_F32, Int32(depth), Int32(columns)) != 0
      if isCareful {
        functions.product_carefully(
          factor, other, columns, Int32(rows), Int32(columns), Int32(depth), sums, columns)
      } else {
        functions.product(factor, other, columns, Int32(rows), Int32(columns), Int32(depth), 1, sums, columns)
      }
    }
    if tensors.valueGradient != nil {
      add(
        FAFactor(elements: weights, row: 1, step: tile), given, width, rows: keyBlock.count, depth: block.count,
        to: valueSums)
    }
    if tensors.keyGradient != nil {
      add(
        FAFactor(elements: gradients, row: 1, step: tile), queries, depth, rows: keyBlock.count, depth: block.count,
        to: keySums)
    }
    if let queryGradient {
      add(
        rowMajor(gradients, tile), keys, depth, rows: block.count, depth: keyBlock.count,
        to: queryGradient + block.lowerBound * depth)
    }
  }
}
