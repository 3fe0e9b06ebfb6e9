import FlashAttention
import Foundation
import Testing

/// The public functions, called as a reader of the README calls them.
@Suite struct AttentionFunctionTests {
  private func tensor(
    heads: Int = 2, length: Int = 30, dimension: Int = 16, type: ScalarType = .f32, layout: TensorLayout = .bhnd
  ) -> Tensor {
    try! Tensor(
      shape: TensorShape(batch: 1, heads: heads, length: length, dimension: dimension), scalarType: type,
      layout: layout
    ) { _, h, n, d in Float((h * 7 + n * 13 + d * 5) % 11) / 5 - 1 }
  }

  @Test func valueInValueOut() throws {
    let (q, k, v) = (tensor(heads: 4), tensor(), tensor(dimension: 24))
    let output = try attention(queries: q, keys: k, values: v, mask: .causal)
    #expect(output.shape == TensorShape(batch: 1, heads: 4, length: 30, dimension: 24))
    // The first query sees one key only.
    #expect((0..<24).allSatisfy { output[0, 3, 0, $0] == v[0, 1, 0, $0] })
  }

  @Test func theLayoutsMeanTheSame() throws {
    let result = try TensorLayout.allCases.map { layout in
      try attentionWithLogSumExp(
        queries: tensor(layout: layout), keys: tensor(layout: layout), values: tensor(layout: layout))
    }
    #expect(result[0].output.layout == .bhnd && result[1].output.layout == .bnhd)
    #expect(result[0].logSumExp == result[1].logSumExp)
    for h in 0..<2 {
      for n in 0..<30 { #expect(result[0].output[0, h, n, 5] == result[1].output[0, h, n, 5]) }
    }
  }

  /// Halves of the keys, combined by their log-sum-exps, give the whole.
  @Test func theLogSumExpCombinesParts() throws {
    let (q, k, v) = (tensor(), tensor(length: 40), tensor(length: 40))
    let whole = try attentionWithLogSumExp(queries: q, keys: k, values: v)
    let parts = try [0..<15, 15..<40].map { range in
      func part(_ t: Tensor) -> Tensor {
        try! Tensor(shape: TensorShape(batch: 1, heads: 2, length: range.count, dimension: 16), scalarType: .f32) {
          b, h, n, d in t[b, h, range.lowerBound + n, d]
        }
      }
      return try attentionWithLogSumExp(queries: q, keys: part(k), values: part(v))
    }
    for h in 0..<2 {
      for n in 0..<30 {
        let row = h * 30 + n
        let weight = 1 / (1 + exp(parts[1].logSumExp[row] - parts[0].logSumExp[row]))
        let combined = weight * parts[0].output[0, h, n, 3] + (1 - weight) * parts[1].output[0, h, n, 3]
        #expect(abs(combined - whole.output[0, h, n, 3]) < 1e-6)
      }
    }
  }

  /// As many sinks as heads, each a number; over a cache, too, before anything is taken.
  @Test func sinksThatCannotBeAreSentences() throws {
    let (q, k) = (tensor(), tensor())
    for (sinks, words) in [
      ([0.5], "There are 1 sinks and 2 query heads; give one for each."),
      ([0, .nan], "The sink of head 1 is nan; it must be finite, or -inf for none."),
      ([.infinity, 0], "The sink of head 0 is inf; it must be finite, or -inf for none."),
    ] as [([Float], String)] {
      #expect(throws: AttentionError.unsupported(words)) {
        try attention(queries: q, keys: k, values: k, sinks: sinks, device: .cpu)
      }
      let cache = try KVCache(
        .paged(pages: 4, pageSize: 16), keyValueHeads: 2, dimension: 16, scalarType: .f32, device: .cpu)
      let sequence = cache.makeSequence()
      #expect(throws: AttentionError.unsupported(words)) {
        try cache.attend(queries: q, keys: k, values: k, sequences: [sequence], sinks: sinks)
      }
      #expect(try cache.length(of: sequence) == 0)
    }
  }

  /// Ranges made by hand and by what they mean; what is visible is what a mask of all pairs says.
  @Test func rangesMeanWhatTheySay() throws {
    let (q, k, v) = (tensor(), tensor(), tensor())
    func differs(_ ranges: KeyRanges, _ mask: AttentionMask, _ isSeen: (Int, Int) -> Bool) throws -> Bool {
      let made = try attention(queries: q, keys: k, values: v, mask: mask, ranges: ranges, device: .cpu)
      for h in 0..<2 {
        for i in 0..<30 {
          let scores = (0..<30).map { j in
            isSeen(i, j) ? (0..<16).reduce(Float(0)) { $0 + q[0, h, i, $1] * k[0, h, j, $1] } / 4 : -.infinity
          }
          let weights = scores.map { exp(Double($0 - (scores.max() ?? 0))) }
          let sum = weights.reduce(0, +)
          for c in 0..<16 {
            let expected = sum > 0 ? (0..<30).reduce(0.0) { $0 + weights[$1] / sum * Double(v[0, h, $1, c]) } : 0
            if (Double(made[0, h, i, c]) - expected).magnitude > 1e-5 { return true }
          }
        }
      }
      return false
    }
    #expect(
      try !differs(.documents(starts: [0, 7, 20], count: 30), .none) { i, j in
        (i >= 7) == (j >= 7) && (i >= 20) == (j >= 20)
      })
    #expect(
      try !differs(.documents(starts: [5, 40], count: 30), .causal) { ($0 >= 5) == ($1 >= 5) && $1 <= $0 })
    #expect(
      try !differs(.spans([3..<9, 20..<26], count: 30), .none) { i, j in
        j <= i || (3..<9 ~= i && j < 9) || (20..<26 ~= i && j < 26)
      })
    #expect(try !differs(.prefix([11]), .causal) { $1 <= $0 || $1 < 11 })
    #expect(try !differs(.firstKeys(3), .window(left: 4, right: 0)) { $1 <= $0 && ($1 < 3 || $0 - $1 <= 4) })
    #expect(try !differs(.given((0..<30).map { [0..<$0 / 2, 25..<30] }), .none) { $1 < $0 / 2 || $1 >= 25 })
    #expect(
      throws: AttentionError.unsupported("The list of key ranges has 20 numbers; the problem's are [1, 30, 1, 2].")
    ) {
      try attention(queries: q, keys: k, values: v, ranges: .documents(starts: [], count: 10), device: .cpu)
    }
    let plan = try AttentionPlan(AttentionProblem(queries: q, keys: k, values: v), device: .cpu)
    #expect(
      throws: AttentionError.unsupported(
        "The call has 4 first keys that all see; the plan was made for no ranges of keys.")
    ) { try plan.run(queries: q, keys: k, values: v, ranges: .firstKeys(4)) }
  }

  /// Over a cache, keys that were appended before count from the sequence's first.
  @Test func cachesTakeRanges() throws {
    let (q, k, v) = (tensor(), tensor(), tensor())
    let cache = try KVCache(
      .paged(pages: 8, pageSize: 8), keyValueHeads: 2, dimension: 16, scalarType: .f32, device: .cpu)
    let sequence = cache.makeSequence()
    let mask = AttentionMask.window(left: 6, right: 0)
    let expected = try attention(queries: q, keys: k, values: v, mask: mask, ranges: .firstKeys(2), device: .cpu)
    let made = try cache.attend(
      queries: q, keys: k, values: v, sequences: [sequence], mask: mask, ranges: .firstKeys(2)
    ).output
    #expect(zip(expected.floats, made.floats).allSatisfy { ($0 - $1).magnitude < 1e-5 })
    // Too few numbers show before anything is taken.
    let other = cache.makeSequence()
    #expect(
      throws: AttentionError.unsupported("The list of key ranges has 20 numbers; the problem's are [1, 30, 1, 2].")
    ) {
      try cache.attend(
        queries: q, keys: k, values: v, sequences: [other], ranges: .documents(starts: [], count: 10))
    }
    #expect(try cache.length(of: other) == 0)
  }

  @Test func aPlanRunsOnBorrowedMemoryOfAnyStride() throws {
    // q as [n][h][d] with the heads of two tensors interleaved.
    let (q, k, v) = (tensor(), tensor(), tensor())
    let problem = try AttentionProblem(queries: q, keys: k, values: v, mask: .window(left: 3, right: nil))
    let plan = try AttentionPlan(problem, device: .cpu)
    let expected = try plan.run(queries: q, keys: k, values: v).output
    var memory = [Float](repeating: .nan, count: 30 * 2 * 40)
    for h in 0..<2 {
      for n in 0..<30 {
        for d in 0..<16 { memory[n * 80 + h * 40 + d] = q[0, h, n, d] }
      }
    }
    var output = [Float](repeating: 0, count: 960)
    memory.withUnsafeBytes { memory in
      output.withUnsafeMutableBytes { output in
        k.withView { k in
          v.withView { v in
            let strided = TensorView(
              base: memory.baseAddress!, scalarType: .f32, shape: problem.queryShape,
              strides: TensorStrides(batch: 0, heads: 40, length: 80))
            try! plan.run(
              queries: strided, keys: k, values: v,
              output: MutableTensorView(
                base: output.baseAddress!, scalarType: .f32, shape: problem.outputShape, layout: .bhnd))
          }
        }
      }
    }
    #expect(output == expected.floats)
  }

  @Test func aPlanSaysWhichPathAndWhy() throws {
    let problem = try AttentionProblem(queries: tensor(), keys: tensor(), values: tensor())
    let lines = try AttentionPlan(problem).description.split(separator: "\n")
    #expect(lines.count == 2)
    #expect(lines[0].hasPrefix("CPU, ") && lines[1].hasPrefix("The CPU was chosen, because "))
    #expect(try AttentionPlan(problem, device: .cpu).reason == "The CPU was asked for.")
  }

  @Test func refusesMixedTypes() {
    let error = #expect(throws: AttentionError.self) {
      try attention(queries: tensor(), keys: tensor(type: .f16), values: tensor())
    }
    #expect(error?.description == "queries is f32, but keys is f16; convert them to one type.")
  }

  @Test(.enabled(if: GPUSupport.summary.hasPrefix("none"), "this machine has a GPU"))
  func refusesAGPUThatIsNotThere() {
    let error = #expect(throws: AttentionError.self) {
      try attention(queries: tensor(), keys: tensor(), values: tensor(), device: .gpu)
    }
    #expect(error?.description.hasPrefix("The GPU cannot be used: ") == true)
  }
}
