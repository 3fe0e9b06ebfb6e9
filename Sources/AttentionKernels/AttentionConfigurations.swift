internal import Attention
public import PTX

/// The one list of attention kernels that `ptxas` judges in the tests: no register may spill, but for a few where O takes
/// most of them.
public struct AttentionConfiguration: Sendable, CustomStringConvertible {
  /// The kernel.
  public let kernel: Kernel
  /// The GPU that its tiling was chosen for.
  public let target: Target

  /// Bytes that may spill: none up to D 256; above, some that are needed once a tile, because smaller tiles cost more.
  public let spillAllowance: Int

  /// For test reports.
  public var description: String { "\(kernel.name) for \(target)" }

  /// Head dimensions of known models, GQA, all masks and softcaps, for an A100, an RTX 4090 and an H200.
  public static func all() throws -> [AttentionConfiguration] {
    var list: [AttentionConfiguration] = []
    for (target, dimensions) in [
      (Target.sm80, [64, 96, 128, 256]), (.sm89, [64, 128, 256]),
      (.sm90, [8, 32, 64, 72, 80, 96, 104, 128, 192, 256, 320, 512, 1024]),
    ] {
      for (number, dimension) in dimensions.enumerated() {
        for (mask, softcap) in [
          (AttentionMask.none, nil), (.causal, nil), (.window(left: 4096, right: 0), nil), (.causal, 50.0),
        ] {
          let type: ScalarType = number % 2 == 0 ? .f16 : .bf16
          let group = [1, 8, 7][number % 3]
          let shape = TensorShape(batch: 1, heads: 1, length: 4096, dimension: dimension)
          var queries = shape
          queries.heads = group
          for length in dimension == 128 ? [4096, 1] : [4096] {
            queries.length = length
            let problem = try AttentionProblem(
              queries: queries, keys: shape, values: shape, scalarType: type, mask: mask, softcap: softcap)
            let plan = try ForwardPlan(problem, on: .typical(of: target))
            list.append(
              AttentionConfiguration(
                kernel: try plan.kernel(), target: target, spillAllowance: dimension > 256 ? 64 : 0))
          }
        }
      }
    }
    return list
  }
}
