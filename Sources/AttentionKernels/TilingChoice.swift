public import Attention
public import PTX

/// Which tiling suits a problem on a GPU, and why: every candidate, with its predicted cost or with what stands against it.
public struct TilingChoice: Sendable {
  /// A tiling that was considered.
  public struct Candidate: Sendable {
    /// The tiling.
    public let tiling: ForwardTiling
    /// What a tile of keys costs.
    public let cost: TilingCost
    /// Predicted, for the whole problem, in cycles of the GPU.
    public let cycles: Double
  }

  /// The candidates that there are kernels for, the cheapest first.
  public let ranked: [Candidate]
  /// The others, each with the end of a sentence.
  public let rejected: [(tiling: ForwardTiling, reason: String)]

  /// - Parameters:
  ///   - rung: only tilings of a rung of the ladder; nil for those that may be the best.
  ///   - stages: only with so many stages.
  ///   - sums: what the tensor cores sum in.
  public init(
    _ problem: AttentionProblem, inputs: Matrix.Inputs, on gpu: GPULimits, rung: Rung? = nil, stages: Int? = nil,
    sums: Matrix.Accumulator = .f32
  ) {
    var ranked: [Candidate] = []
    var rejected: [(tiling: ForwardTiling, reason: String)] = []
    for var tiling in Self.candidates(problem, rung: rung, stages: stages) {
      tiling.sums = sums
      var specialization = ForwardSpecialization(problem, inputs: inputs, tiling: tiling)
      if let obstacle = specialization.obstacle(on: gpu) {
        rejected.append((tiling, obstacle))
        continue
      }
      tiling.blocksPerMultiprocessor = specialization.blocksThatFit(gpu)
      specialization.tiling = tiling
      let perMultiprocessor =
        Double(ForwardLaunch(problem, specialization).blocks) / Double(max(gpu.multiprocessors, 1))
      let cost = TilingCost(
        specialization, blocks: max(1, min(tiling.blocksPerMultiprocessor, Int(perMultiprocessor.rounded(.up)))))
      // The tiles that the busiest multiprocessor works on, one after the other. Masks hide the same part from all
      // candidates, and keys beyond the length cost as much as others; both are left out, so that the choice does not
      // change with every length.
      let tiles = max(perMultiprocessor, 1) * Double(max(problem.keys, 1)) / Double(tiling.tileKeys)
      ranked.append(Candidate(tiling: tiling, cost: cost, cycles: cost.cycles * tiles))
    }
    self.ranked = ranked.sorted { $0.cycles < $1.cycles }
    self.rejected = rejected
  }

  /// What is worth considering: all of a rung, or those of the rungs that win somewhere.
  private static func candidates(_ problem: AttentionProblem, rung: Rung?, stages: Int?) -> [ForwardTiling] {
    var list: [ForwardTiling] = []
    let isWide = max(problem.dimension, problem.valueDimension) > 128
    let rungs =
      rung.map { [$0] } ?? [Rung(splitsKeys: false, sharing: .none)]
      + (isWide ? [Rung(splitsKeys: true, sharing: .keysAndValues)] : [])
    for rung in rungs {
      let stageCounts = stages.map { [$0] } ?? (rung.splitsKeys ? [2, 4] : [2, 3])
      for (warps, columns, rowTiles) in rung.splitsKeys
        ? [(4, 2, 1), (4, 4, 1), (8, 4, 1), (8, 4, 2), (8, 8, 1), (8, 8, 2)] : [(4, 1, 1), (4, 1, 2), (8, 1, 1)]
      {
        for keys in rung.splitsKeys ? [32, 64, 128] : [32, 48, 64, 80, 96, 128] {
          for slices in rung.splitsKeys && rung.sharing != .none ? [1, 2, 4, 8] : [1] {
            for keepsQueries in rung.sharing == .queriesKeysAndValues
              ? [true] : rung.splitsKeys ? [false] : [true, false]
            {
              for stages in stageCounts {
                list.append(
                  ForwardTiling(
                    warps: warps, warpTiling: columns == 1 ? .queries : .queriesAndKeys(columns: columns),
                    sharing: rung.sharing, rowTilesPerWarp: rowTiles, tileKeys: keys, stages: stages, slices: slices,
                    keepsQueries: keepsQueries, blocksPerMultiprocessor: 1))
              }
            }
          }
        }
      }
    }
    return list
  }
}

extension TilingChoice: CustomStringConvertible {
  /// A line for each candidate. Costs are in kilocycles of a multiprocessor for 128 rows x 1024 keys, so that tilings compare.
  public var description: String {
    func thousands(_ cycles: Double, _ tiling: ForwardTiling) -> String {
      let tenths = Int((cycles * 128 * 1024 / Double(tiling.rows * tiling.tileKeys) / 100).rounded())
      return "\(tenths / 10).\(tenths % 10)"
    }
    let best = ranked.first?.cycles ?? 1
    var lines = [
      "ranked by predicted time, as a multiple of the first's; kilocycles for 128 rows x 1024 keys of products, shared "
        + "memory, exponentials and waits:"
    ]
    for candidate in ranked {
      let (cost, tiling) = (candidate.cost, candidate.tiling)
      let parts = [cost.products, cost.sharedMemory, cost.exponentials, cost.waits].map { thousands($0, tiling) }
      let hundredths = Int((candidate.cycles / best * 100).rounded())
      let ratio = "\(hundredths / 100).\(hundredths % 100 < 10 ? "0" : "")\(hundredths % 100)"
      lines.append("  \(ratio)  \(parts.joined(separator: " "))  \(tiling.changes)")
    }
    if !rejected.isEmpty { lines.append("refused:") }
    for (tiling, reason) in rejected { lines.append("  \(tiling.changes): \(reason)") }
    return lines.joined(separator: "\n")
  }
}
