package import Attention
package import PTX

/// What the text of Hopper's forward kernel is made from, and the key that it is cached by.
package struct HopperForwardSpecialization: Hashable, Sendable {
  /// The type of Q and O, and of K and V as they are multiplied.
  package let inputs: Matrix.Inputs
  /// Whether K and V are bytes of e4m3, which become 16 bits on their way.
  package let convertsBytes: Bool
  /// D and D_v, multiples of 8.
  package let dimension, valueDimension: Int
  /// Which edges of the mask there are.
  package let mask: MaskEdges
  /// Whether scores pass through `cap * tanh(score / cap)`.
  package let hasSoftcap: Bool
  /// Whether the scale is below zero: queries then count with the other sign.
  package let isScaleNegative: Bool
  /// Whether more than one query head reads a key/value head.
  package let isGrouped: Bool
  /// Where keys are: whether sequences have lengths of their own, which the kernel reads from the GPU's memory ("variable
  /// lengths"), and whether they are on pages.
  let keys: KeyBoxes.Cut
  /// The type of attention sinks; nil where there are none.
  package let sinkType: ScalarType?
  /// How the work is cut.
  package let tiling: HopperForwardTiling

  init(_ problem: AttentionProblem, _ tiling: HopperForwardTiling) {
    inputs = problem.scalarType == .f16 ? .f16 : .bf16
    convertsBytes = problem.cacheType == .e4m3
    (dimension, valueDimension) = (problem.dimension, problem.valueDimension)
    mask = MaskEdges(problem)
    hasSoftcap = problem.softcap != nil
    isScaleNegative = problem.scoreUnits.isNegated
    isGrouped = problem.groupSize > 1
    keys = KeyBoxes.Cut(problem, tileKeys: tiling.tileKeys)
    (sinkType, self.tiling) = (problem.sinkType, tiling)
  }

  /// Whether all lanes of the producer's warp find its items, and not one alone.
  var producerIsWarp: Bool { hasSequences || mask.rangeCount > 0 }

  /// The entry point's name.
  var name: String {
    "attention_hopper_\(inputs.rawValue)" + (convertsBytes ? "_e4m3" : "") + "_d\(dimension)"
      + (valueDimension == dimension ? "" : "_v\(valueDimension)")
      + (isGrouped ? "_grouped" : "") + mask.name + (hasSoftcap ? "_softcap" : "")
      + (isScaleNegative ? "_negative" : "") + keys.name + (sinkType.map { "_sinks_\($0)" } ?? "") + "_" + tiling.name
  }

  var hasSequences: Bool { keys.hasSequences }

  // MARK: - Shared memory

  var tiles: HopperTiles {
    HopperTiles(
      inputs: inputs, converters: convertsBytes ? 1 : 0, dimension: dimension, valueDimension: valueDimension,
      rowGroups: tiling.groups, tileKeys: tiling.tileKeys, queryStages: tiling.queryStages, stages: tiling.stages,
      softmax: tiling.softmax,
      hasSoftcap: hasSoftcap, isScaleNegative: isScaleNegative)
  }
  /// Behind the barriers.
  var itemsOffset: Int { tiles.end + 2 * tiling.queryStages * BarrierRing.byteCount }
  var sharedByteCount: Int { itemsOffset + tiling.queryStages * itemByteCount }
  /// Whether there is an item, which, and, where the producer has looked for them, its tiles of keys.
  var itemByteCount: Int {
    let words = 1 + HopperItem.wordCount(hasSequences: hasSequences) + tileWordCount
    return (words + 3) / 4 * 16
  }
  /// Words of an item's tiles.
  var tileWordCount: Int { mask.rangeCount == 0 ? 0 : KeyTiles.wordCount(stretches: mask.rangeCount) }

  /// What stands against this kernel on a GPU, as the end of a sentence about its tiling; nil where nothing does.
  func obstacle(on gpu: GPULimits) -> String? {
    if sharedByteCount > gpu.sharedBytesPerBlock {
      return "needs \(sharedByteCount) bytes of shared memory; a block of this GPU has \(gpu.sharedBytesPerBlock)"
    }
    if let obstacle = keys.obstacle ?? tiles.obstacle { return obstacle }
    let needed = tiles.registerEstimate(mask)
    if needed > registers.consumer {
      return "needs about \(needed) registers a thread for O (\(valueDimension / 2)), S (\(tiling.tileKeys / 2)), P "
        + "(\(tiling.tileKeys / 4)) and the rest; there are \(registers.consumer)"
    }
    return nil
  }

  /// Registers of a thread that multiplies, of one that asks for copies, and of one that converts bytes: all that there are. To
  /// find items among sequences takes some, and so does to find pages, and what given ranges span.
  var registers: (consumer: Int, producer: Int, converter: Int) {
    if convertsBytes { return tiling.groups == 3 ? (120, 56, 56) : (200, 56, 56) }
    if keys.pageSize != nil || mask.rangeCount == 2 { return tiling.groups == 3 ? (152, 56, 0) : (224, 56, 0) }
    if tiling.groups == 3 { return (160, 32, 0) }
    return hasSequences || mask.rangeCount == 1 ? (232, 40, 0) : (240, 24, 0)
  }
}
