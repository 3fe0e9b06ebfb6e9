internal import Attention

/// What a tile that passes costs a block of a gradients' kernel, in cycles of a multiprocessor, by the counts and constants of
/// `ForwardCost`.
struct BackwardCost {
  /// Of 16 weights and gradients of scores, where the forward pass has its exponentials: some more arithmetic.
  private static let cyclesOfWeights = 3.0

  /// Bytes that a multiprocessor adds to memory in a cycle: reckoned, and never the longest term in what was measured
  /// (Documentation/GPULog.md, NVIDIA H200, 2026-11-29).
  private static let bytesAddedInCycle = 24.0

  private let products, sharedMemory, weights, reductions, waits: Double

  init(_ s: BackwardSpecialization) {
    let (cut, memory) = (s.cut, BackwardMemory(s))
    let (rows, passing, warps) = (Double(cut.rows), Double(cut.passingRows), Double(cut.warps))
    products = rows / 16 * passing / 8 * Double(s.productsOfPair) / 16 * ForwardCost.cyclesOfProduct / 4
    let depths = Double(memory.kept.scores.steps + (s.hasScoreGradients ? memory.kept.weights.steps : 0))
    let rowTiles = Double(cut.rowTilesPerWarp)
    let keptReads = cut.keepsOperands ? 0 : rowTiles * depths
    let passingReads = passing / 16 * (depths + Double(s.sums.first + s.sums.values) / 16) / Double(cut.sharers)
    // Weights and gradients of scores through shared memory: operands of 16 x 16 written, and read by all that share rows.
    let exchanged = (s.exchangesWeights ? 1.0 : 0) + (s.exchangesGradients ? 1.0 : 0)
    let written = exchanged * rowTiles * passing / 16 / Double(cut.sharers)
    let read = cut.sharers > 1 ? exchanged * rowTiles * passing / 16 : 0
    var ofQueries = 0.0
    if s.kind == .all, let shares = s.queryShares {
      ofQueries =
        rows / 16 * (passing / Double(shares.ofRows) + Double(s.dimension) / Double(shares.ofColumns)) / 16
      reductions = passing * Double(QuerySums.rowByteCount(s.dimension)) / Self.bytesAddedInCycle
    } else {
      reductions = 0
    }
    let bytes = Double(memory.statisticsOffset)
    let reads = keptReads + passingReads + written + read + ofQueries
    sharedMemory = (4 * warps * reads + bytes / 128) * ForwardCost.cyclesOfPass
    weights = rows * passing / 16 * Self.cyclesOfWeights
    let blocks = Double(cut.blocksPerMultiprocessor)
    waits = (Double(cut.stages > 1 ? 1 : 3) + (exchanged > 0 ? 1 : 0)) * ForwardCost.cyclesOfBarrier / (blocks * blocks)
  }

  /// All tiles of a launch, those of the busiest multiprocessor one after the other.
  func seconds(_ problem: AttentionProblem, _ s: BackwardSpecialization, on gpu: GPULimits) -> Double {
    let launch = BackwardLaunch(problem, s)
    let tiles = Self.tiles(
      problem, kept: s.cut.rows, passing: s.cut.passingRows, keepsKeys: s.kind != .queries)
    let terms = [products, sharedMemory, weights, reductions]
    let longest = terms.max()!
    let cycles = longest + (terms.reduce(0, +) - longest) * ForwardCost.uncovered + waits
    let perMultiprocessor = max(Double(launch.blocks) / Double(max(gpu.multiprocessors, 1)), 1)
    return ForwardCost.launch + perMultiprocessor * tiles * cycles / gpu.clock * ForwardCost.sustained
  }

  /// The tiles of so many rows that pass by a block which keeps so many keys, or rows of queries.
  static func tiles(_ problem: AttentionProblem, kept: Int, passing: Int, keepsKeys: Bool) -> Double {
    let all = Double(problem.queries) * Double(problem.keys)
    // Of chunks about, without a loop over all queries for each candidate.
    let pairs =
      problem.mask.chunk.map { Double(problem.queries) * Double(min($0, problem.keys)) } ?? problem.visiblePairs
    let seen = all > 0 ? pairs / all : 0
    let rows = Double(keepsKeys ? problem.queries * problem.groupSize : problem.keys)
    // What only some of a block see counts as much as the rest, at each edge of the mask.
    let edges = MaskEdges(problem)
    let edge = (edges.limitsFirst ? 1.0 : 0) + (edges.limitsEnd ? 1.0 : 0)
    let group = Double(problem.groupSize)
    let ofBlock = Double(kept) * (keepsKeys ? group : 1 / group)
    return min(seen * rows + edge * (ofBlock + Double(passing)) / 2, rows) / Double(passing)
  }
}
