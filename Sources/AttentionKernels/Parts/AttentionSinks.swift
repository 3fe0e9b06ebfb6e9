internal import Attention
internal import PTX

/// Attention sinks: a logit of each query head that is in the denominator of its rows alone. What a row was without its sink, its
/// output O and its log-sum-exp L, says what it is with it:
///
///     O' = O / (1 + exp(sink - L)),  L' = log(exp(L) + exp(sink))
///
/// so that they come in where a row is finished, once, whoever has computed it.
struct AttentionSinks {
  private let k: KernelBuilder
  private let base: Register<U64>
  private let type: ScalarType

  private static let (log2e, ln2): (Float, Float) = (1.4426950408889634, 0.6931471805599453)

  /// - Parameter type: nil where there are none.
  init?(_ k: KernelBuilder, _ base: Register<U64>?, type: ScalarType?) {
    guard let type, let base else { return nil }
    (self.k, self.base, self.type) = (k, base, type)
  }

  /// The parameter of a kernel that has sinks.
  static func base<Launch>(_ list: ParameterList<Launch>, if isThere: Bool) -> Register<U64>? {
    isThere ? list.pointer("sinks", .sinks) : nil
  }

  /// A head's sink.
  func sink(ofHead head: Register<U32>) -> Register<F32> {
    let place = base + k.wide(head) * type.byteCount
    if type == .f32 { return k.load(F32.self, global: place) }
    let half = k.load(B16.self, global: place)
    return (type == .f16 ? Matrix.Inputs.f16 : .bf16).unpack(k, k.word(low: half, high: half)).low
  }

  /// What a row's output is multiplied by, and its log-sum-exp, with a sink.
  func with(
    _ sink: Register<F32>, logSumExp: Register<F32>
  ) -> (factor: Register<F32>, logSumExp: Register<F32>) {
    // What a row without keys holds is zero already; beside a sink of -inf, too, of which the difference is none.
    let hasKeys = logSumExp .!= -.infinity
    let ratio = k.exp2((sink - logSumExp) * Self.log2e)
    let (larger, smaller) = (k.maximum(sink, logSumExp), k.minimum(sink, logSumExp))
    let rest = k.log2(k.exp2((smaller - larger) * Self.log2e) + 1)
    let sum = k.select(larger .!= -.infinity, k.multiplyAdd(rest, k.constant(Self.ln2), larger), -.infinity)
    // Of a NaN, `max` gives the other: a row that is lost stays so.
    let isKept = (logSumExp .== -.infinity) | (ratio .< .infinity) | (ratio .== .infinity)
    return (k.select(hasKeys, k.reciprocal(ratio + 1), 0), k.select(isKept, sum, ratio))
  }

  /// Finishes rows of output that are divided by their sums: the log-sum-exps with their sinks.
  ///
  /// - Parameter head: of the lane's row i.
  func finish(
    _ output: Accumulators, _ logSumExps: [Register<F32>], head: (_ row: Int) -> Register<U32>
  ) -> [Register<F32>] {
    k.comment("sinks: in the denominator, without a value")
    return logSumExps.enumerated().map { row, own in
      let (factor, logSumExp) = with(sink(ofHead: head(row)), logSumExp: own)
      for value in output.ofRow(row) { k.set(value, to: value * factor) }
      return logSumExp
    }
  }
}
