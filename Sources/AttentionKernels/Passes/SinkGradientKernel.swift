package import Attention
package import PTX

/// The gradients of attention sinks, from what the backward pass knows of each row (`RowStatistics`): the sink's weight in a row is
/// exp(sink - LSE), its value is none, and so
///
///     dsink = - sum over the rows of a head of exp(sink - LSE) delta
///
///     a block for each query head; each thread every 256th query, sequence after sequence; their sums in one order
package struct SinkGradientKernel: KernelSource {
  /// Threads of a block.
  static let threads = 256

  /// What the kernel is made for: the type of the sinks, the group, and whether sequences have lengths.
  package let sinkType: ScalarType
  package let groupSize: Int
  package let hasSequences, hasPackedQueries: Bool

  /// The entry point's name.
  package var name: String {
    "sink_gradient_\(sinkType)" + (groupSize > 1 ? "_group\(groupSize)" : "")
      + (hasSequences ? hasPackedQueries ? "_packed" : "_sequences" : "")
  }

  /// A launch of it; nil where there are no sinks.
  static func launch(_ problem: AttentionProblem) -> LaunchSequence.Launch? {
    guard let sinkType = problem.sinkType else { return nil }
    return LaunchSequence.Launch(
      SinkGradientKernel(
        sinkType: sinkType, groupSize: problem.groupSize, hasSequences: !problem.hasWholeKeys,
        hasPackedQueries: problem.packedQueries != nil),
      blocks: problem.queryHeads, threads: threads, gradients: [.sinkGradient],
      arguments: ArgumentTemplate(parameters, for: problem))
  }

  private static let parameters = ParameterList<AttentionProblem>.declared { _ = Parameters($0) }

  private struct Parameters {
    let base, sinkBase: Register<U64>
    let statistics: StatisticsParameters
    let batch, queries: Register<U32>
    let keys: Register<S32>
    let lists: ForwardSequence.Lists

    init(_ list: ParameterList<AttentionProblem>) {
      (base, sinkBase) = (list.pointer("sink_gradient", .sinkGradient), list.pointer("sinks", .sinks))
      statistics = StatisticsParameters(list) { $0 }
      batch = list.number("batch", U32.self) { $0.batch }
      queries = list.number("query_count", U32.self) { $0.queries }
      keys = list.number("key_count", S32.self) { $0.keys }
      lists = ForwardSequence.Lists(list) { $0 }
    }
  }

  /// The kernel.
  package func kernel() throws(KernelError) -> Kernel {
    try Kernel.build(name, threadsPerBlock: Self.threads) { k in
      let p = Parameters(ParameterList(k))
      let (head, thread, lane) = (k.special(.blockX), k.special(.threadX), k.special(.lane))
      let keyValueHead = groupSize == 1 ? head : head / groupSize
      let sink = AttentionSinks(k, p.sinkBase, type: sinkType)!.sink(ofHead: head) * Float(1.4426950408889634)
      let sum = k.variable(k.constant(0))
      k.loop(from: k.constant(0, U32.self), to: p.batch) { batch in
        let sequence =
          hasSequences ? ForwardSequence(k, p.lists, queries: p.queries, keys: p.keys, batch: batch) : nil
        let first = p.statistics.firstRow(
          k, batch: batch, keyValueHead: keyValueHead, groupSize: groupSize, isPacked: hasPackedQueries,
          firstQuery: sequence?.firstQuery)
        let rows = p.statistics.address(ofRow: first)
        k.loop(from: thread, to: sequence?.queries ?? p.queries, by: Self.threads) { query in
          let row = groupSize == 1 ? query : query * groupSize + head % groupSize
          let known = k.load(F32.self, count: 2, global: rows + k.wide(row) * RowStatistics.byteCount)
          // A row that sees neither key nor sink weighs nothing.
          let weight = k.select(known[0] .!= -.infinity, k.exp2(sink + known[0]), 0)
          k.set(sum, to: k.multiplyAdd(-weight, known[1], sum))
        }
      }
      var total: Register<F32> = sum
      for distance in [16, 8, 4, 2, 1] { total = total + k.shuffle(total, xor: distance) }
      let ofWarps = k.shared("sums", byteCount: Self.threads / 32 * 4)
      k.if(lane .== 0) { k.store(total, shared: ofWarps + thread / 32 * 4) }
      k.barrier()
      k.if(thread .== 0) {
        let all = (0..<Self.threads / 32).map { k.load(F32.self, shared: ofWarps, offset: $0 * 4) }
        k.store(all.dropFirst().reduce(all[0]) { $0 + $1 }, global: p.base + k.wide(head) * 4)
      }
    }
  }
}
