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
        // All masks for the dimensions that models have most.
        let isRare = [8, 32, 72, 104].contains(dimension)
        for (mask, softcap) in [
          (AttentionMask.none, nil), (.causal, nil), (.window(left: 4096, right: 0), nil), (.causal, 50.0),
        ] where !isRare || mask == .causal {
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
    return list + (try decoding())
  }

  /// Decoding: from one query of one head to 128 rows, contiguous and on pages; and the second launch.
  private static func decoding() throws -> [AttentionConfiguration] {
    var list: [AttentionConfiguration] = []
    for target in [Target.sm80, .sm90] {
      for (dimension, group, queries, pageSize) in [
        (64, 1, 1, nil), (128, 4, 1, 16), (128, 8, 4, nil), (128, 16, 4, 64), (128, 16, 8, nil),
        (256, 4, 1, nil), (256, 8, 4, 1), (72, 5, 3, nil),
      ] as [(Int, Int, Int, Int?)] {
        let problem = try CachedAttentionProblem(
          batch: 1, queries: queries, queryHeads: group, keyValueHeads: 1, dimension: dimension,
          cache: pageSize.map { .paged(pages: 1000, pageSize: $0, pagesPerSequence: 65536 / $0) }
            ?? .contiguous(sequences: 1, capacity: 65536), scalarType: .bf16,
          mask: dimension == 72 ? .window(left: 1024, right: 0) : .causal)
        let plan = try DecodePlan(problem, on: .typical(of: target))
        for kernel in [try plan.kernel(), try plan.combineKernel()].compactMap({ $0 }) {
          list.append(AttentionConfiguration(kernel: kernel, target: target, spillAllowance: 0))
        }
      }
    }
    return list + (try sequences())
  }

  /// What sequences of a call may have beside lengths: e4m3 caches, packed queries and keys, new keys, chunks, fixed splits, and
  /// partial results that are left.
  private static func sequences() throws -> [AttentionConfiguration] {
    var list: [AttentionConfiguration] = []
    let left = try CachedAttentionProblem(
      batch: 1, queries: 4, queryHeads: 8, keyValueHeads: 1, dimension: 128,
      cache: .contiguous(sequences: 1, capacity: 65536), scalarType: .bf16, keysPerSplit: 4096, leavesParts: true)
    list.append(
      AttentionConfiguration(
        kernel: try DecodePlan(left, on: .typical(of: .sm90)).kernel(), target: .sm90, spillAllowance: 0))
    // Kernels of whole problems that read each sequence's lengths have some registers less to spare.
    for (target, dimension, group, mask) in [
      (Target.sm90, 64, 1, AttentionMask.none), (.sm90, 96, 7, .window(left: 4096, right: 0)), (.sm90, 128, 4, .causal),
      (.sm90, 192, 1, .chunks(of: 8192)), (.sm90, 256, 8, .causal), (.sm90, 512, 1, .causal), (.sm90, 1024, 4, .none),
      (.sm80, 64, 8, .causal), (.sm80, 128, 1, .window(left: 4096, right: 0)), (.sm80, 256, 4, .causal),
      (.sm89, 128, 4, .chunks(of: 8192)),
    ] {
      let problem = try CachedAttentionProblem(
        batch: 8, queries: 4096, packedQueries: 8192, queryHeads: 8 * group, keyValueHeads: 8, dimension: dimension,
        cache: group % 2 == 0
          ? .packed(total: 8192, longest: 4096) : .contiguous(sequences: 8, capacity: 4096),
        scalarType: group == 1 ? .f16 : .bf16, mask: mask)
      let plan = try ForwardPlan(problem, on: .typical(of: target))
      list.append(
        AttentionConfiguration(kernel: try plan.kernel(), target: target, spillAllowance: dimension > 256 ? 64 : 0))
    }
    for target in [Target.sm80, .sm90] {
      for (type, dimension, group, queries) in [
        (ScalarType.bf16, 128, 4, 1), (.f16, 128, 8, 4), (.bf16, 64, 1, 1),
      ] {
        let problem = try CachedAttentionProblem(
          batch: 1, queries: queries, packedQueries: queries, queryHeads: group, keyValueHeads: 1, dimension: dimension,
          cache: .contiguous(sequences: 1, capacity: 65536),
          newKeys: target >= .sm89
            ? .init(queries, rotary: RotaryEmbedding(dimension: dimension, isInterleaved: group == 4, positions: 65536))
            : nil, scalarType: type, queryType: dimension == 64 ? .e4m3 : nil, cacheType: .e4m3,
          mask: group == 8 ? .chunks(of: 8192) : .causal, keysPerSplit: dimension == 64 ? 4096 : nil)
        let plan = try DecodePlan(problem, on: .typical(of: target))
        for kernel in [try plan.preparationKernel()?.kernel(), try plan.kernel()] {
          if let kernel { list.append(AttentionConfiguration(kernel: kernel, target: target, spillAllowance: 0)) }
        }
        if let kernel = try plan.combineKernel() {
          // A word before its loop.
          list.append(AttentionConfiguration(kernel: kernel, target: target, spillAllowance: 4))
        }
      }
    }
    return list
  }
}
