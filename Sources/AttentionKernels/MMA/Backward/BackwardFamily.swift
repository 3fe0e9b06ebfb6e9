package import Attention
internal import PTX

/// The gradients by `mma.sync` (`BackwardKernel`): delta, then dK and dV, then dQ, of the same bits in every run; or, where any
/// order will do, delta, then all by one kernel, whose sums of dQ are rounded by a third (`QuerySumsKernel`).
package enum BackwardFamily: KernelFamily {
  package static let name = "backward"
  package static let architecture = Architecture.from(80)

  /// The largest head dimension of which a warp can hold all columns of a gradient, for 16 rows, in registers; beyond, warps
  /// divide them, in 64s.
  package static let dimensionOfWarp = 256
  /// The largest head dimension.
  package static let dimensionLimit = 512
  /// The most queries times group, and the most keys: differences of a key and an edge of the mask must fit 32 bits.
  private static let lengthLimit = 1 << 29

  /// What has no gradients is an error of the problem, by `check`.
  package static func limitation(for problem: AttentionProblem) -> String? { nil }

  package static func check(_ problem: AttentionProblem, on gpu: GPULimits) throws(AttentionError) {
    try problem.checkHasGradients()
    _ = try Matrix.Inputs(of: problem.scalarType)
    let (path, widest) = ("backward pass on a GPU", max(problem.dimension, problem.valueDimension))
    try GPULimits.check(
      dimension: problem.dimension, valueDimension: problem.valueDimension, path: path, limit: dimensionLimit)
    for (tensor, value) in [("queries and keys", problem.dimension), ("values", problem.valueDimension)]
    where widest > dimensionOfWarp && value % 64 != 0 {
      throw .dimension(
        tensor: tensor, value: value, path: path + " with a head dimension above \(dimensionOfWarp)", multiple: 64,
        limit: dimensionLimit)
    }
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

  /// All cuts worth considering.
  private static let cuts: [BackwardTiling.Cut] = {
    var cuts: [BackwardTiling.Cut] = []
    for warps in [4, 8] {
      for rowTiles in [1, 2] {
        for passing in [32, 64] {
          for stages in [1, 2] {
            for (sharers, keeps) in [(1, false), (1, true), (2, false), (4, false)] where passing >= 16 * sharers {
              cuts.append(
                BackwardTiling.Cut(
                  warps: warps, rowTilesPerWarp: rowTiles, sharers: sharers, passingRows: passing, stages: stages,
                  keepsOperands: keeps))
            }
          }
        }
      }
    }
    return cuts
  }()

  /// Each cut with the cheapest of the other kind: what one kind costs does not depend on the other. And, where any order will
  /// do, each cut of the kernel that makes all.
  package static func tilings(for problem: AttentionProblem, on gpu: GPULimits) -> [BackwardTiling] {
    func had(_ kind: BackwardSpecialization.Kind) -> [BackwardTiling.Cut] {
      cuts.filter { parts(kind, $0, problem, gpu).obstacle(on: gpu) == nil }
    }
    func seconds(_ kinds: [BackwardSpecialization.Kind], _ cut: BackwardTiling.Cut) -> Double {
      kinds.reduce(0) { sum, kind in
        let part = fitted(parts(kind, cut, problem, gpu), gpu)
        return sum + BackwardCost(part).seconds(problem, part, on: gpu)
      }
    }
    typealias Keys = (cut: BackwardTiling.Cut, kinds: [BackwardSpecialization.Kind])
    let together: [Keys] = had(.keysAndValues).map { ($0, [.keysAndValues]) }
    let values = had(.values)
    let keys = together + had(.keys).filter(values.contains).map { ($0, [.keys, .values]) }
    let queries = had(.queries)
    var tilings: [BackwardTiling] = []
    if let bestKeys = keys.min(by: { seconds($0.kinds, $0.cut) < seconds($1.kinds, $1.cut) }),
      let bestQueries = queries.min(by: { seconds([.queries], $0) < seconds([.queries], $1) })
    {
      func tiling(_ keys: Keys, _ queries: BackwardTiling.Cut) -> BackwardTiling {
        BackwardTiling(keys: keys.cut, queries: queries, separatesKeysAndValues: keys.kinds.count == 2)
      }
      tilings = keys.map { tiling($0, bestQueries) }
      tilings += queries.filter { $0 != bestQueries }.map { tiling(bestKeys, $0) }
      if problem.gradientOrder == .any {
        tilings += had(.all).map { BackwardTiling(keys: $0, addsQueries: true) }
      }
    }
    return tilings.isEmpty ? [BackwardTiling(keys: cuts[0], queries: cuts[0])] : tilings
  }

  /// What stands against adding up dQ in memory, as the end of a sentence about a tiling.
  static func obstacle(toSumsOf problem: AttentionProblem) -> String? {
    if problem.gradientOrder == .fixed {
      return "adds up dQ in whatever order blocks come; gradients of the same bits in every run were asked for"
    }
    guard let sums = QuerySums.checkedByteCount(of: problem), sums < 1 << 48 else {
      return "needs more memory for sums of dQ than there can be"
    }
    let own = problem.queryShape.elementCount * 4
    if problem.packedQueries != nil, sums > 2 * own + 64 << 20 {
      return "needs \(sums) bytes for sums of dQ, most of them between packed sequences, whose rows are \(own)"
    }
    return nil
  }

  package static func obstacle(
    to tiling: BackwardTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) -> String? {
    if tiling.addsQueries {
      if let obstacle = obstacle(toSumsOf: problem) { return obstacle }
      if tiling.separatesKeysAndValues { return "makes dK and dV together where it adds up dQ" }
    }
    for part in parts(tiling, problem, gpu) {
      if let obstacle = part.obstacle(on: gpu) { return "\(obstacle), in its \(part.kind.rawValue) kernel" }
    }
    return nil
  }

  package static func obstacle(to changes: TilingChanges, for problem: AttentionProblem) -> String? {
    changes.all.contains { $0 == ("products", "5") } && changes.all.contains { $0.name.hasPrefix("dq-") }
      ? "cuts a kernel of dQ, and five products have none" : nil
  }

  /// With as many blocks on a multiprocessor as fit.
  package static func completed(
    _ tiling: BackwardTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) -> BackwardTiling {
    var tiling = tiling
    func blocks(_ parts: [BackwardSpecialization]) -> Int? { parts.map { $0.blocksThatFit(gpu) }.min() }
    let all = parts(tiling, problem, gpu)
    tiling.keys.blocksPerMultiprocessor = blocks(all.filter { $0.kind != .queries }) ?? 1
    tiling.queries.blocksPerMultiprocessor = blocks(all.filter { $0.kind == .queries }) ?? 1
    return tiling
  }

  private static func fitted(_ part: BackwardSpecialization, _ gpu: GPULimits) -> BackwardSpecialization {
    var part = part
    part.cut.blocksPerMultiprocessor = part.blocksThatFit(gpu)
    return part
  }

  /// What comes before, and, where dQ was added up in memory, behind.
  static func costOfEnds(
    _ problem: AttentionProblem, addsQueries: Bool, on gpu: GPULimits
  ) -> (delta: Double, rounding: Double) {
    func passing(_ bytes: Double) -> Double { ForwardCost.launch + bytes / max(gpu.bandwidth, 1) }
    let sums = addsQueries ? Double(QuerySums.byteCount(of: problem)) : 0
    let element = Double(problem.scalarType.byteCount)
    return (
      passing(2 * Double(problem.outputShape.elementCount) * element + sums),
      passing(sums + Double(problem.queryShape.elementCount) * element)
    )
  }

  package static func cost(
    of tiling: BackwardTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) -> KernelCost {
    let all = parts(tiling, problem, gpu).map {
      (kind: $0.kind, seconds: BackwardCost($0).seconds(problem, $0, on: gpu))
    }
    func seconds(_ kinds: Set<BackwardSpecialization.Kind>) -> Double {
      all.filter { kinds.contains($0.kind) }.reduce(0) { $0 + $1.seconds }
    }
    let (delta, rounding) = costOfEnds(problem, addsQueries: tiling.addsQueries, on: gpu)
    if tiling.addsQueries {
      let one = seconds([.all])
      return KernelCost(["delta": delta, "all": one, "rounding": rounding], seconds: delta + one + rounding)
    }
    let (keys, queries) = (seconds([.keys, .values, .keysAndValues]), seconds([.queries]))
    return KernelCost(
      ["delta": delta, "dK and dV": keys, "dQ": queries], seconds: delta + keys + queries)
  }

  package static func launches(
    _ tiling: BackwardTiling, for problem: AttentionProblem, on gpu: GPULimits
  ) throws(AttentionError) -> LaunchSequence {
    try launches(
      parts(tiling, problem, gpu).map { launch($0, problem) }, problem, addsQueries: tiling.addsQueries, on: gpu)
  }

  /// Launches that make gradients, with what comes before and behind.
  static func launches(
    _ own: [LaunchSequence.Launch], _ problem: AttentionProblem, addsQueries: Bool, on gpu: GPULimits
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
    launches.append(DeltaKernel.launch(problem, inputs: inputs, clearsSums: addsQueries))
    if let launch = SinkGradientKernel.launch(problem) { launches.append(launch) }
    let main = launches.count
    launches += own
    if addsQueries { launches.append(QuerySumsKernel.launch(problem, inputs: inputs, on: gpu)) }
    for launch in launches where launch.blocks > Int32.max {
      throw .lengthOnDevice(
        tensor: "batch x heads x tiles", length: launch.blocks, device: "GPU", limit: Int(Int32.max))
    }
    return LaunchSequence(
      launches, main: main,
      workspaceByteCount: addsQueries
        ? RowStatistics.roundedByteCount(of: problem) + QuerySums.byteCount(of: problem)
        : max(RowStatistics.byteCount(of: problem), 16))
  }

  private static func launch(_ part: BackwardSpecialization, _ problem: AttentionProblem) -> LaunchSequence.Launch {
    let launch = BackwardLaunch(problem, part)
    return LaunchSequence.Launch(
      BackwardKernel(part), blocks: launch.blocks, threads: part.cut.threads,
      sharedByteCount: launch.sharedByteCount, blocksPerMultiprocessor: part.cut.blocksPerMultiprocessor,
      gradients: part.kind.gradients, arguments: ArgumentTemplate(BackwardParameters.all(problem), for: launch))
  }

  // MARK: - dQ alone, for other kernels of dK and dV

  /// The cheapest cut of the kernel that makes dQ; nil where there is none.
  static func cutOfQueries(for problem: AttentionProblem, on gpu: GPULimits) -> BackwardTiling.Cut? {
    cuts.filter { parts(.queries, $0, problem, gpu).obstacle(on: gpu) == nil }
      .min { seconds(ofQueries: $0, problem, on: gpu) < seconds(ofQueries: $1, problem, on: gpu) }
      .map { fitted(parts(.queries, $0, problem, gpu), gpu).cut }
  }

  /// What stands against a cut of that kernel, as the end of a sentence about a tiling.
  static func obstacle(toQueriesBy cut: BackwardTiling.Cut, _ problem: AttentionProblem, on gpu: GPULimits) -> String? {
    parts(.queries, cut, problem, gpu).obstacle(on: gpu).map { "\($0), in its kernel of dQ" }
  }

  /// What that kernel takes.
  static func seconds(ofQueries cut: BackwardTiling.Cut, _ problem: AttentionProblem, on gpu: GPULimits) -> Double {
    let part = fitted(parts(.queries, cut, problem, gpu), gpu)
    return BackwardCost(part).seconds(problem, part, on: gpu)
  }

  /// Its launch.
  static func launch(
    ofQueries cut: BackwardTiling.Cut, _ problem: AttentionProblem, on gpu: GPULimits
  ) -> LaunchSequence.Launch { launch(parts(.queries, cut, problem, gpu), problem) }

  /// The kernels of a tiling, in the order of their launches.
  private static func parts(
    _ tiling: BackwardTiling, _ problem: AttentionProblem, _ gpu: GPULimits
  ) -> [BackwardSpecialization] {
    if tiling.addsQueries { return [parts(.all, tiling.keys, problem, gpu)] }
    return (tiling.separatesKeysAndValues ? [.keys, .values] : [.keysAndValues]).map {
      parts($0, tiling.keys, problem, gpu)
    } + [parts(.queries, tiling.queries, problem, gpu)]
  }

  /// The problem is one that these kernels take.
  private static func parts(
    _ kind: BackwardSpecialization.Kind, _ cut: BackwardTiling.Cut, _ problem: AttentionProblem, _ gpu: GPULimits
  ) -> BackwardSpecialization {
    BackwardSpecialization(kind, problem, inputs: problem.scalarType == .f16 ? .f16 : .bf16, cut: cut, on: gpu)
  }
}

extension BackwardSpecialization.Kind {
  /// What its kernel writes.
  fileprivate var gradients: [CallValue] {
    switch self {
    case .keysAndValues: [.keyGradient, .valueGradient]
    case .all: [.queryGradient, .keyGradient, .valueGradient]
    case .keys: [.keyGradient]
    case .values: [.valueGradient]
    case .queries: [.queryGradient]
    }
  }
}
