package import Attention
package import PTX

/// Puts results over parts of the keys together that somebody else computed apart.
///
///     a thread takes 4 columns of a row, part by part:  O = sum of w_i O_i,  w_i = exp(LSE_i - LSE)
///     a head's sink, where there is one, is a part of its own, whose O is zero
package struct PartialResultsKernel: KernelSource {
  /// Threads of a block.
  package static let threads = 128
  /// The type of the result.
  package let output: ScalarType
  /// The type of sinks; nil where there are none.
  package let sinkType: ScalarType?

  /// The kernel for types of results and sinks.
  package init(output: ScalarType, sinkType: ScalarType? = nil) { (self.output, self.sinkType) = (output, sinkType) }

  /// The entry point's name.
  package var name: String { "combine_partials_\(output)" + (sinkType.map { "_sinks_\($0)" } ?? "") }

  /// What a launch passes; strides in elements, and all of it known where it is made.
  package struct Launch: Sendable {
    let problem: PartialResultsProblem
    let partials, output: DeviceTensorView
    let partStride: Int
    let logSumExps, logSumExp, sinks: UInt64

    /// - Parameters:
    ///   - partials: the first part.
    ///   - partStride: elements from a part to the next.
    ///   - logSumExp: 0 where nobody wants it.
    ///   - sinks: 0 where there are none.
    package init(
      _ problem: PartialResultsProblem, partials: DeviceTensorView, partStride: Int, logSumExps: UInt64,
      output: DeviceTensorView, logSumExp: UInt64, sinks: UInt64 = 0
    ) {
      self.sinks = sinks
      (self.problem, self.partials, self.output, self.partStride) = (problem, partials, output, partStride)
      (self.logSumExps, self.logSumExp) = (logSumExps, logSumExp)
    }

    /// The arguments.
    package var arguments: ArgumentTemplate {
      ArgumentTemplate(
        problem.sinkType == nil ? PartialResultsKernel.parameters : PartialResultsKernel.withSinks, for: self)
    }
    /// Blocks of the grid.
    package var blocks: Int { (problem.rows * (problem.dimension / 4) + threads - 1) / threads }
  }

  private static let parameters = ParameterList<Launch>.declared { _ = Parameters($0, hasSinks: false) }
  private static let withSinks = ParameterList<Launch>.declared { _ = Parameters($0, hasSinks: true) }

  private struct Parameters {
    let partials, logSumExps, outputBase, logSumExpBase, partStride: Register<U64>
    let strides, outputStrides: StrideParameters
    let parts, rows, heads, queries, chunks: Register<U32>
    let sinkBase: Register<U64>?

    init(_ list: ParameterList<Launch>, hasSinks: Bool) {
      func pointer(_ name: String, _ address: @escaping @Sendable (Launch) -> UInt64) -> Register<U64> {
        list.pointer(name) { .number(Int(bitPattern: UInt(address($0)))) }
      }
      partials = pointer("partials") { $0.partials.address }
      logSumExps = pointer("log_sum_exps") { $0.logSumExps }
      outputBase = pointer("output") { $0.output.address }
      logSumExpBase = pointer("log_sum_exp") { $0.logSumExp }
      partStride = list.number("part_stride", U64.self) { $0.partStride * 4 }
      strides = list.strides("partial") { TensorSteps($0.partials.steps, .f32) }
      outputStrides = list.strides("output") { TensorSteps($0.output.steps, $0.problem.outputType) }
      parts = list.number("parts", U32.self) { $0.problem.parts }
      rows = list.number("rows", U32.self) { $0.problem.rows }
      heads = list.number("heads", U32.self) { $0.problem.heads }
      queries = list.number("queries", U32.self) { $0.problem.queries }
      chunks = list.number("chunks", U32.self) { $0.problem.dimension / 4 }
      sinkBase = hasSinks ? pointer("sinks") { $0.sinks } : nil
    }
  }

  /// The kernel.
  package func kernel() throws(KernelError) -> Kernel {
    try Kernel.build(name, threadsPerBlock: Self.threads) { k in
      let p = Parameters(ParameterList(k), hasSinks: sinkType != nil)
      let (strides, outputStrides, rows, chunks) = (p.strides, p.outputStrides, p.rows, p.chunks)
      let item = k.special(.blockX) * Self.threads + k.special(.threadX)
      let row = item / chunks
      let chunk = item - row * chunks
      k.if(row .< rows) {
        // [B, H, s]
        let line = row / p.queries
        let (query, batch) = (row - line * p.queries, line / p.heads)
        let head = line - batch * p.heads
        func place(_ base: Register<U64>, _ strides: StrideParameters) -> Register<U64> {
          base + k.wide(batch) * strides.batch + k.wide(head) * strides.head + k.wide(query) * strides.row
        }
        let source = place(p.partials, strides) + k.wide(chunk * 16)
        let sum = PartialSum(k)
        k.loop(from: k.constant(0, U32.self), to: p.parts, by: 1) { part in
          let given = k.load(F32.self, global: p.logSumExps + (k.multiplyWide(part, rows) + k.wide(row)) * 4)
          // FlashAttention 2 marks parts without keys by +inf. Such a part may hold anything.
          let logSumExp = k.select(given .!= .infinity, given, -.infinity)
          let isEmpty = logSumExp .== -.infinity
          let values = k.load(F32.self, count: 4, global: source + k.wide(part) * p.partStride)
            .map { k.select(isEmpty, k.constant(0), $0) }
          sum.add([(maximum: logSumExp, sum: k.constant(1), values: values)])
        }
        if let sinks = AttentionSinks(k, p.sinkBase, type: sinkType) {
          let nothing = (0..<4).map { _ in k.constant(0) }
          sum.add([(maximum: sinks.sink(ofHead: head), sum: k.constant(1), values: nothing)])
        }
        let (results, target) = (sum.normalized, place(p.outputBase, outputStrides))
        switch output {
        case .f32: k.store(results, global: target + k.wide(chunk * 16))
        case .f16, .bf16, .e4m3:
          let inputs: Matrix.Inputs = output == .f16 ? .f16 : .bf16
          k.store(
            [0, 2].map { inputs.pack(k, results[$0], results[$0 + 1]) }, global: target + k.wide(chunk * 8))
        }
        k.if((p.logSumExpBase .!= 0) & (chunk .== 0)) {
          k.store(sum.logSumExp(ln2: Float(0.6931471805599453)), global: p.logSumExpBase + k.wide(row) * 4)
        }
      }
    }
  }
}
