import Attention
import AttentionKernels
import PTX

/// A family of one folder and one line: a warp for each row, a key at a time. Slow, honest and right, to show what a
/// family needs.
///
///     for each row: m = -inf, l = 0, O = 0
///       for each key that the row sees:
///         s = q k, summed over the lanes;  m' = max(m, s)
///         O, l *= exp2(m - m');  p = exp2(s - m');  O += p v;  l += p
///     O / l
enum ToyFamily: KernelFamily {
  static let name = "toy"
  static let architecture = Architecture.from(80)

  struct Tiling: KernelTiling {
    /// Rows, and warps, of a block.
    var warps = 4
    static let changeSyntax = "warps=1|2|4"
    var changes: String { "warps=\(warps)" }
    var description: String { "\(warps) rows, a warp each" }
    mutating func change(_ name: String, to value: String) -> Bool {
      guard name == "warps", let count = Int(value), [1, 2, 4].contains(count) else { return false }
      warps = count
      return true
    }
  }

  static func limitation(for problem: AttentionProblem) -> String? {
    if !problem.hasWholeKeys { return "lengths" }
    if problem.softcap != nil { return "softcap" }
    return problem.mask.reach.left == nil && problem.mask.chunk == nil ? nil : "windows and chunks"
  }

  static func check(_ problem: AttentionProblem, on gpu: GPULimits) throws(AttentionError) {
    if problem.scalarType != .bf16 { throw .typeOnDevice(problem.scalarType, device: "GPU", possible: "bf16") }
    if problem.dimension != 64 || problem.valueDimension != 64 {
      throw .dimension(tensor: "queries and keys", value: problem.dimension, path: "toy path", multiple: 64, limit: 64)
    }
  }

  static func tilings(for problem: AttentionProblem, on gpu: GPULimits) -> [Tiling] {
    [1, 2, 4].map { Tiling(warps: $0) }
  }

  static func obstacle(to tiling: Tiling, for problem: AttentionProblem, on gpu: GPULimits) -> String? {
    tiling.warps == 1 ? "lets most of a multiprocessor sleep" : nil
  }

  static func cost(of tiling: Tiling, for problem: AttentionProblem, on gpu: GPULimits) -> KernelCost {
    let rows = Double(problem.batch * problem.queryHeads * problem.queries)
    let waves = (rows / Double(tiling.warps * gpu.multiprocessors)).rounded(.up)
    // Five shuffles and two exponentials, one after the other.
    let keys = waves * Double(problem.keys) * 300 / gpu.clock
    return KernelCost(["launch": 5e-6, "keys": keys], seconds: 5e-6 + keys)
  }

  static func launches(
    _ tiling: Tiling, for problem: AttentionProblem, on gpu: GPULimits
  ) throws(AttentionError) -> LaunchSequence {
    let rows = problem.batch * problem.queryHeads * problem.queries
    return LaunchSequence([
      LaunchSequence.Launch(
        ToyKernel(warps: tiling.warps, isCausal: problem.mask.reach.right != nil),
        blocks: (rows + tiling.warps - 1) / tiling.warps, threads: tiling.warps * 32,
        arguments: ArgumentTemplate(ToyKernel.Parameters.all, for: problem))
    ])
  }
}

/// The kernel of the family.
struct ToyKernel: KernelSource {
  let warps: Int
  let isCausal: Bool

  var name: String { "toy_\(warps)\(isCausal ? "_causal" : "")" }

  struct Parameters {
    let queryBase, keyBase, valueBase, outputBase, logSumExpBase: Register<U64>
    let queryStrides, keyStrides, valueStrides, outputStrides: StrideParameters
    let heads, group, queries, rows: Register<U32>
    let keys, diagonal: Register<S32>
    let scale: Register<F32>

    static let all = ParameterList<AttentionProblem>.declared { _ = Parameters($0) }

    init(_ list: ParameterList<AttentionProblem>) {
      (queryBase, keyBase) = (list.pointer("queries", .queries), list.pointer("keys", .keys))
      (valueBase, outputBase) = (list.pointer("values", .values), list.pointer("output", .output))
      logSumExpBase = list.pointer("log_sum_exp", .logSumExp)
      queryStrides = list.strides("query") { TensorSteps(.queries, $0.queryType) }
      keyStrides = list.strides("key") { TensorSteps(.keys, $0.cacheType) }
      valueStrides = list.strides("value") { TensorSteps(.values, $0.cacheType) }
      outputStrides = list.strides("output") { TensorSteps(.output, $0.outputType) }
      heads = list.number("heads", U32.self) { $0.queryHeads }
      group = list.number("group", U32.self) { $0.groupSize }
      queries = list.number("query_count", U32.self) { $0.queries }
      rows = list.number("row_count", U32.self) { $0.batch * $0.queryHeads * $0.queries }
      keys = list.number("key_count", S32.self) { $0.keys }
      diagonal = list.number("diagonal", S32.self) { $0.keys - $0.queries + ($0.mask.reach.right ?? 0) }
      scale = list.float("scale") { Float($0.scale * 1.4426950408889634) }
    }
  }

  func kernel() throws(KernelError) -> Kernel {
    try Kernel.build(name, threadsPerBlock: warps * 32) { k in
      let p = Parameters(ParameterList(k))
      let (thread, lane) = (k.special(.threadX), k.special(.lane))
      let row = k.special(.blockX) * warps + thread / 32
      k.if(row .< p.rows) {
        let line = row / p.queries
        let (query, batch) = (row - line * p.queries, line / p.heads)
        let head = line - batch * p.heads
        /// Two elements of a row, of each lane its own.
        func place(_ base: Register<U64>, _ s: StrideParameters, _ head: Register<U32>) -> Register<U64> {
          base + k.wide(batch) * s.batch + k.wide(head) * s.head + k.wide(lane * 4)
        }
        func pair(_ address: Register<U64>) -> (Register<F32>, Register<F32>) {
          let both = k.unpack(k.load(U32.self, global: address).reinterpreted(as: BF16x2.self))
          return (both.low, both.high)
        }
        let q = pair(place(p.queryBase, p.queryStrides, head) + k.wide(query) * p.queryStrides.row)
        let keys = place(p.keyBase, p.keyStrides, head / p.group)
        let values = place(p.valueBase, p.valueStrides, head / p.group)
        let zero = k.constant(0, S32.self)
        let seen = k.minimum(query.reinterpreted(as: S32.self) + p.diagonal + 1, p.keys)
        let end = isCausal ? k.maximum(seen, zero) : p.keys
        let (maximum, sum) = (k.variable(k.constant(-.infinity)), k.variable(k.constant(0)))
        let output = [k.variable(k.constant(0)), k.variable(k.constant(0))]
        k.loop(from: zero, to: end, by: 1) { key in
          let number = k.wide(key.reinterpreted(as: U32.self))
          let own = pair(keys + number * p.keyStrides.row)
          let product = [1, 2, 4, 8, 16].reduce(q.0 * own.0 + q.1 * own.1) { $0 + k.shuffle($0, xor: $1) }
          let score = product * p.scale
          let largest = k.maximum(maximum, score)
          let (kept, weight) = (k.exp2(maximum - largest), k.exp2(score - largest))
          k.set(maximum, to: largest)
          k.set(sum, to: sum * kept + weight)
          let value = pair(values + number * p.valueStrides.row)
          for (o, v) in zip(output, [value.0, value.1]) { k.set(o, to: o * kept + weight * v) }
        }
        let factor = k.select(sum .> 0, k.reciprocal(sum), k.constant(0))
        let target = place(p.outputBase, p.outputStrides, head) + k.wide(query) * p.outputStrides.row
        k.store(
          k.pack(output[0] * factor, output[1] * factor, as: BF16x2.self).reinterpreted(as: U32.self), global: target)
        k.if((p.logSumExpBase .!= 0) & (lane .== 0)) {
          let logarithm = (maximum + k.log2(sum)) * Float(0.6931471805599453)
          k.store(
            k.select(sum .> 0, logarithm, k.constant(-.infinity)), global: p.logSumExpBase + k.wide(row) * 4)
        }
      }
    }
  }
}
