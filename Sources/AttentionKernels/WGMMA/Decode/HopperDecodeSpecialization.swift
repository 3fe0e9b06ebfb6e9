internal import Attention
internal import PTX

/// What the text of Hopper's decode kernel is made from, and the key that it is cached by.
package struct HopperDecodeSpecialization: Hashable, Sendable {
  /// What it has in common with the other decode kernels: the work, how it is shared out and put together.
  let work: DecodeSpecialization
  /// Where keys are.
  let keys: KeyBoxes.Cut
  /// How the work is cut.
  package let tiling: HopperDecodeTiling

  init(_ problem: AttentionProblem, _ tiling: HopperDecodeTiling, target: Target) {
    work = DecodeSpecialization(
      problem, inputs: problem.scalarType == .f16 ? .f16 : .bf16, tiling: tiling.work, target: target)
    keys = KeyBoxes.Cut(problem, tileKeys: tiling.tileKeys)
    self.tiling = tiling
  }

  /// The entry point's name.
  var name: String { "hopper_" + work.name + keys.name + "_" + tiling.name }

  var tiles: HopperTiles {
    HopperTiles(
      inputs: work.inputs, converters: converters, dimension: work.dimension,
      valueDimension: work.valueDimension, rowGroups: tiling.rowGroups, keyGroups: tiling.keyGroups,
      tileKeys: tiling.tileKeys, queryStages: 1, stages: tiling.stages, softmax: tiling.softmax,
      hasSoftcap: work.hasSoftcap, isScaleNegative: work.isScaleNegative)
  }
  /// Groups of four warps that convert bytes: as many as leave one instruction its registers.
  private var converters: Int {
    if work.cache == .sameType { return 0 }
    let columns = max(work.valueDimension, tiling.tileKeys / tiling.keyGroups)
    return tiling.rowGroups == 1 && HopperTiles.product(columns: columns, threads: (tiling.groups + 3) * 128).fits
      ? 2 : 1
  }
  /// Registers of a thread that multiplies, of one that asks for copies, and of one that converts bytes.
  var registers: (consumer: Int, producer: Int, converter: Int) {
    switch (tiling.rowGroups, tiling.keyGroups, converters) {
    case (1, 1, 0): (240, 128, 0)
    case (1, 1, 1): (240, 128, 136)
    case (1, 1, _): (240, 80, 96)
    case (1, _, 0): (216, 72, 0)
    case (1, _, 2): (160, 32, 64)
    case (_, _, 0): (232, 40, 0)
    default: (208, 40, 56)
    }
  }

  /// A word that one thread tells the others.
  var wordOffset: Int { tiles.end }
  var sharedByteCount: Int { wordOffset + 16 }

  /// What stands against this kernel on a GPU, as the end of a sentence about its tiling; nil where nothing does.
  func obstacle(on gpu: GPULimits) -> String? {
    if sharedByteCount > gpu.sharedBytesPerBlock {
      return "needs \(sharedByteCount) bytes of shared memory; a block of this GPU has \(gpu.sharedBytesPerBlock)"
    }
    if let obstacle = keys.obstacle ?? tiles.obstacle { return obstacle }
    // Units and their parts take some.
    let (needed, there) = (tiles.registerEstimate(work.mask) + (tiling.keyGroups == 1 ? 32 : 16), registers.consumer)
    if needed > there { return "needs about \(needed) registers a thread; there are \(there)" }
    return nil
  }
}
