package import Attention
internal import PTX

/// The gradients on Hopper (`HopperBackwardKernel`): delta, then dK and dV; dQ by `mma.sync` (`BackwardKernel`), of the same bits in every
/// run, or, where any order will do, on the way, with sums that a third kernel rounds (`QuerySumsKernel`).
package enum HopperBackwardFamily: KernelFamily {
  package static let name = "hopper-backward"
  package static let architecture = Architecture.exactly(90)

  package static func limitation(for problem: AttentionProblem) -> String? {
    if !problem.hasWholeKeys { return "sequences with lengths of their own" }
    if problem.ranges != nil { return "ranges of keys" }
    if ![problem.dimension, problem.valueDimension].allSatisfy([64, 128, 256].contains) {
      return "head dimensions but 64, 128 and 256"
    }
    if HopperBackwardTiling.rows % problem.groupSize != 0 {
      return "groups of \(problem.groupSize) query heads, which do not divide \(HopperBackwardTiling.rows)"
    }
    return nil
  }

  package static func check(_ problem: AttentionProblem, on gpu: GPULimits) throws(AttentionError) {
    try BackwardFamily.check(problem, on: gpu)
  }

  package static func tilings(for problem: AttentionProblem, on gpu: GPULimits) -> [HopperBackwardTiling] {
    let addsQueries = problem.gradientOrder == .any
    // Where there is none, any, which is refused.
    let cut = (addsQueries ? nil : BackwardFamily.cutOfQueries(for: problem, on: gpu)) ?? BackwardTiling.Cut()
    return HopperBackwardTiling.Share.allCases.flatMap { share in
      (addsQueries ? HopperBackwardTiling.Adding.allCases : [.copies]).map { adding in
        // As many stages as there is room for.
        let tilings = [3, 2, 1].map {
          HopperBackwardTiling(share: share, adding: adding, stages: $0, addsQueries: addsQueries, queries: cut)
        }
        return tilings.first { HopperBackwardSpecialization(problem, $0).obstacle(on: gpu) == nil } ?? tilings[2]
      }
    }
  }

  package static func obstacle(
    to tiling: HopperBackwardTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) -> String? {
    if let obstacle = tiling.addsQueries
      ? BackwardFamily.obstacle(toSumsOf: problem)
      : BackwardFamily.obstacle(toQueriesBy: tiling.queries, problem, on: gpu)
    {
      return obstacle
    }
    return HopperBackwardSpecialization(problem, tiling).obstacle(on: gpu)
  }

  package static func obstacle(to changes: TilingChanges, for problem: AttentionProblem) -> String? {
    problem.gradientOrder == .fixed && changes.all.contains { $0.name == "adding" }
      ? "says how dQ is added up in memory, and gradients of the same bits in every run were asked for" : nil
  }

  package static func cost(
    of tiling: HopperBackwardTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) -> KernelCost {
    let keys = HopperBackwardCost(HopperBackwardSpecialization(problem, tiling)).seconds(problem, tiling, on: gpu)
    let (delta, rounding) = BackwardFamily.costOfEnds(problem, addsQueries: tiling.addsQueries, on: gpu)
    if tiling.addsQueries {
      return KernelCost(["delta": delta, "all": keys, "rounding": rounding], seconds: delta + keys + rounding)
    }
    let queries = BackwardFamily.seconds(ofQueries: tiling.queries, problem, on: gpu)
    return KernelCost(["delta": delta, "dK and dV": keys, "dQ": queries], seconds: delta + keys + queries)
  }

  package static func launches(
    _ tiling: HopperBackwardTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) throws(AttentionError) -> LaunchSequence {
    let (specialization, launch) = (
      HopperBackwardSpecialization(problem, tiling), HopperBackwardLaunch(problem, tiling)
    )
    let keys = LaunchSequence.Launch(
      HopperBackwardKernel(specialization), blocks: launch.blocks, threads: HopperBackwardSpecialization.threads,
      sharedByteCount: HopperBackwardMemory(specialization).byteCount,
      gradients: (tiling.addsQueries ? [.queryGradient] : []) + [.keyGradient, .valueGradient],
      arguments: ArgumentTemplate(HopperBackwardParameters.all(problem), for: launch))
    let queries =
      tiling.addsQueries ? [] : [BackwardFamily.launch(ofQueries: tiling.queries, problem, on: gpu)]
    // Calls whose strides the copy engine does not take run by the kernels of `mma.sync`, which need no larger workspace.
    return try BackwardFamily.launches([keys] + queries, problem, addsQueries: tiling.addsQueries, on: gpu)
  }
}
