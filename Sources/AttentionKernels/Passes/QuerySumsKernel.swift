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

  /// A launch of it.
  static func launch(_ problem: AttentionProblem, inputs: Matrix.Inputs, on gpu: GPULimits) -> LaunchSequence.Launch {
    LaunchSequence.Launch(
      QuerySumsKernel(
        inputs: inputs, dimension: problem.dimension, groupSize: problem.groupSize,
        hasSequences: !problem.hasWholeKeys, hasPackedQueries: problem.packedQueries != nil,
        areVectors: QuerySums.areVectors(on: gpu)),
      blocks: StatisticsBlock.count(problem, rows: rows), threads: threads,
      gradients: [.queryGradient], arguments: ArgumentTemplate(parameters, for: problem))
  }

  private static let parameters = ParameterList<AttentionProblem>.declared { _ = Parameters($0) }

  private struct Parameters {
    let base: Register<U64>
    let strides: StrideParameters
    let block: StatisticsBlock.Parameters
    let scale: Register<F32>

    init(_ list: ParameterList<AttentionProblem>) {
      base = list.pointer("query_gradient", .queryGradient)
      strides = list.strides("query_gradient") {
        TensorSteps(.queryGradient, $0.scalarType, isPacked: $0.packedQueries != nil)
      }
      block = StatisticsBlock.Parameters(list, rows: QuerySumsKernel.rows)
      scale = list.float("gradient_scale") { GradientScales($0.scoreUnits).gradient }
    }
  }

  /// The kernel.
  package func kernel() throws(KernelError) -> Kernel {
    try Kernel.build(name, threadsPerBlock: Self.threads) { k in
      let p = Parameters(ParameterList(k))
      let (thread, lane) = (k.special(.threadX), k.special(.lane))
      let block = StatisticsBlock(
        k, p.block, rows: Self.rows, groupSize: groupSize, hasSequences: hasSequences,
        hasPackedQueries: hasPackedQueries)
      let firstOfWarp = (thread / 32) * 16
      let first = block.rows.firstRow + firstOfWarp
      // A multiple of 16: nothing of a tile is behind the last row of the workspace.
      k.if(first .< block.rows.count) {
        let sums = Accumulators(k, rowTiles: 1, columns: dimension, named: "dq")
        QuerySums(k: k, dimension: dimension, areVectors: areVectors, lane: lane).load(
          sums, from: p.block.statistics.sums(ofRow: block.firstRow + k.wide(first), dimension: dimension))
        sums.scale(by: p.scale)
        let epilogue = Epilogue(
          k: k, inputs: inputs, tile: SharedTile(rows: 16, columns: dimension), place: nil, firstRow: firstOfWarp,
          lane: lane, rows: block.rows)
        epilogue.store(sums, to: block.first(p.base, p.strides), p.strides, .byShuffles)
      }
    }
  }
}
