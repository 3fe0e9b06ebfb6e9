internal import Attention
package import PTX

/// Rounds dQ, where blocks of keys have added it up in memory (`QuerySums`), multiplied by the scale.
///
///     a warp for each 16 packed rows: sums into registers, times scale, rounded, out by shuffles, 16 bytes a lane
package struct QuerySumsKernel: KernelSource {
  /// Threads of a block, and rows that it takes.
  static let (threads, rows) = (256, 128)

  /// What the kernel is made for: the type, D, the group, whether sequences have lengths, and the order of the sums.
  package let inputs: Matrix.Inputs
  package let dimension, groupSize: Int
  package let hasSequences, hasPackedQueries, areVectors: Bool

  /// The entry point's name.
  package var name: String {
    "query_sums_\(inputs.rawValue)_d\(dimension)" + (groupSize > 1 ? "_group\(groupSize)" : "")
      + (hasSequences ? hasPackedQueries ? "_packed" : "_sequences" : "") + (areVectors ? "_vectors" : "")
  }

  /// Blocks of one batch and key/value head.
  static func blocksPerHead(_ problem: AttentionProblem) -> Int {
    (problem.queries * problem.groupSize + rows - 1) / rows
  }

  /// A launch of it.
  static func launch(_ problem: AttentionProblem, inputs: Matrix.Inputs, on gpu: GPULimits) -> LaunchSequence.Launch {
    LaunchSequence.Launch(
      QuerySumsKernel(
        inputs: inputs, dimension: problem.dimension, groupSize: problem.groupSize,
        hasSequences: !problem.hasWholeKeys, hasPackedQueries: problem.packedQueries != nil,
        areVectors: QuerySums.areVectors(on: gpu)),
      blocks: blocksPerHead(problem) * problem.keyValueHeads * problem.batch, threads: threads,
      gradients: [.queryGradient], arguments: ArgumentTemplate(parameters, for: problem))
  }

  private static let parameters = ParameterList<AttentionProblem>.declared { _ = Parameters($0) }

  private struct Parameters {
    let base: Register<U64>
    let strides: StrideParameters
    let statistics: StatisticsParameters
    let queries, keyValueHeads, blocksPerHead: Register<U32>
    let keys: Register<S32>
    let lists: ForwardSequence.Lists
    let scale: Register<F32>

    init(_ list: ParameterList<AttentionProblem>) {
      base = list.pointer("query_gradient", .queryGradient)
      strides = list.strides("query_gradient") {
        TensorSteps(.queryGradient, $0.scalarType, isPacked: $0.packedQueries != nil)
      }
      statistics = StatisticsParameters(list) { $0 }
      queries = list.number("query_count", U32.self) { $0.queries }
      keyValueHeads = list.number("key_value_heads", U32.self) { $0.keyValueHeads }
      blocksPerHead = list.number("blocks_per_head", U32.self) { QuerySumsKernel.blocksPerHead($0) }
      keys = list.number("key_count", S32.self) { $0.keys }
      lists = ForwardSequence.Lists(list) { $0 }
      scale = list.float("gradient_scale") { GradientScales($0.scoreUnits).gradient }
    }
  }

  /// The kernel.
  package func kernel() throws(KernelError) -> Kernel {
    try Kernel.build(name, threadsPerBlock: Self.threads) { k in
      let p = Parameters(ParameterList(k))
      let (block, thread, lane) = (k.special(.blockX), k.special(.threadX), k.special(.lane))
      let unit = block / p.blocksPerHead
      let batch = unit / p.keyValueHeads
      let keyValueHead = unit - batch * p.keyValueHeads
      let sequence =
        hasSequences ? ForwardSequence(k, p.lists, queries: p.queries, keys: p.keys, batch: batch) : nil
      let rows = PackedQueries(
        k, groupSize: groupSize, firstRow: (block - unit * p.blocksPerHead) * Self.rows,
        queries: sequence?.queries ?? p.queries)
      let firstRow = p.statistics.firstRow(
        k, batch: batch, keyValueHead: keyValueHead, groupSize: groupSize, isPacked: hasPackedQueries,
        firstQuery: sequence?.firstQuery)
      let firstOfWarp = (thread / 32) * 16
      let first = rows.firstRow + firstOfWarp
      // A multiple of 16: nothing of a tile is behind the last row of the workspace.
      k.if(first .< rows.count) {
        let sums = Accumulators(k, rowTiles: 1, columns: dimension, named: "dq")
        QuerySums(k: k, dimension: dimension, areVectors: areVectors, lane: lane).load(
          sums, from: p.statistics.sums(ofRow: firstRow + k.wide(first), dimension: dimension))
        sums.scale(by: p.scale)
        let head = groupSize == 1 ? keyValueHead : keyValueHead * groupSize
        let own = p.base + k.wide(batch) * p.strides.batch + k.wide(head) * p.strides.head
        let epilogue = Epilogue(
          k: k, inputs: inputs, tile: SharedTile(rows: 16, columns: dimension), place: nil, firstRow: firstOfWarp,
          lane: lane, rows: rows)
        epilogue.store(
          sums, to: sequence.map { own + k.wide($0.firstQuery) * p.strides.row } ?? own, p.strides, .byShuffles)
      }
    }
  }
}
