internal import Attention
package import PTX

/// The one list of attention kernels that `ptxas` judges in the tests: no register may spill, but for a few where O
/// takes most of them.
package struct AttentionConfiguration: Sendable, CustomStringConvertible {
  /// The kernel.
  package let kernel: Kernel
  /// The GPU that its tiling was chosen for.
  package let target: Target

  /// Bytes that may spill: none up to D 256; above, some that are needed once a tile, because smaller tiles cost more.
  package let spillAllowance: Int

  /// For test reports.
  package var description: String { "\(kernel.name) for \(target)" }

  /// Head dimensions of known models, GQA, all masks and softcaps, for an A100, an RTX 4090 and an H200.
  package static func all() throws -> [AttentionConfiguration] {
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
            var problem = try AttentionProblem(
              queries: queries, keys: shape, values: shape, scalarType: type, mask: mask, softcap: softcap)
            // Models with sinks have windows.
            if mask.reach.left != nil && [64, 128].contains(dimension) { problem.sinkType = .bf16 }
            list += try configurations(problem, "forward", target, spillAllowance: dimension > 256 ? 64 : 0)
          }
        }
      }
    }
    return list + (try ranges()) + (try decoding()) + (try gradients())
  }

  /// Ranges of keys: given ones, and those that leave a gap between two stretches.
  private static func ranges() throws -> [AttentionConfiguration] {
    var list: [AttentionConfiguration] = []
    for (target, dimension, group, mask, ranges) in [
      (Target.sm80, 64, 1, AttentionMask.causal, KeyRanges.Form.given(count: 2, isShared: true)),
      (.sm80, 128, 4, .none, .given(count: 1, isShared: false)),
      (.sm89, 128, 1, .causal, .given(count: 2, isShared: true)),
      (.sm90, 64, 8, .window(left: 1023, right: 0), .firstKeys(4)),
      (.sm90, 128, 1, .causal, .given(count: 2, isShared: false)),
      (.sm90, 128, 7, .window(left: 1023, right: 0), .prefix), (.sm90, 256, 1, .none, .given(count: 2, isShared: true)),
      (.sm90, 512, 4, .causal, .given(count: 1, isShared: true)),
    ] {
      let keys = TensorShape(batch: 1, heads: 1, length: 4096, dimension: dimension)
      var queries = keys
      queries.heads = group
      var problem = try AttentionProblem(queries: queries, keys: keys, values: keys, scalarType: .bf16, mask: mask)
      problem.ranges = ranges
      list += try configurations(problem, "forward", target, spillAllowance: dimension > 256 ? 64 : 0)
    }
    return list
  }

  /// Gradients: what precedes them, dK and dV together and by a launch each, dQ.
  private static func gradients() throws -> [AttentionConfiguration] {
    var list: [AttentionConfiguration] = []
    for (target, dimension, group, mask, softcap, order) in [
      (Target.sm80, 128, 8, AttentionMask.causal, nil, AttentionProblem.GradientOrder.fixed),
      (.sm89, 128, 1, .window(left: 4096, right: 0), nil, .fixed),
      (.sm89, 256, 4, .causal, nil, .fixed), (.sm90, 64, 1, .none, nil, .fixed),
      (.sm90, 72, 5, .chunks(of: 8192), nil, .fixed), (.sm90, 128, 1, .causal, nil, .fixed),
      (.sm90, 128, 4, .causal, 50.0, .fixed), (.sm90, 256, 1, .causal, nil, .fixed),
      (.sm80, 128, 1, .none, nil, .any), (.sm90, 128, 4, .causal, 50.0, .any), (.sm90, 256, 1, .none, nil, .any),
      (.sm90, 512, 1, .causal, nil, .fixed),
      // With ranges of keys.
      (.sm80, 128, 2, .causal, nil, .fixed), (.sm90, 64, 2, .causal, nil, .any), (.sm90, 256, 2, .none, nil, .fixed),
    ] {
      let isPacked = group > 1 && softcap == nil
      var problem = try AttentionProblem(
        batch: 4, queries: 4096, packedQueries: isPacked ? 8192 : nil, queryHeads: 8 * group, keyValueHeads: 8,
        dimension: dimension, keys: isPacked ? .packed(total: 8192, longest: 4096) : .whole(length: 4096),
        scalarType: group == 4 ? .f16 : .bf16, mask: mask, softcap: softcap)
      problem.gradientOrder = order
      problem.sinkType = softcap == nil ? nil : .bf16
      if group == 2 { problem.ranges = .given(count: 2, isShared: true) }
      let plan = try KernelPlan(
        problem, on: .typical(of: target), options: KernelOptions(family: BackwardFamily.name),
        families: KernelFamilies.backward)
      for launch in plan.launches.launches {
        let kernel = try launch.kernel.kernel()
        // What comes before the products is the same everywhere.
        if (launch.kernel is ZeroKernel || launch.kernel is DeltaKernel || launch.kernel is SinkGradientKernel)
          && list.contains(where: { $0.kernel.name == kernel.name })
        {
          continue
        }
        // As much as an address, needed once a tile, where the sums take most registers; and two more where ranges are looked up.
        list.append(
          AttentionConfiguration(
            kernel: kernel, target: target, spillAllowance: dimension < 128 ? 0 : problem.ranges == nil ? 8 : 24))
      }
    }
    return list
  }

  /// The kernels of a plan.
  private static func configurations(
    _ problem: AttentionProblem, _ family: String, _ target: Target, spillAllowance: Int = 0
  ) throws -> [AttentionConfiguration] {
    try KernelPlan(problem, on: .typical(of: target), options: KernelOptions(family: family)).launches.launches.map {
      AttentionConfiguration(kernel: try $0.kernel.kernel(), target: target, spillAllowance: spillAllowance)
    }
  }

  /// Decoding: from one query of one head to 128 rows, contiguous, on pages and whole; and the second launch.
  private static func decoding() throws -> [AttentionConfiguration] {
    var list: [AttentionConfiguration] = []
    for target in [Target.sm80, .sm90] {
      // One sequence, no more than lanes of a warp, and more: each is another text.
      for (dimension, batch, group, queries, pageSize) in [
        (64, 8, 1, 1, nil), (128, 8, 4, 1, 16), (128, 40, 8, 4, nil), (128, 8, 16, 4, 64), (128, 1, 16, 8, nil),
        (256, 1, 4, 1, nil), (256, 40, 8, 4, 1), (72, 8, 5, 3, nil),
      ] as [(Int, Int, Int, Int, Int?)] {
        var problem = try AttentionProblem(
          batch: batch, queries: queries, queryHeads: group, keyValueHeads: 1, dimension: dimension,
          keys: dimension == 256 && queries == 1
            ? .whole(length: 65536) : keys(65536, of: batch, pageSize: pageSize),
          scalarType: .bf16, mask: dimension == 72 ? .window(left: 1024, right: 0) : .causal)
        if group == 8 { problem.sinkType = queries == 4 ? .f16 : .f32 }
        if group == 16 { problem.ranges = .given(count: 2, isShared: true) }
        if dimension == 72 { problem.ranges = .firstKeys(4) }
        list += try configurations(problem, "decode", target)
      }
    }
    return list + (try sequences())
  }

  private static func keys(_ capacity: Int, of sequences: Int, pageSize: Int?) -> AttentionProblem.KeyStorage {
    guard let pageSize else { return .contiguous(sequences: sequences, capacity: capacity) }
    return .paged(pages: 1000, pageSize: pageSize, pagesPerSequence: capacity / pageSize)
  }

  /// What sequences of a call may have beside lengths: e4m3 caches, packed queries and keys, new keys, chunks, fixed
  /// splits, and partial results that are left.
  private static func sequences() throws -> [AttentionConfiguration] {
    var list: [AttentionConfiguration] = []
    let left = try AttentionProblem(
      batch: 8, queries: 4, queryHeads: 8, keyValueHeads: 1, dimension: 128,
      keys: keys(65536, of: 8, pageSize: nil), scalarType: .bf16, mask: .causal, keysPerSplit: 4096, leavesParts: true)
    list += try configurations(left, "decode", .sm90)
    // Kernels of whole problems that read each sequence's lengths have some registers less to spare.
    for (target, dimension, group, mask) in [
      (Target.sm90, 64, 1, AttentionMask.none), (.sm90, 96, 7, .window(left: 4096, right: 0)), (.sm90, 128, 4, .causal),
      (.sm90, 192, 1, .chunks(of: 8192)), (.sm90, 256, 8, .causal), (.sm90, 512, 1, .causal), (.sm90, 1024, 4, .none),
      (.sm80, 64, 8, .causal), (.sm80, 128, 1, .window(left: 4096, right: 0)), (.sm80, 256, 4, .causal),
      (.sm89, 128, 4, .chunks(of: 8192)),
    ] {
      let problem = try AttentionProblem(
        batch: 8, queries: 4096, packedQueries: 8192, queryHeads: 8 * group, keyValueHeads: 8, dimension: dimension,
        keys: group % 2 == 0
          ? .packed(total: 8192, longest: 4096) : .contiguous(sequences: 8, capacity: 4096),
        scalarType: group == 1 ? .f16 : .bf16, mask: mask)
      list += try configurations(problem, "forward", target, spillAllowance: dimension > 256 ? 64 : 0)
    }
    for target in [Target.sm80, .sm90] {
      for (type, dimension, batch, group, queries) in [
        (ScalarType.bf16, 128, 8, 4, 1), (.f16, 128, 40, 8, 4), (.bf16, 64, 1, 1, 1),
      ] {
        let problem = try AttentionProblem(
          batch: batch, queries: queries, packedQueries: batch * queries, queryHeads: group, keyValueHeads: 1,
          dimension: dimension, keys: keys(65536, of: batch, pageSize: nil),
          newKeys: target >= .sm89
            ? .init(queries, rotary: RotaryEmbedding(dimension: dimension, isInterleaved: group == 4, positions: 65536))
            : nil, scalarType: type, queryType: dimension == 64 ? .e4m3 : nil, cacheType: .e4m3,
          mask: group == 8 ? .chunks(of: 8192) : .causal, keysPerSplit: dimension == 64 ? 4096 : nil)
        list += try configurations(problem, "decode", target)
      }
    }
    return list
  }
}
