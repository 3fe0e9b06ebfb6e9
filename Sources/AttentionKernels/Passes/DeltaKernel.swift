package import Attention
package import PTX

/// Prepares the backward pass: what it must know of each row of queries (`RowStatistics`).
///
///     some lanes of a warp for each row, 16 bytes of O and dO each
///       delta = sum of dO * O - dLSE
///       one lane stores (-LSE log2(e), delta)
///     where blocks of keys will add up dQ in memory, its sums become zero
///
/// Reads O and dO once: nothing beside the kernels that follow.
package struct DeltaKernel: KernelSource {
  /// Threads of a block, and rows that it takes.
  static let (threads, rows) = (256, RowStatistics.rowMultiple)

  /// What the kernel is made for: the type, D_v, the group, and whether sequences have lengths.
  package let inputs: Matrix.Inputs
  package let valueDimension, groupSize: Int
  package let hasSequences, hasPackedQueries: Bool
  /// D, where sums of dQ are to become zero; nil where there are none.
  package let sumsOf: Int?

  package init(_ problem: AttentionProblem, inputs: Matrix.Inputs, clearsSums: Bool) {
    self.inputs = inputs
    sumsOf = clearsSums ? problem.dimension : nil
    (valueDimension, groupSize) = (problem.valueDimension, problem.groupSize)
    (hasSequences, hasPackedQueries) = (!problem.hasWholeKeys, problem.packedQueries != nil)
  }

  /// The entry point's name.
  package var name: String {
    "delta_\(inputs.rawValue)_v\(valueDimension)" + (groupSize > 1 ? "_group\(groupSize)" : "")
      + (hasSequences ? hasPackedQueries ? "_packed" : "_sequences" : "") + (sumsOf.map { "_sums\($0)" } ?? "")
  }

  /// A launch of it.
  static func launch(
    _ problem: AttentionProblem, inputs: Matrix.Inputs, clearsSums: Bool
  ) -> LaunchSequence.Launch {
    LaunchSequence.Launch(
      DeltaKernel(problem, inputs: inputs, clearsSums: clearsSums),
      blocks: StatisticsBlock.count(problem, rows: rows), threads: threads,
      arguments: ArgumentTemplate(parameters, for: problem))
  }

  private static let parameters = ParameterList<AttentionProblem>.declared { _ = Parameters($0) }

  private struct Parameters {
    let outputBase, outputGradientBase: Register<U64>
    /// The second 0 where there is none.
    let logSumExpBase, logSumExpGradientBase: Register<U64>
    let logSumExpBatchStride, logSumExpHeadStride: Register<U64>
    let outputStrides, outputGradientStrides: StrideParameters
    let block: StatisticsBlock.Parameters

    init(_ list: ParameterList<AttentionProblem>) {
      outputBase = list.pointer("output", .output)
      outputGradientBase = list.pointer("output_gradient", .outputGradient)
      logSumExpBase = list.pointer("log_sum_exp", .logSumExp)
      logSumExpGradientBase = list.pointer("log_sum_exp_gradient", .logSumExpGradient)
      logSumExpBatchStride = list.number("log_sum_exp_batch_stride", U64.self) { $0.logSumExpStrides.batch }
      logSumExpHeadStride = list.number("log_sum_exp_head_stride", U64.self) { $0.logSumExpStrides.head }
      outputStrides = list.strides("output") {
        TensorSteps(.output, $0.scalarType, isPacked: $0.packedQueries != nil)
      }
      outputGradientStrides = list.strides("output_gradient") {
        TensorSteps(.outputGradient, $0.scalarType, isPacked: $0.packedQueries != nil)
      }
      block = StatisticsBlock.Parameters(list, rows: DeltaKernel.rows)
    }
  }

  /// Lanes of a row, a power of two.
  private var lanes: Int { min(32, (1...).lazy.map { 1 << $0 }.first { $0 * 8 >= valueDimension } ?? 32) }

  /// The kernel.
  package func kernel() throws(KernelError) -> Kernel {
    try Kernel.build(name, threadsPerBlock: Self.threads) { k in
      let p = Parameters(ParameterList(k))
      let thread = k.special(.threadX)
      let block = StatisticsBlock(
        k, p.block, rows: Self.rows, groupSize: groupSize, hasSequences: hasSequences,
        hasPackedQueries: hasPackedQueries)
      let (rows, statistics) = (block.rows, p.block.statistics.address(ofRow: block.firstRow))
      let output = block.first(p.outputBase, p.outputStrides)
      let gradient = block.first(p.outputGradientBase, p.outputGradientStrides)
      var ofLogSumExp = k.wide(block.batch) * p.logSumExpBatchStride + k.wide(block.firstHead) * p.logSumExpHeadStride
      if let sequence = block.sequence { ofLogSumExp = ofLogSumExp + k.wide(sequence.firstQuery) * 4 }
      let (line, chunk) = (thread / lanes, thread % lanes)

      // Blocks behind a short sequence's last row have nothing to do.
      k.if(rows.firstRow .< rows.count) {
        if let sumsOf {
          let zeros = (0..<4).map { _ in k.constant(0) }
          let sums = p.block.statistics.sums(ofRow: block.firstRow + k.wide(rows.firstRow), dimension: sumsOf)
          let chunks = k.constant(Self.rows * QuerySums.rowByteCount(sumsOf) / 16, U32.self)
          k.loop(from: thread, to: chunks, by: Self.threads) { k.store(zeros, global: sums + k.wide($0 * 16)) }
        }
        k.loop(from: rows.firstRow + line, to: rows.firstRow + Self.rows, by: Self.threads / lanes) { row in
          let (offset, sum) = (k.variable(k.constant(-.infinity)), k.variable(k.constant(0)))
          k.if(row .< rows.count) {
            let (from, with) = (
              output + rows.distance(ofRow: row, p.outputStrides),
              gradient + rows.distance(ofRow: row, p.outputGradientStrides)
            )
            k.loop(from: chunk, to: k.constant(valueDimension / 8, U32.self), by: lanes) { chunk in
              let (a, b) = (
                k.load(U32.self, count: 4, global: from + k.wide(chunk * 16)),
                k.load(U32.self, count: 4, global: with + k.wide(chunk * 16))
              )
              for (a, b) in zip(a, b) {
                let ((aLow, aHigh), (bLow, bHigh)) = (inputs.unpack(k, a), inputs.unpack(k, b))
                k.set(sum, to: k.multiplyAdd(aHigh, bHigh, k.multiplyAdd(aLow, bLow, sum)))
              }
            }
            let query = rows.query(ofRow: row)
            let ofRow =
              ofLogSumExp + k.wide(query) * 4
              + (groupSize == 1 ? k.constant(0, U64.self) : k.wide(row - query * groupSize) * p.logSumExpHeadStride)
            k.set(offset, to: k.load(F32.self, global: p.logSumExpBase + ofRow) * Float(-1.4426950408889634))
            // A row that sees no key has -inf, and weighs nothing.
            k.set(offset, to: k.select(offset .!= .infinity, offset, -.infinity))
            k.if((p.logSumExpGradientBase .!= 0) & (chunk .== 0)) {
              k.set(sum, to: sum - k.load(F32.self, global: p.logSumExpGradientBase + ofRow))
            }
          }
          var delta = sum
          var distance = lanes / 2
          while distance > 0 {
            delta = delta + k.shuffle(delta, xor: distance)
            distance /= 2
          }
          k.if(chunk .== 0) {
            k.store([offset, delta], global: statistics + k.wide(row) * RowStatistics.byteCount)
          }
        }
      }
    }
  }
}
