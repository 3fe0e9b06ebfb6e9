internal import Attention

/// What a tile that passes costs a block of Hopper's gradients' kernel, in cycles of a multiprocessor: fitted on an NVIDIA H200,
/// 2026-11-30, to D 64, 128 and 256, N 8192, in both orders and by both ways of adding, within 5% (`bench backward --tiling`;
/// Documentation/GPULog.md).
struct HopperBackwardCost {
  /// Products of 16 bits that the tensor cores of a multiprocessor add in a cycle.
  private static let productsInCycle = 2048.0
  /// How much longer they take: of scores 64 columns wide, and of 32, which wait for shared memory.
  private static let reached: [HopperBackwardTiling.Share: Double] = [.keys: 1.21, .columns: 1.74]
  /// What nothing runs beside: of a tile; of dS^T, where it passes from group to group for dQ alone; of a part of dQ that copies
  /// add; of a tile that is waited for because it is the only one.
  private static let (tile, exchange, copies, oneStage) = (527.0, 300.0, 600.0, 300.0)
  /// Bytes that atomics add to memory in a cycle.
  private static let bytesAddedInCycle = 36.0

  private let cycles: Double

  init(_ s: HopperBackwardSpecialization) {
    let pairs = Double(s.keys * HopperBackwardTiling.rows)
    let depth = Double(2 * (s.dimension + s.valueDimension) + (s.addsQueries ? s.dimension : 0))
    var cycles = pairs * depth / Self.productsInCycle * Self.reached[s.share]! + Self.tile
    if s.stages == 1 { cycles += Self.oneStage }
    if s.addsQueries {
      if s.share == .keys { cycles += Self.exchange }
      let bytes = Double(HopperBackwardTiling.rows * QuerySums.rowByteCount(s.dimension))
      cycles += s.adding == .copies ? Self.copies : bytes / Self.bytesAddedInCycle
    }
    self.cycles = cycles
  }

  /// All tiles of a launch, those of the busiest multiprocessor one after the other.
  func seconds(_ problem: AttentionProblem, _ tiling: HopperBackwardTiling, on gpu: GPULimits) -> Double {
    let launch = HopperBackwardLaunch(problem, tiling)
    let tiles = BackwardCost.tiles(
      problem, kept: tiling.keys, passing: HopperBackwardTiling.rows, keepsKeys: true)
    let perMultiprocessor = max(Double(launch.blocks) / Double(max(gpu.multiprocessors, 1)), 1)
    return ForwardCost.launch + perMultiprocessor * tiles * cycles / gpu.clock * ForwardCost.sustained
  }
}
