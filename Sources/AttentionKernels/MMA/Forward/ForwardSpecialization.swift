package import Attention
package import PTX

/// What the text of a forward kernel is made from, and the key that it is cached by. Lengths, strides, pointers, scale
/// and counts are not here: they are launch values, so that one kernel serves all of them.
package struct ForwardSpecialization: Hashable, Sendable {
  /// The type of Q, K, V and O.
  package var inputs: Matrix.Inputs
  /// D, a multiple of 8.
  package var dimension: Int
  /// D_v, a multiple of 8.
  package var valueDimension: Int
  /// Query heads that share a key/value head; they are packed into the rows of a tile.
  package var groupSize: Int
  /// Which edges of the mask there are.
  package var mask: MaskEdges
  /// Whether scores pass through `cap * tanh(score / cap)`.
  package var hasSoftcap: Bool
  /// Whether the scale is below zero: the kernel then negates Q, so that a row's largest score is its largest product.
  package var isScaleNegative: Bool
  /// Whether sequences have lengths of their own, which the kernel reads from the GPU's memory ("variable lengths").
  package var hasSequences: Bool
  /// The type of attention sinks; nil where there are none.
  package var sinkType: ScalarType?
  /// How the work is cut.
  package var tiling: ForwardTiling

  /// What a problem needs, computed with a tiling.
  package init(_ problem: AttentionProblem, inputs: Matrix.Inputs, tiling: ForwardTiling) {
    self.inputs = inputs
    dimension = problem.dimension
    valueDimension = problem.valueDimension
    groupSize = problem.groupSize
    mask = MaskEdges(problem)
    hasSoftcap = problem.softcap != nil
    isScaleNegative = problem.scoreUnits.isNegated
    hasSequences = !problem.hasWholeKeys
    sinkType = problem.sinkType
    self.tiling = tiling
  }

  /// Columns of a row of Q and K in shared memory: D up to the next k step of the tensor cores, zeros beyond D.
  package var paddedDimension: Int { (dimension + 15) / 16 * 16 }

  /// Columns of O that a warp computes: D_v, or where warps share rows, its part: whole panels of 64, or 16 or 32, so
  /// that no part lies across two panels.
  var columnsPerWarp: Int {
    let warps = tiling.columnWarps
    if warps == 1 { return valueDimension }
    let part = (valueDimension + warps - 1) / warps
    return part <= 16 ? 16 : part <= 32 ? 32 : (part + 63) / 64 * 64
  }

  /// The entry point's name.
  package var name: String {
    var name = "attention_\(inputs.rawValue)_d\(dimension)"
    if valueDimension != dimension { name += "_v\(valueDimension)" }
    if groupSize > 1 { name += "_group\(groupSize)" }
    name += mask.name
    if hasSoftcap { name += "_softcap" }
    if isScaleNegative { name += "_negative" }
    if hasSequences { name += "_sequences" }
    if let sinkType { name += "_sinks_\(sinkType)" }
    return name + "_" + tiling.name
  }
}
