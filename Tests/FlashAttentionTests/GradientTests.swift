import AttentionVerification
import FlashAttention
import Testing

/// Gradients by the public functions and plans, on the CPU.
@Suite struct GradientTests {
  private func tensor(
    _ seed: UInt64, heads: Int, length: Int, dimension: Int, type: ScalarType = .f32, layout: TensorLayout = .bnhd
  ) throws -> Tensor {
    var random = RandomSource(seed: seed)
    return try Tensor(
      shape: TensorShape(batch: 2, heads: heads, length: length, dimension: dimension), scalarType: type,
      layout: layout
    ) { _, _, _, _ in random.normal() }
  }

  /// A step against the gradient makes the loss smaller by as much as it says.
  @Test func valueInGradientOut() throws {
    let (q, k) = (
      try tensor(1, heads: 4, length: 20, dimension: 16), try tensor(2, heads: 2, length: 30, dimension: 16)
    )
    let (v, given) = (
      try tensor(3, heads: 2, length: 30, dimension: 24), try tensor(4, heads: 4, length: 20, dimension: 24)
    )
    func loss(_ q: Tensor, _ k: Tensor, _ v: Tensor) throws -> (Double, AttentionResult) {
      let result = try attentionWithLogSumExp(queries: q, keys: k, values: v, mask: .causal)
      var sum = 0.0
      for b in 0..<2 {
        for h in 0..<4 {
          for n in 0..<20 { for d in 0..<24 { sum += Double(given[b, h, n, d] * result.output[b, h, n, d]) } }
        }
      }
      return (sum, result)
    }
    let (before, result) = try loss(q, k, v)
    let gradients = try attentionGradients(
      of: result, queries: q, keys: k, values: v, outputGradient: given, mask: .causal)
    #expect(gradients.queries.shape == q.shape && gradients.keys.shape == k.shape)
    #expect(gradients.values.shape == v.shape && gradients.values.layout == .bnhd)
    var length = 0.0
    func stepped(_ tensor: Tensor, _ gradient: Tensor) throws -> Tensor {
      try Tensor(shape: tensor.shape, scalarType: .f32, layout: .bnhd) { b, h, n, d in
        let slope = gradient[b, h, n, d]
        length += Double(slope * slope)
        return tensor[b, h, n, d] - 1e-3 * slope
      }
    }
    let (after, _) = try loss(
      try stepped(q, gradients.queries), try stepped(k, gradients.keys), try stepped(v, gradients.values))
    let expected = 1e-3 * length
    #expect(((before - after) - expected).magnitude < 0.02 * expected, "\(before - after), by the gradient \(expected)")
  }

  /// The random problems of `verify --backward`, packed sequences among them.
  @Test(arguments: 0..<8) func randomProblemsPass(part: Int) throws {
    for number in part * 12..<part * 12 + 12 {
      let test = GradientCase(seed: 1, number: number)
      let outcome = try test.run(on: .cpu)
      #expect(outcome.failure == nil, "\(test.problem): \(outcome.failure ?? "")\n\(test.command(device: .cpu))")
    }
  }

  @Test func whatHasNoGradientsSaysSo() throws {
    func message(_ problem: AttentionProblem) -> String {
      do throws(AttentionError) {
        _ = try GradientPlan(problem, device: .cpu)
        return ""
      } catch { return "\(error)" }
    }
    let advice =
      "no gradients; train with whole keys [B, H, N, D], or packed ones with a list of starts, of the queries' type."
    let cache = try AttentionProblem(
      batch: 1, queries: 1, queryHeads: 2, keyValueHeads: 2, dimension: 64,
      keys: .contiguous(sequences: 1, capacity: 8), scalarType: .bf16, mask: .none)
    #expect(message(cache) == "Caches of keys and values have \(advice)")
    let bytes = try AttentionProblem(
      batch: 1, queries: 1, packedQueries: 1, queryHeads: 2, keyValueHeads: 2, dimension: 64,
      keys: .packed(total: 8, longest: 8), scalarType: .bf16, cacheType: .e4m3, mask: .none)
    #expect(message(bytes) == "e4m3 numbers have \(advice)")
    let whole = try AttentionProblem(
      batch: 1, queries: 1, queryHeads: 2, keyValueHeads: 2, dimension: 64, keys: .whole(length: 8), scalarType: .bf16,
      mask: .none)
    let plan = try AttentionPlan(whole, device: .cpu).backward()
    #expect(plan.gpu == nil && plan.workspaceByteCount == 0)
    #expect("\(plan)".contains("five products ") && "\(plan)".contains("The CPU was asked for."))
  }

  @Test func gradientsMustNotShareMemory() throws {
    let (q, k) = (
      try tensor(1, heads: 2, length: 8, dimension: 16), try tensor(2, heads: 2, length: 8, dimension: 16)
    )
    let result = try attentionWithLogSumExp(queries: q, keys: k, values: k)
    let problem = try AttentionProblem(queries: q, keys: k, values: k)
    let made = CaseTensor(problem.queryShape, .f32, CaseTensor.Placement(), surroundings: 0)
    var logSumExp = result.logSumExp
    let plan = try GradientPlan(problem, device: .cpu)
    #expect(
      throws: AttentionError.sharedMemory(
        written: "the gradient of the keys", read: "the gradient of the queries")
    ) {
      try logSumExp.withUnsafeMutableBufferPointer { logSumExp in
        try q.withView { q in
          try result.output.withView { output in
            try plan.run(
              GradientTensors<HostMemory>(
                queries: q, keys: q, values: q, output: output, logSumExp: logSumExp, outputGradient: output,
                queryGradient: made.view, keyGradient: made.view, valueGradient: nil))
          }
        }
      }
    }
  }
}
