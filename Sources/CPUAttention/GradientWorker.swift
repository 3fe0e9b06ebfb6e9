internal import Attention
internal import CPUMicrokernels

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// Computes the gradients of units, one after the other, in scratch memory of its own.
///
/// Matrices are of 32-bit words, each an f32 or a pair of bf16 that are neighbours along the side that a product sums over: of
/// pairs, a tensor that is summed over either side is there twice.
final class GradientWorker {
  private let plan: CPUGradientPlan
  private let problem: AttentionProblem
  private let functions: UnsafePointer<CPUMicrokernels>
  private let products: FAGradients
  private let transform: FAGradientTransform
  /// What dK is multiplied by at its end.
  private let scale: Float
  private let scratch: Scratch
  private let visible: UnsafeMutablePointer<Int32>
  /// Q and dO of all rows of a unit, [rows][words]: every tile of keys passes over them, and where they come from,
  /// neighbouring rows of a head may lie pages of memory apart.
  private let queries, given: UnsafeMutablePointer<Float>
  /// The same with words along the rows, [rows / elements][columns].
  private let queriesAlongRows, givenAlongRows: UnsafeMutablePointer<Float>
  /// The log-sum-exp and delta of all rows of a unit.
  private let logSumExps, deltas: UnsafeMutablePointer<Float>
  // [tile][words]: O, K, V; their transposes, [words][tile]; K with words along the keys, [tile / elements][columns].
  private let output, keys, values: UnsafeMutablePointer<Float>
  private let keysTransposed, valuesTransposed, keysAlongKeys: UnsafeMutablePointer<Float>
  // f32: dK, dV [tile][columns]; S, dP [tile][tile].
  private let keySums, valueSums, scores, gradients: UnsafeMutablePointer<Float>
  /// P and dS as factors of products.
  private let factors: FAScoreGradients

  private var tile: Int { CPUGradientPlan.tile }
  private var elements: Int { plan.elements }
  private var depth: Int { plan.padded(problem.dimension) }
  private var width: Int { plan.padded(problem.valueDimension) }
  private var depthWords: Int { plan.words(problem.dimension) }
  private var widthWords: Int { plan.words(problem.valueDimension) }

  /// Floats that a worker keeps of each row of a unit.
  static func floatsOfRow(_ plan: CPUGradientPlan) -> Int {
    [plan.problem.dimension, plan.problem.valueDimension].reduce(2) {
      $0 + plan.words($1) + (plan.elements == 1 ? 0 : plan.padded($1) / plan.elements)
    }
  }

  /// - Parameter room: `floatsOfRow` for each row of a unit, and of pairs for an even number of them, zeros.
  init(_ plan: CPUGradientPlan, room: UnsafeMutablePointer<Float>) {
    (self.plan, problem, functions) = (plan, plan.problem, plan.instructionSet.functions)
    products = plan.products
    scale = Float(plan.problem.scale)
    transform = FAGradientTransform(
      scale: scale, scale_rest: Float(plan.problem.scale - Double(scale)), cap: Float(plan.problem.softcap ?? 0),
      scale_over_cap: Float(plan.problem.scoreUnits.cap ?? 0))
    let (tile, elements) = (CPUGradientPlan.tile, plan.elements)
    let (depth, width) = (plan.padded(plan.problem.dimension), plan.padded(plan.problem.valueDimension))
    let (depthWords, widthWords) = (plan.words(plan.problem.dimension), plan.words(plan.problem.valueDimension))
    // Zeros behind a row's last element, and behind an odd last row, stay.
    queries = room
    given = queries + plan.evenRows * depthWords
    let isPaired = elements > 1
    let behind = given + plan.evenRows * widthWords
    queriesAlongRows = isPaired ? behind : queries
    givenAlongRows = isPaired ? queriesAlongRows + plan.evenRows / elements * depth : given
    logSumExps = isPaired ? givenAlongRows + plan.evenRows / elements * width : behind
    deltas = logSumExps + plan.evenRows
    let (square, pairs) = (tile * tile, isPaired ? tile * tile / elements : 0)
    let counts = [
      tile * depthWords, tile * depthWords, tile * widthWords, tile * widthWords, tile * widthWords, tile * depth,
      tile * width, square, square, isPaired ? tile * depth / elements : 0, pairs, pairs, pairs,
    ]
    var scratch = Scratch(
      byteCount: counts.reduce(Scratch.byteCount(2 * tile, of: Int32.self)) {
        $0 + Scratch.byteCount($1, of: Float.self)
      })
    visible = scratch.take(2 * tile, of: Int32.self)
    var rooms: [UnsafeMutablePointer<Float>] = []
    for count in counts { rooms.append(scratch.take(count, of: Float.self)) }
    self.scratch = scratch
    (keys, keysTransposed) = (rooms[0], rooms[1])
    (output, values, valuesTransposed) = (rooms[2], rooms[3], rooms[4])
    (keySums, valueSums) = (rooms[5], rooms[6])
    (scores, gradients) = (rooms[7], rooms[8])
    keysAlongKeys = isPaired ? rooms[9] : keys
    factors =
      isPaired
      ? FAScoreGradients(weights: rooms[10], gradients: rooms[11], gradient_rows: rooms[12])
      : FAScoreGradients(weights: scores, gradients: gradients, gradient_rows: gradients)
    keys.initialize(repeating: 0, count: tile * depthWords)
    for buffer in [output, values] { buffer.initialize(repeating: 0, count: tile * widthWords) }
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
      let (queries, given) = (queries + start * depthWords, given + start * widthWords)
      stage(tensors.queries, rows, block, depthWords, to: queries)
      stage(tensors.outputGradient, rows, block, widthWords, to: given)
      stage(tensors.output, rows, block, widthWords, to: output)
      products.dots(
        given, output, widthWords, Int32(block.count), Int32(problem.valueDimension / elements), deltas + start)
      pack(queries, depthWords, block.count, depth, to: queriesAlongRows + start / elements * depth)
      pack(given, widthWords, block.count, width, to: givenAlongRows + start / elements * width)
      for row in block {
        let place = rows.index(row)
        logSumExps[row] = tensors.logSumExp[place]
        if let given = tensors.logSumExpGradient { deltas[row] -= given[place] }
      }
    }
  }

  /// Rows of queries, or of what has their shape, as words.
  private func stage(
    _ view: TensorView, _ rows: PackedRows, _ block: Range<Int>, _ words: Int, to buffer: UnsafeMutablePointer<Float>
  ) {
    for (i, row) in block.enumerated() {
      stage(
        view.row(batch: rows.batch, head: rows.head(row), token: rows.query(row)), of: view, to: buffer + i * words)
    }
  }

  /// A tile of keys or values, as words; zeros behind the last.
  private func stage(
    _ view: TensorView, _ rows: PackedRows, keys block: Range<Int>, _ words: Int,
    to buffer: UnsafeMutablePointer<Float>
  ) {
    for (i, key) in block.enumerated() {
      stage(view.row(batch: rows.batch, head: rows.keyValueHead, token: key), of: view, to: buffer + i * words)
    }
    (buffer + block.count * words).update(repeating: 0, count: (tile - block.count) * words)
  }

  /// A row: widened, or as the pairs that it is.
  private func stage(_ row: UnsafeRawPointer, of view: TensorView, to buffer: UnsafeMutablePointer<Float>) {
    if elements > 1 {
      UnsafeMutableRawPointer(buffer).copyMemory(from: row, byteCount: view.shape.dimension * 2)
    } else {
      functions.pointee.widen(row, 0, view.scalarType.microkernelType, 1, Int32(view.shape.dimension), buffer)
    }
  }

  /// Pairs of two rows, of rows of pairs; nothing to do for f32.
  private func pack(
    _ source: UnsafePointer<Float>, _ words: Int, _ count: Int, _ columns: Int, to buffer: UnsafeMutablePointer<Float>
  ) {
    if elements == 1 { return }
    functions.pointee.pair_pack_values(
      source, words * 4, Int32(count), Int32(columns),
      UnsafeMutableRawPointer(buffer).assumingMemoryBound(to: UInt32.self))
  }

  /// A tile of keys and all rows that see some of it.
  private func attend(
    _ block: Range<Int>, _ rows: PackedRows, _ tensors: GradientTensors<HostMemory>,
    _ queryGradient: UnsafeMutablePointer<Float>?
  ) {
    stage(tensors.keys, rows, keys: block, depthWords, to: keys)
    stage(tensors.values, rows, keys: block, widthWords, to: values)
    functions.pointee.transposed(keys, depthWords, Int32(tile), Int32(depthWords), keysTransposed, tile)
    functions.pointee.transposed(values, widthWords, Int32(tile), Int32(widthWords), valuesTransposed, tile)
    pack(keys, depthWords, tile, depth, to: keysAlongKeys)
    keySums.update(repeating: 0, count: tile * depth)
    valueSums.update(repeating: 0, count: tile * width)
    let all = rowsSeeing(block, rows)
    // The rows of a word are in one block, seen or not: where one is not, its neighbour's is not all that a product meets.
    let first = all.lowerBound / elements * elements
    let end = min((all.upperBound + elements - 1) / elements * elements, plan.rows)
    for start in stride(from: first, to: end, by: tile) {
      for part in rows.parts {
        pass(start..<min(start + tile, end), block, rows, part: part, tensors, queryGradient)
      }
    }
    let type = problem.scalarType.microkernelType
    for (i, key) in block.enumerated() {
      if let gradient = tensors.keyGradient {
        functions.pointee.store_scaled(
          keySums + i * depth, scale, Int32(problem.dimension), type,
          gradient.row(batch: rows.batch, head: rows.keyValueHead, token: key))
      }
      if let gradient = tensors.valueGradient {
        functions.pointee.store_scaled(
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
    let (count, size) = (Int32(block.count), Int32(tile))
    let start = block.lowerBound
    func rowMajor(_ words: UnsafeMutablePointer<Float>, _ row: Int) -> FAFactor {
      FAFactor(elements: words, row: row, step: 1)
    }
    products.product(
      rowMajor(queries + start * depthWords, depthWords), keysTransposed, tile, count, size,
      Int32(problem.dimension / elements), 0, scores, tile)
    products.product(
      rowMajor(given + start * widthWords, widthWords), valuesTransposed, tile, count, size,
      Int32(problem.valueDimension / elements), 0, gradients, tile)
    products.score_gradients(
      scores, gradients, count, size, transform, logSumExps + start, deltas + start, seen, factors)

    /// Products of which the first factor is 0 where the second must not be looked at.
    ///
    /// - Parameter depth: elements that are summed over.
    func add(
      _ factor: FAFactor, _ other: UnsafeMutablePointer<Float>, _ columns: Int, rows: Int, depth: Int,
      to sums: UnsafeMutablePointer<Float>
    ) {
      let words = (depth + elements - 1) / elements
      let isCareful =
        !seesAll
        && functions.pointee.has_nonfinite(
          other, columns * 4, elements == 1 ? FA_F32 : FA_BF16, Int32(words), Int32(columns * elements)) != 0
      if isCareful {
        products.product_carefully(
          factor, other, columns, Int32(rows), Int32(columns), Int32(words), sums, columns)
      } else {
        products.product(factor, other, columns, Int32(rows), Int32(columns), Int32(words), 1, sums, columns)
      }
    }
    if tensors.valueGradient != nil {
      add(
        FAFactor(elements: factors.weights, row: 1, step: tile), givenAlongRows + start / elements * width, width,
        rows: keyBlock.count, depth: block.count, to: valueSums)
    }
    if tensors.keyGradient != nil {
      add(
        FAFactor(elements: factors.gradients, row: 1, step: tile), queriesAlongRows + start / elements * depth, depth,
        rows: keyBlock.count, depth: block.count, to: keySums)
    }
    if let queryGradient {
      add(
        rowMajor(factors.gradient_rows, tile / elements), keysAlongKeys, depth, rows: block.count,
        depth: keyBlock.count, to: queryGradient + start * depth)
    }
  }
}
