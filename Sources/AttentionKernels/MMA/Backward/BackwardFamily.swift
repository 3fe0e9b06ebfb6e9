package import Attention
internal import PTX

/// The gradients by `mma.sync`, of the same bits in every run: delta, then dK and dV, then dQ (`BackwardKernel`).
package enum BackwardFamily: KernelFamily {
  package static let name = "backward"
  package static let architecture = Architecture.from(80)

  /// The largest head dimension: a warp of 16 rows can hold no more of a gradient in registers.
  package static let dimensionLimit = 256
  /// The most queries times group, and the most keys: differences of a key and an edge of the mask must fit 32 bits.
  private static let lengthLimit = 1 << 29

  /// What has no gradients is an error of the problem, by `check`.
  package static func limitation(for problem: AttentionProblem) -> String? { nil }

  package static func check(_ problem: AttentionProblem, on gpu: GPULimits) throws(AttentionError) {
    try problem.checkHasGradients()
    _ = try Matrix.Inputs(of: problem.scalarType)
    try GPULimits.check(
      dimension: problem.dimension, valueDimension: problem.valueDimension, path: "backward pass on a GPU",
      limit: dimensionLimit)
    try GPULimits.check(
      counts: [
        ("queries x group", [problem.queries, problem.groupSize]), ("keys", [problem.keys]),
        ("packed queries x group", [problem.packedQueries ?? 0, problem.groupSize]),
        (
          "batch x rows of queries",
          [problem.batch, RowStatistics.padded(max(problem.queries, 1), group: problem.groupSize)]
        ),
        ("batch x heads", [problem.batch, problem.queryHeads]),
      ], limit: lengthLimit)
    if !problem.hasWholeKeys { try GPULimits.check(placesOf: problem) }
  }

  /// Each cut with the cheapest of the other kind: what one kind costs does not depend on the other.
  package static func tilings(for problem: AttentionProblem, on gpu: GPULimits) -> [BackwardTiling] {
    var (keys, queries) = ([(cut: BackwardTiling.Cut, separates: Bool)](), [BackwardTiling.Cut]())
    for warps in [4, 8] {
      for rowTiles in [1, 2] {
        for passing in [32, 64] {
          for stages in [1, 2] {
            for keeps in [false, true] {
              let cut = BackwardTiling.Cut(
                warps: warps, rowTilesPerWarp: rowTiles, passingRows: passing, stages: stages, keepsOperands: keeps)
              keys += [(cut, false), (cut, true)]
              queries.append(cut)
            }
          }
        }
      }
    }
    func tiling(_ keys: (cut: BackwardTiling.Cut, separates: Bool), _ queries: BackwardTiling.Cut) -> BackwardTiling {
      completed(
        BackwardTiling(keys: keys.cut, queries: queries, separatesKeysAndValues: keys.separates), for: problem, on: gpu)
    }
    func seconds(_ tiling: BackwardTiling) -> Double {
      obstacle(to: tiling, for: problem, on: gpu) == nil ? cost(of: tiling, for: problem, on: gpu).seconds : .infinity
    }
    // What is cheapest beside some cut of the other kind that can be had.
    guard let other = queries.first(where: { cut in parts(.queries, cut, problem).obstacle(on: gpu) == nil }),
      let bestKeys = keys.min(by: { seconds(tiling($0, other)) < seconds(tiling($1, other)) }),
      let bestQueries = queries.min(by: { seconds(tiling(bestKeys, $0)) < seconds(tiling(bestKeys, $1)) })
    else { return [tiling(keys[0], queries[0])] }
    return keys.map { tiling($0, bestQueries) } + queries.filter { $0 != bestQueries }.map { tiling(bestKeys, $0) }
  }

  package static func obstacle(
    to tiling: BackwardTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) -> String? {
    for part in parts(tiling, problem) {
      if let obstacle = part.obstacle(on: gpu) { return "by its \(part.kind.rawValue) kernel " + obstacle }
    }
    return nil
  }

  /// With as many blocks on a multiprocessor as fit.
  package static func completed(
    _ tiling: BackwardTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) -> BackwardTiling {
    var tiling = tiling
    func blocks(_ parts: [BackwardSpecialization]) -> Int { parts.map { $0.blocksThatFit(gpu) }.min()! }
    tiling.keys.blocksPerMultiprocessor = blocks(parts(tiling, problem).filter { $0.kind != .queries })
    tiling.queries.blocksPerMultiprocessor = blocks(parts(tiling, problem).filter { $0.kind == .queries })
    return tiling
  }

  package static func cost(
    of tiling: BackwardTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) -> KernelCost {
    let all = parts(tiling, problem).map { (kind: $0.kind, seconds: BackwardCost($0).seconds(problem, $0, on: gpu)) }
    func seconds(_ kinds: Set<BackwardSpecialization.Kind>) -> Double {
      all.filter { kinds.contains($0.kind) }.reduce(0) { $0 + $1.seconds }
    }
    let rowBytes = 2 * problem.valueDimension * problem.scalarType.byteCount
    let delta =
      ForwardCost.launch + Double(problem.outputShape.elementCount / max(problem.valueDimension, 1) * rowBytes)
      / max(gpu.bandwidth, 1)
    let (keys, queries) = (seconds([.keys, .values, .keysAndValues]), seconds([.queries]))
    return KernelCost(
      ["delta": delta, "dK and dV": keys, "dQ": queries], seconds: delta + keys + queries)
  }

  package static func launches(
    _ tiling: BackwardTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) throws(AttentionError) -> LaunchSequence {
    let inputs = try Matrix.Inputs(of: problem.scalarType)
    var launches: [LaunchSequence.Launch] = []
    if problem.packedQueries != nil {
      launches.append(ZeroKernel.launch(.queryGradient, problem.queryShape, problem.scalarType))
    }
    if problem.hasPackedKeys {
      launches.append(ZeroKernel.launch(.keyGradient, problem.keyShape, problem.scalarType))
      launches.append(ZeroKernel.launch(.valueGradient, problem.valueShape, problem.scalarType))
    }
    launches.append(DeltaKernel.launch(problem, inputs: inputs))
    let main = launches.count
    for part in parts(tiling, problem) {
      let launch = BackwardLaunch(problem, part)
      launches.append(
        LaunchSequence.Launch(
          BackwardKernel(part), blocks: launch.blocks, threads: part.cut.threads,
          sharedByteCount: launch.sharedByteCount, blocksPerMultiprocessor: part.cut.blocksPerMultiprocessor,
          gradients: part.kind.gradients, arguments: ArgumentTemplate(BackwardParameters.all, for: launch)))
    }
    for launch in launches where launch.blocks > Int32.max {
      throw .lengthOnDevice(
        tensor: "batch x heads x tiles", length: launch.blocks, device: "GPU", limit: Int(Int32.max))
    }
    return LaunchSequence(
      launches, main: main, workspaceByteCount: max(RowStatistics.byteCount(of: problem), 16))
  }

  /// The kernels of a tiling, in the order of their launches.
  private static func parts(_ tiling: BackwardTiling, _ problem: AttentionProblem) -> [BackwardSpecialization] {
    (tiling.separatesKeysAndValues ? [.keys, .values] : [.keysAndValues]).map { parts($0, tiling.keys, problem) }
      + [parts(.queries, tiling.queries, problem)]
  }

  /// The problem is one that these kernels take.
  private static func parts(
    _ kind: BackwardSpecialization.Kind, _ cut: BackwardTiling.Cut, _ problem: AttentionProblem
  ) -> BackwardSpecialization {
    BackwardSpecialization(kind, problem, inputs: problem.scalarType == .f16 ? .f16 : .bf16, cut: cut)
  }
}

extension BackwardSpecialization.Kind {
  /// What its kernel writes.
  fileprivate var gradients: [CallValue] {
    switch self {
    case .keysAndValues: [.keyGradient, .valueGradient]
    case .keys: [.keyGradient]
    case .values: [.valueGradient]
    case .queries: [.queryGradient]
    }
  }
}
