package import Attention
package import PTX

/// What the text of a gradients' kernel is made from, and the key that it is cached by; lengths, strides, pointers and the scale
/// are launch values.
package struct BackwardSpecialization: Hashable, Sendable {
  /// What a block keeps, and what it makes of that which passes by.
  package enum Kind: String, Hashable, Sendable {
    /// K and V stay, rows of Q and dO pass.
    case keysAndValues = "dkv"
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

  /// What a problem needs of a kind.
  package init(_ kind: Kind, _ problem: AttentionProblem, inputs: Matrix.Inputs, cut: BackwardTiling.Cut) {
    (self.kind, self.inputs, self.cut) = (kind, inputs, cut)
    (dimension, valueDimension, groupSize) = (problem.dimension, problem.valueDimension, problem.groupSize)
    (mask, hasSoftcap) = (MaskEdges(problem.mask), problem.softcap != nil)
    (hasSequences, hasPackedQueries) = (!problem.hasWholeKeys, problem.packedQueries != nil)
  }

  /// Whether dS is needed, and V for it.
  var hasScoreGradients: Bool { kind != .values }
  /// Columns of what a block makes: of dK or dQ, and of dV.
  var sums: (first: Int, values: Int) {
    switch kind {
    case .keysAndValues: (dimension, valueDimension)
    case .keys, .queries: (dimension, 0)
    case .values: (0, valueDimension)
    }
  }
  /// Products of each pair of a row and a key, in multiply-adds.
  var productsOfPair: Int {
    dimension + (hasScoreGradients ? valueDimension : 0) + sums.first + sums.values
  }

  /// The entry point's name.
  package var name: String {
    var name = "gradients_\(kind.rawValue)_\(inputs.rawValue)_d\(dimension)"
    if valueDimension != dimension { name += "_v\(valueDimension)" }
    if groupSize > 1 { name += "_group\(groupSize)" }
    name += mask.name
    if hasSoftcap { name += "_softcap" }
    if hasSequences { name += hasPackedQueries ? "_packed" : "_sequences" }
    return name + "_" + cut.name
  }
}

/// Where everything lies in the shared memory of a gradients' kernel; the only place that knows.
///
///     K V | Q dO statistics | Q dO statistics | ...        where keys are kept
///     Q dO | K V | K V | ...                               where queries are
///
/// What a block has made leaves by the places of what it kept.
struct BackwardMemory {
  /// K or Q, and V or dO, of the block.
  let kept: (scores: SharedTile, weights: SharedTile)
  /// Q or K, and dO or V, of a tile that passes.
  let passing: (scores: SharedTile, weights: SharedTile)
  /// From the start to the second of what is kept, and to the ring.
  let keptOffset, ringOffset: Int
  /// From a place in the ring to the next; within one, to the second tile and to the statistics.
  let placeByteCount, passingOffset, statisticsOffset: Int
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
    byteCount = ringOffset + cut.stages * placeByteCount
  }
}

extension BackwardSpecialization {
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
    if registerEstimate > 255 {
      return "needs about \(registerEstimate) registers a thread; there are 255"
    }
    return nil
  }

  /// Registers that a thread will take, about.
  var registerEstimate: Int {
    let tiles = cut.rowTilesPerWarp
    let scores = tiles * cut.passingRows / 2 * (hasScoreGradients ? 2 : 1)
    let kept = cut.keepsOperands ? tiles * (dimension + (hasScoreGradients ? valueDimension : 0)) / 4 : 0
    return tiles * (sums.first + sums.values) / 2 + scores + kept + 50 + (hasSoftcap ? 12 : 0)
  }

  /// Blocks of this kernel that fit a multiprocessor, by shared memory, registers and warps.
  func blocksThatFit(_ gpu: GPULimits) -> Int {
    let byMemory = gpu.sharedBytesPerMultiprocessor / (BackwardMemory(self).byteCount + 1024)
    let byRegisters = 65536 / (cut.threads * ((min(registerEstimate + 16, 255) + 7) / 8 * 8))
    return max(1, min(byMemory, byRegisters, 48 / cut.warps, 4))
  }
}
