package import Attention
package import PTX

/// What the text of a gradients' kernel is made from, and the key that it is cached by; lengths, strides, pointers and the scale
/// are launch values.
package struct BackwardSpecialization: Hashable, Sendable {
  /// What a block keeps, and what it makes of that which passes by.
  package enum Kind: String, Hashable, Sendable {
    /// K and V stay, rows of Q and dO pass.
    case keysAndValues = "dkv"
    /// The same, and what each block's keys add to dQ goes to memory.
    case all = "dqkv"
    /// The same for one of the two gradients. That of values needs no V.
    case keys = "dk", values = "dv"
    /// Rows of Q and dO stay, K and V pass.
    case queries = "dq"
  }

  /// What it makes.
  package var kind: Kind
  /// The type of all tensors.
  package var inputs: Matrix.Inputs
  /// D and D_v, multiples of 8.
  package var dimension, valueDimension: Int
  /// Query heads that share a key/value head; they are packed into the rows of a tile.
  package var groupSize: Int
  /// Which edges of the mask there are.
  package var mask: MaskEdges
  /// Whether scores pass through `cap * tanh(score / cap)`.
  package var hasSoftcap: Bool
  /// Whether sequences have lengths of their own, which the kernel reads from the GPU's memory.
  package var hasSequences: Bool
  /// Whether queries are packed, a sequence behind the other.
  package var hasPackedQueries: Bool
  /// How the work is cut.
  package var cut: BackwardTiling.Cut
  /// Whether four numbers are added to memory at once (sm_90); false where none are.
  package var addsVectors: Bool

  /// What a problem needs of a kind.
  package init(
    _ kind: Kind, _ problem: AttentionProblem, inputs: Matrix.Inputs, cut: BackwardTiling.Cut, on gpu: GPULimits
  ) {
    (self.kind, self.inputs, self.cut) = (kind, inputs, cut)
    addsVectors = kind == .all && QuerySums.areVectors(on: gpu)
    (dimension, valueDimension, groupSize) = (problem.dimension, problem.valueDimension, problem.groupSize)
    (mask, hasSoftcap) = (MaskEdges(problem), problem.softcap != nil)
    (hasSequences, hasPackedQueries) = (!problem.hasWholeKeys, problem.packedQueries != nil)
  }

  /// Whether dS is needed, and V for it.
  var hasScoreGradients: Bool { kind != .values }
  /// Columns of what a block makes: of dK or dQ, and of dV.
  var sums: (first: Int, values: Int) {
    switch kind {
    case .keysAndValues, .all: (dimension, valueDimension)
    case .keys, .queries: (dimension, 0)
    case .values: (0, valueDimension)
    }
  }
  /// Products of each pair of a row and a key, in multiply-adds.
  var productsOfPair: Int {
    dimension + (hasScoreGradients ? valueDimension : 0) + sums.first + sums.values + (kind == .all ? dimension : 0)
  }
  /// What a warp makes of them: of sums, some columns.
  var ownSums: (first: Int, values: Int) { (sums.first / cut.sharers, sums.values / cut.sharers) }

  /// How a block's part of dQ is divided over its warps: over some the rows that pass, over some the columns, so that as little
  /// as can be is read from shared memory; nil where the warps are too many.
  var queryShares: (ofRows: Int, ofColumns: Int)? {
    let all = [1, 2, 4, 8].filter { ofRows in
      let ofColumns = cut.warps / ofRows
      return cut.warps % ofRows == 0 && cut.passingRows % (16 * ofRows) == 0
        && (ofColumns == 1 || dimension % 64 == 0 && dimension % (16 * ofColumns) == 0)
    }
    func read(_ ofRows: Int) -> Int { cut.passingRows / ofRows + dimension / (cut.warps / ofRows) }
    return all.min { read($0) < read($1) }.map { ($0, cut.warps / $0) }
  }

  /// The entry point's name.
  package var name: String {
    var name = "gradients_\(kind.rawValue)_\(inputs.rawValue)_d\(dimension)"
    if valueDimension != dimension { name += "_v\(valueDimension)" }
    if groupSize > 1 { name += "_group\(groupSize)" }
    name += mask.name
    if hasSoftcap { name += "_softcap" }
    if hasSequences { name += hasPackedQueries ? "_packed" : "_sequences" }
    if addsVectors { name += "_vectors" }
    return name + "_" + cut.name
  }
}

/// Where everything lies in the shared memory of a gradients' kernel; the only place that knows.
///
///     K V | Q dO statistics | Q dO statistics | ...        where keys are kept
///     Q dO | K V | K V | ...                               where queries are
///
/// What a block has made leaves by the places of what it kept. Behind the ring are P^T and dS^T (or P and dS), where they pass
/// from warp to warp.
struct BackwardMemory {
  /// K or Q, and V or dO, of the block.
  let kept: (scores: SharedTile, weights: SharedTile)
  /// Q or K, and dO or V, of a tile that passes.
  let passing: (scores: SharedTile, weights: SharedTile)
  /// From the start to the second of what is kept, and to the ring.
  let keptOffset, ringOffset: Int
  /// From a place in the ring to the next; within one, to the second tile and to the statistics.
  let placeByteCount, passingOffset, statisticsOffset: Int
  /// Weights and gradients of scores as operands for other warps, and where: kept rows x rows that pass.
  let operands: SharedTile
  let weightsOffset, gradientsOffset: Int
  /// What a launch asks for.
  let byteCount: Int

  init(_ s: BackwardSpecialization) {
    let cut = s.cut
    kept = (
      SharedTile(rows: cut.rows, columns: s.dimension), SharedTile(rows: cut.rows, columns: s.valueDimension)
    )
    passing = (
      SharedTile(rows: cut.passingRows, columns: s.dimension),
      SharedTile(rows: cut.passingRows, columns: s.valueDimension)
    )
    if s.hasScoreGradients {
      (keptOffset, ringOffset) = (kept.scores.byteCount, kept.scores.byteCount + kept.weights.byteCount)
    } else {
      // V is not there, and dV leaves by the place of K.
      (keptOffset, ringOffset) = (0, max(kept.scores.byteCount, kept.weights.byteCount))
    }
    (passingOffset, statisticsOffset) = (
      passing.scores.byteCount, passing.scores.byteCount + passing.weights.byteCount
    )
    let statistics = s.kind == .queries ? 0 : (cut.passingRows * RowStatistics.byteCount + 127) / 128 * 128
    placeByteCount = statisticsOffset + statistics
    operands = SharedTile(rows: cut.rows, columns: cut.passingRows)
    weightsOffset = ringOffset + cut.stages * placeByteCount
    gradientsOffset = weightsOffset + (s.exchangesWeights ? operands.byteCount : 0)
    byteCount = gradientsOffset + (s.exchangesGradients ? operands.byteCount : 0)
  }
}

extension BackwardSpecialization {
  /// Whether P goes through shared memory, and whether dS does.
  var exchangesWeights: Bool { cut.sharers > 1 && sums.values > 0 }
  var exchangesGradients: Bool { cut.sharers > 1 && sums.first > 0 || kind == .all }

  /// What stands against this kernel on a GPU, as the end of a sentence about its tiling; nil where nothing does.
  func obstacle(on gpu: GPULimits) -> String? {
    let memory = BackwardMemory(self).byteCount
    if memory > gpu.sharedBytesPerBlock {
      return "needs \(memory) bytes of shared memory; a block of this GPU has \(gpu.sharedBytesPerBlock)"
    }
    let ofQueries = kind == .queries ? cut.rows : cut.passingRows
    if RowStatistics.rowMultiple % ofQueries != 0 {
      return "takes \(ofQueries) rows of queries at a time; \(RowStatistics.rowMultiple) must be a multiple of them"
    }
    if cut.sharers > 1 {
      let columns = [sums.first, sums.values].filter { $0 > 0 }
      if cut.warps % cut.sharers != 0 || cut.passingRowsPerWarp % 16 != 0
        || !columns.allSatisfy({ $0 % 64 == 0 && $0 % (16 * cut.sharers) == 0 })
      {
        return
          "divides rows that pass in 16s, and columns of 64s, over warps that share rows; \(cut.passingRows) rows and "
          + "\(columns.map(String.init).joined(separator: " and ")) columns over \(cut.sharers) of \(cut.warps) warps it cannot"
      }
      if cut.keepsOperands { return "keeps nothing in registers that warps share" }
    }
    if exchangesWeights || exchangesGradients, cut.passingRows > 64 {
      return "passes weights from warp to warp, for 64 rows at most, not \(cut.passingRows)"
    }
    if kind == .all && queryShares == nil {
      return "divides \(cut.passingRows) rows of dQ in 16s over warps, and columns of 64s; for \(dimension) columns "
        + "\(cut.warps) warps are too many"
    }
    if registerEstimate > 255 {
      return "needs about \(registerEstimate) registers a thread; there are 255"
    }
    return nil
  }

  /// Registers that a thread will take, about.
  var registerEstimate: Int {
    let tiles = cut.rowTilesPerWarp
    var scores = tiles * cut.passingRowsPerWarp / 2 * (hasScoreGradients ? 2 : 1)
    if kind == .all, let (ofRows, ofColumns) = queryShares {
      scores = max(scores, cut.passingRows / ofRows * dimension / ofColumns / 32)
    }
    let kept = cut.keepsOperands ? tiles * (dimension + (hasScoreGradients ? valueDimension : 0)) / 4 : 0
    return tiles * (ownSums.first + ownSums.values) / 2 + scores + kept + 50 + (hasSoftcap ? 12 : 0)
  }

  /// Blocks of this kernel that fit a multiprocessor, by shared memory, registers and warps.
  func blocksThatFit(_ gpu: GPULimits) -> Int {
    let byMemory = gpu.sharedBytesPerMultiprocessor / (BackwardMemory(self).byteCount + 1024)
    let byRegisters = 65536 / (cut.threads * ((min(registerEstimate + 16, 255) + 7) / 8 * 8))
    return max(1, min(byMemory, byRegisters, 48 / cut.warps, 4))
  }
}
