import Attention
import AttentionVerification
import Testing

/// The yardstick of all gradients, held against finite differences of the definition of attention.
@Suite struct ReferenceGradientsTests {
  struct Clause: Sendable, CustomTestStringConvertible {
    let testDescription: String
    var group = 1
    var queries = 5
    var keys = 7
    var valueDimension = 8
    var mask = AttentionMask.none
    var scale: Double?
    var softcap: Double?
    var hasLogSumExpGradient = false
    var hasSinks = false
  }

  static let clauses = [
    Clause(testDescription: "plain"),
    Clause(testDescription: "through the log-sum-exp", hasLogSumExpGradient: true),
    Clause(testDescription: "grouped heads", group: 3, mask: .causal),
    Clause(testDescription: "empty rows", queries: 9, keys: 4, mask: .causal, hasLogSumExpGradient: true),
    Clause(testDescription: "window: keys that no query sees", queries: 3, keys: 9, mask: .window(left: 2, right: 0)),
    Clause(testDescription: "chunks", queries: 9, keys: 9, mask: .chunks(of: 4)),
    Clause(testDescription: "softcap", mask: .causal, softcap: 1.5, hasLogSumExpGradient: true),
    Clause(testDescription: "scale below zero, softcap", scale: -0.7, softcap: 2),
    Clause(testDescription: "D_v other than D", valueDimension: 24, scale: 0.5),
    Clause(testDescription: "sinks", group: 2, mask: .causal, hasLogSumExpGradient: true, hasSinks: true),
    Clause(testDescription: "sinks, empty rows", queries: 9, keys: 4, mask: .causal, softcap: 2, hasSinks: true),
    Clause(testDescription: "scale zero", scale: 0, hasLogSumExpGradient: true),
  ]

  @Test(arguments: clauses) func areTheFiniteDifferences(clause: Clause) throws {
    let (batch, heads, dimension) = (2, 2, 8)
    func shape(_ heads: Int, _ length: Int, _ dimension: Int) -> TensorShape {
      TensorShape(batch: batch, heads: heads, length: length, dimension: dimension)
    }
    let problem = try AttentionProblem(
      queries: shape(heads * clause.group, clause.queries, dimension), keys: shape(heads, clause.keys, dimension),
      values: shape(heads, clause.keys, clause.valueDimension), scalarType: .f32, mask: clause.mask,
      scale: clause.scale, softcap: clause.softcap)
    var random = RandomSource(seed: 5)
    let shapes = [problem.queryShape, problem.keyShape, problem.valueShape]
    // So coarse that a step away from one is exact. The sinks behind the others.
    var inputs = (shapes.map(\.elementCount) + [clause.hasSinks ? problem.queryHeads : 0]).map { count in
      (0..<count).map { _ in (random.normal() * 1024).rounded() / 1024 }
    }
    let given = try Tensor.normal(problem.outputShape, .f32, from: &random)
    let ofLogSumExp = (0..<problem.logSumExpCount).map { _ in clause.hasLogSumExpGradient ? random.normal() : 0 }

    func tensors() throws -> [Tensor] {
      try zip(shapes, inputs).map { shape, numbers in
        try Tensor(shape: shape, scalarType: .f32, layout: .bhnd) {
          numbers[(($0 * shape.heads + $1) * shape.length + $2) * shape.dimension + $3]
        }
      }
    }
    /// What the gradients are of: the sum of dO * O and dLSE * LSE.
    func loss() throws -> Double {
      let all = try tensors()
      let values = all[0].withView { q in
        all[1].withView { k in
          all[2].withView {
            ReferenceAttention.compute(
              problem, queries: q, keys: k, values: $0, sinks: clause.hasSinks ? inputs[3] : nil)
          }
        }
      }
      let weights = given.withView { view in
        (0..<batch).flatMap { b in (0..<problem.queryHeads).flatMap { view.widened(batch: b, head: $0) } }
      }
      let ofOutput = zip(values.output, weights).reduce(0) { $0 + $1.0 * $1.1 }
      return zip(values.logSumExp, ofLogSumExp).reduce(ofOutput) { $0 + ($1.0.isFinite ? $1.0 * Double($1.1) : 0) }
    }
    let all = try tensors()
    let gradients = all[0].withView { q in
      all[1].withView { k in
        all[2].withView { v in
          given.withView {
            AttentionCheck.gradients(
              problem,
              GradientInputs(
                queries: q, keys: k, values: v, outputGradient: $0, logSumExpGradient: ofLogSumExp,
                sinks: clause.hasSinks ? inputs[3] : nil))
          }
        }
      }
    }
    for (tensor, computed) in [gradients.queries, gradients.keys, gradients.values, gradients.sinks].enumerated() {
      for index in stride(from: 0, to: inputs[tensor].count, by: tensor == 3 ? 1 : 5) {
        let before = inputs[tensor][index]
        func slope(_ step: Float) throws -> Double {
          inputs[tensor][index] = before + step
          let above = try loss()
          inputs[tensor][index] = before - step
          let below = try loss()
          inputs[tensor][index] = before
          return (above - below) / (2 * Double(step))
        }
        // Two steps, so that the error of the second order falls out.
        let (coarse, fine) = (try slope(1 / 64), try slope(1 / 128))
        let expected = (4 * fine - coarse) / 3
        #expect(
          (computed[index] - expected).magnitude < 1e-6 * max(1, expected.magnitude),
          "tensor \(tensor), element \(index): \(computed[index]), finite differences \(expected)")
      }
    }
  }
}
