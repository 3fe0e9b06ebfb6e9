internal import Attention
package import PTX

/// What the text of Hopper's gradients' kernel is made from, and the key that it is cached by.
package struct HopperBackwardSpecialization: Hashable, Sendable {
  /// The type of all tensors.
  package let inputs: Matrix.Inputs
  /// D and D_v, multiples of 64.
  package let dimension, valueDimension: Int
  /// Query heads that share a key/value head; they are packed into the rows of a tile.
  package let groupSize: Int
  /// Which edges of the mask there are.
  package let mask: MaskEdges
  /// Whether scores pass through `cap * tanh(score / cap)`.
  package let hasSoftcap: Bool
  /// Whether blocks of keys add up dQ in memory.
  package let addsQueries: Bool
  /// How they do.
  package let adding: HopperBackwardTiling.Adding
  /// What the groups of a block divide, and tiles of Q and of dO at once.
  package let share: HopperBackwardTiling.Share
  package let stages: Int

  init(_ problem: AttentionProblem, _ tiling: HopperBackwardTiling) {
    inputs = problem.scalarType == .f16 ? .f16 : .bf16
    (dimension, valueDimension, groupSize) = (problem.dimension, problem.valueDimension, problem.groupSize)
    (mask, hasSoftcap) = (MaskEdges(problem), problem.softcap != nil)
    (addsQueries, share, stages) = (tiling.addsQueries, tiling.share, tiling.stages)
    // Of what is not added, all are alike.
    adding = tiling.addsQueries ? tiling.adding : .copies
  }

  /// The entry point's name.
  var name: String {
    "gradients_hopper_\(addsQueries ? "dqkv" : "dkv")_\(inputs.rawValue)_d\(dimension)"
      + (valueDimension == dimension ? "" : "_v\(valueDimension)") + (groupSize > 1 ? "_group\(groupSize)" : "")
      + mask.name + (hasSoftcap ? "_softcap" : "") + "_" + tiling.name
  }

  private var tiling: HopperBackwardTiling {
    HopperBackwardTiling(share: share, adding: adding, stages: stages, addsQueries: addsQueries)
  }
  /// Keys of a block, and of the rows that pass those whose scores a group makes.
  var keys: Int { tiling.keys }
  var ownRows: Int { tiling.ownRows }
  /// Columns of dK and dV that a group sums.
  var ownSums: (keys: Int, values: Int) {
    share == .keys
      ? (dimension, valueDimension)
      : (dimension / HopperBackwardTiling.groups, valueDimension / HopperBackwardTiling.groups)
  }
  /// Columns of dQ that a group makes.
  var ownQueryColumns: Int { dimension / HopperBackwardTiling.groups }
  /// Whether P goes through shared memory, and whether dS does.
  var exchangesWeights: Bool { share == .columns }
  var exchangesGradients: Bool { share == .columns || addsQueries }
  /// Bytes of a warp's part of dQ, where it is added from shared memory; 0 where it is not.
  var partByteCount: Int { addsQueries && adding == .copies ? ownQueryColumns / 16 * QuerySums.byteCountOfTile : 0 }

  /// Threads of a block: those that multiply, and the group that asks for copies.
  static let threads = (HopperBackwardTiling.groups + 1) * 128
  /// Registers of a thread that multiplies, and of one that asks for copies: all that there are.
  static let registers = (consumer: 240, producer: 24)

  /// What stands against this kernel on a GPU, as the end of a sentence about its tiling; nil where nothing does.
  func obstacle(on gpu: GPULimits) -> String? {
    let memory = HopperBackwardMemory(self).byteCount
    if memory > gpu.sharedBytesPerBlock {
      return "needs \(memory) bytes of shared memory; a block of this GPU has \(gpu.sharedBytesPerBlock)"
    }
    if share == .columns && (dimension % 128 != 0 || valueDimension % 128 != 0) {
      return "divides columns in 64s over two groups; of \(dimension) and \(valueDimension) columns it cannot"
    }
    // S and dP, or dQ, which comes when these are gone.
    let passing = max(ownRows, addsQueries ? ownQueryColumns / 2 : 0)
    let needed = (ownSums.keys + ownSums.values) / 2 + passing + 40 + (hasSoftcap ? 12 : 0)
    if needed > Self.registers.consumer {
      return "needs about \(needed) registers a thread; there are \(Self.registers.consumer)"
    }
    return nil
  }
}

/// Where everything lies in the shared memory of Hopper's gradients' kernel; the only place that knows.
///
///     K V | Q, a stage after the other | dO | P^T dS^T, where they pass from group to group | parts of dQ | statistics | barriers
struct HopperBackwardMemory {
  /// Of the block.
  let keys, values: MatrixTile
  /// Of a tile that passes.
  let queries, outputGradients: MatrixTile
  /// P^T or dS^T: keys x rows that pass.
  let operands: MatrixTile
  let valuesOffset, queriesOffset, outputGradientsOffset, weightsOffset, gradientsOffset: Int
  /// Of the first warp's part of dQ.
  let partsOffset, statisticsOffset: Int
  /// Of K and V; of Q, full; of dO; of both, empty.
  let barriersOffset: Int
  /// What a launch asks for.
  let byteCount: Int

  /// Bytes of a tile's statistics.
  static let statisticsByteCount = HopperBackwardTiling.rows * RowStatistics.byteCount

  init(_ s: HopperBackwardSpecialization) {
    keys = MatrixTile(rows: s.keys, columns: s.dimension)
    values = MatrixTile(rows: s.keys, columns: s.valueDimension)
    queries = MatrixTile(rows: HopperBackwardTiling.rows, columns: s.dimension)
    outputGradients = MatrixTile(rows: HopperBackwardTiling.rows, columns: s.valueDimension)
    operands = MatrixTile(rows: s.keys, columns: HopperBackwardTiling.rows)
    valuesOffset = keys.byteCount
    queriesOffset = valuesOffset + values.byteCount
    outputGradientsOffset = queriesOffset + s.stages * queries.byteCount
    weightsOffset = outputGradientsOffset + s.stages * outputGradients.byteCount
    gradientsOffset = weightsOffset + (s.exchangesWeights ? operands.byteCount : 0)
    partsOffset = gradientsOffset + (s.exchangesGradients ? operands.byteCount : 0)
    statisticsOffset = partsOffset + HopperBackwardTiling.groups * 4 * s.partByteCount
    barriersOffset = statisticsOffset + s.stages * Self.statisticsByteCount
    byteCount = barriersOffset + (1 + 3 * s.stages) * BarrierRing.byteCount
  }

  /// What the barriers count in a phase, in the order of their addresses.
  static func arrivals(stages: Int) -> [Int] {
    [1] + [Int](repeating: 1, count: 2 * stages) + [Int](repeating: 4 * HopperBackwardTiling.groups, count: stages)
  }
}
