public import Attention
public import PTX

/// Puts results over parts of the keys together that somebody else computed apart.
///
///     a thread takes 4 columns of a row, part by part:  O = sum of w_i O_i,  w_i = exp(LSE_i - LSE)
public struct PartialResultsKernel: Hashable, Sendable {
  /// Threads of a block.
  public static let threads = 128
  /// The type of the result.
  public let output: ScalarType

  /// The kernel for a type of results.
  public init(output: ScalarType) { self.output = output }

  /// The entry point's name.
  public var name: String { "combine_partials_\(output)" }

  /// Blocks for a problem.
  public static func blocks(_ problem: PartialResultsProblem) -> Int {
    (problem.rows * (problem.dimension / 4) + threads - 1) / threads
  }

  /// The arguments for tensors at addresses of a GPU; strides in elements.
  public static func arguments(
    _ problem: PartialResultsProblem, partials: ForwardLaunch.Place, partStride: Int, logSumExps: UInt64,
    output: ForwardLaunch.Place, logSumExp: UInt64
  ) -> [Kernel.Argument] {
    var list: [Kernel.Argument] = [partials.address, logSumExps, output.address, logSumExp].map { .pointer($0) }
    list.append(.u64(UInt64(bitPattern: Int64(partStride * 4))))
    partials.strides.append(to: &list, .f32, isPacked: false)
    output.strides.append(to: &list, problem.outputType, isPacked: false)
    list += [problem.parts, problem.rows, problem.heads, problem.queries, problem.dimension / 4].map {
      .u32(UInt32($0))
    }
    return list
  }

  /// The kernel.
  public func kernel() throws(KernelError) -> Kernel {
    try Kernel.build(name, threadsPerBlock: Self.threads) { k in
      let (partials, logSumExps) = (k.pointer("partials"), k.pointer("log_sum_exps"))
      let (outputBase, logSumExpBase) = (k.pointer("output"), k.pointer("log_sum_exp"))
      let partStride = k.parameter("part_stride", U64.self)
      let (strides, outputStrides) = (StrideParameters(k, "partial"), StrideParameters(k, "output"))
      let (parts, rows) = (k.parameter("parts", U32.self), k.parameter("rows", U32.self))
      let (heads, queries) = (k.parameter("heads", U32.self), k.parameter("queries", U32.self))
      let chunks = k.parameter("chunks", U32.self)
      let item = k.special(.blockX) * Self.threads + k.special(.threadX)
      let row = item / chunks
      let chunk = item - row * chunks
      k.if(row .< rows) {
        // [B, H, s]
        let line = row / queries
        let (query, batch) = (row - line * queries, line / heads)
        let head = line - batch * heads
        func place(_ base: Register<U64>, _ strides: StrideParameters) -> Register<U64> {
          base + k.wide(batch) * strides.batch + k.wide(head) * strides.head + k.wide(query) * strides.row
        }
        let source = place(partials, strides) + k.wide(chunk * 16)
        let sum = PartialSum(k)
        k.loop(from: k.constant(0, U32.self), to: parts, by: 1) { part in
          let given = k.load(F32.self, global: logSumExps + (k.multiplyWide(part, rows) + k.wide(row)) * 4)
          // FlashAttention 2 marks parts without keys by +inf. Such a part may hold anything.
          let logSumExp = k.select(given .!= .infinity, given, -.infinity)
          let isEmpty = logSumExp .== -.infinity
          let values = k.load(F32.self, count: 4, global: source + k.wide(part) * partStride)
            .map { k.select(isEmpty, k.constant(0), $0) }
          sum.add([(maximum: logSumExp, sum: k.constant(1), values: values)])
        }
        let (results, target) = (sum.normalized, place(outputBase, outputStrides))
        switch output {
        case .f32: k.store(results, global: target + k.wide(chunk * 16))
        case .f16, .bf16, .e4m3:
          let inputs: Matrix.Inputs = output == .f16 ? .f16 : .bf16
          k.store(
            [0, 2].map { inputs.pack(k, results[$0], results[$0 + 1]) }, global: target + k.wide(chunk * 8))
        }
        k.if((logSumExpBase .!= 0) & (chunk .== 0)) {
          k.store(sum.logSumExp(ln2: Float(0.6931471805599453)), global: logSumExpBase + k.wide(row) * 4)
        }
      }
    }
  }
}
