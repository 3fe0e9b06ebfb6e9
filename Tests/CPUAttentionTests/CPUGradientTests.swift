import Attention
import AttentionVerification
import CPUMicrokernels
import Testing

@testable import CPUAttention

/// Gradients on the CPU: right with all vectors, the same bits in every run, and blind where nobody looks.
@Suite struct CPUGradientTests {
  struct Clause: Sendable, CustomTestStringConvertible {
    let testDescription: String
    var type = ScalarType.f32
    var batch = 1
    var heads = 1
    var group = 1
    var queries = 70
    var keys = 150
    var dimension = 64
    var valueDimension: Int?
    var mask = AttentionMask.none
    var scale: Double?
    var softcap: Double?
    var hasLogSumExpGradient = true
    var hasSinks = false

    func problem() throws -> AttentionProblem {
      func shape(_ heads: Int, _ length: Int, _ dimension: Int) -> TensorShape {
        TensorShape(batch: batch, heads: heads, length: length, dimension: dimension)
      }
      var problem = try AttentionProblem(
        queries: shape(heads * group, queries, dimension), keys: shape(heads, keys, dimension),
        values: shape(heads, keys, valueDimension ?? dimension), scalarType: type, mask: mask, scale: scale,
        softcap: softcap)
      problem.sinkType = hasSinks ? .f32 : nil
      return problem
    }
  }

  static let clauses = [
    Clause(testDescription: "f32"), Clause(testDescription: "f16", type: .f16, mask: .causal),
    Clause(testDescription: "bf16, grouped heads", type: .bf16, batch: 2, heads: 2, group: 3, mask: .causal),
    Clause(testDescription: "empty rows", queries: 200, keys: 70, mask: .causal),
    Clause(testDescription: "keys that no query sees", queries: 20, keys: 260, mask: .window(left: 30, right: 0)),
    Clause(testDescription: "chunks", queries: 190, keys: 260, mask: .chunks(of: 70)),
    Clause(testDescription: "softcap", mask: .causal, softcap: 1.5),
    Clause(testDescription: "scale below zero, softcap", scale: -0.4, softcap: 2),
    Clause(testDescription: "scale below zero", scale: -0.2), Clause(testDescription: "scale zero", scale: 0),
    Clause(testDescription: "sinks", type: .bf16, batch: 2, heads: 3, group: 3, mask: .causal, hasSinks: true),
    Clause(testDescription: "sinks, empty rows", heads: 8, queries: 90, keys: 30, mask: .causal, hasSinks: true),
    Clause(testDescription: "no keys", keys: 0), Clause(testDescription: "no queries", queries: 0),
    Clause(testDescription: "D 8, D_v 24", dimension: 8, valueDimension: 24, hasLogSumExpGradient: false),
    Clause(testDescription: "D 72, D_v 40", type: .bf16, dimension: 72, valueDimension: 40),
    Clause(testDescription: "D 512", queries: 30, keys: 70, dimension: 512),
    // Of bf16 a word is two rows or two keys, of which one may be the last, or seen by others than its neighbour.
    Clause(
      testDescription: "bf16, an odd number of rows and keys", type: .bf16, group: 3, queries: 71, keys: 131,
      mask: .window(left: 9, right: 0)),
    Clause(testDescription: "bf16, softcap, D 8, D_v 24", type: .bf16, dimension: 8, valueDimension: 24, softcap: 2),
    Clause(testDescription: "bf16, one row, one key", type: .bf16, queries: 1, keys: 1, hasLogSumExpGradient: false),
    Clause(
      testDescription: "bf16, empty rows, D 136", type: .bf16, queries: 97, keys: 33, dimension: 136, mask: .causal),
  ]

  private struct Run {
    /// Q, K, V and dO.
    let inputs: [CaseTensor]
    let ofLogSumExp: [Float]
    let yardstick: GradientYardstick

    private static func tensor(_ shape: TensorShape, _ type: ScalarType) -> CaseTensor {
      CaseTensor(shape, type, CaseTensor.Placement(), surroundings: 7)
    }

    /// - Parameter spoiled: a key and a query whose rows are NaN; nil for none.
    init(_ problem: AttentionProblem, hasLogSumExpGradient: Bool, spoiled: (key: Int, query: Int)? = nil) throws {
      var random = RandomSource(seed: 3)
      ofLogSumExp = (0..<problem.logSumExpCount).map { _ in hasLogSumExpGradient ? random.normal() : 0 }
      inputs = [problem.queryShape, problem.keyShape, problem.valueShape, problem.outputShape].map {
        Self.tensor($0, problem.scalarType)
      }
      for (number, tensor) in inputs.enumerated() {
        let bad = spoiled.map { number == 1 || number == 2 ? $0.key : $0.query }
        tensor.fill { _, _, n, _ in n == bad ? .nan : random.normal() }
      }
      let views = inputs.map(\.view.readOnly)
      yardstick = try GradientYardstick(
        problem, sequences: nil,
        GradientInputs(
          queries: views[0], keys: views[1], values: views[2], outputGradient: views[3],
          logSumExpGradient: ofLogSumExp, sinks: problem.exampleSinks), sums: nil)
    }

    /// dQ, dK and dV; behind them, dsink.
    func compute(_ plan: CPUGradientPlan) throws -> [[Double]] {
      let (problem, shape) = (plan.problem, plan.problem.outputShape)
      let results = [problem.queryShape, problem.keyShape, problem.valueShape].map {
        Self.tensor($0, problem.scalarType)
      }
      let output = Self.tensor(shape, problem.scalarType)
      output.fill { b, h, n, d in
        Float(yardstick.forward.output[((b * shape.heads + h) * shape.length + n) * shape.dimension + d])
      }
      let views = inputs.map(\.view.readOnly)
      var (logSumExp, ofLogSumExp) = (yardstick.forward.logSumExp.map { Float($0) }, ofLogSumExp)
      var ofSinks = [Float](repeating: .nan, count: problem.queryHeads)
      try logSumExp.withUnsafeMutableBufferPointer { logSumExp in
        try ofLogSumExp.withUnsafeMutableBufferPointer { ofLogSumExp in
          try ofSinks.withUnsafeMutableBufferPointer { ofSinks in
            try plan.run(
              GradientTensors<HostMemory>(
                queries: views[0], keys: views[1], values: views[2], output: output.view.readOnly, logSumExp: logSumExp,
                outputGradient: views[3], logSumExpGradient: ofLogSumExp, queryGradient: results[0].view,
                keyGradient: results[1].view, valueGradient: results[2].view,
                sinkGradient: problem.sinkType == nil ? nil : ofSinks,
                entries: CacheEntries(sinks: problem.exampleSinks)))
          }
        }
      }
      return results.map(\.values) + (problem.sinkType == nil ? [] : [ofSinks.map(Double.init)])
    }
  }

  @Test(arguments: clauses) func agreesWithTheDefinition(clause: Clause) throws {
    let problem = try clause.problem()
    let run = try Run(problem, hasLogSumExpGradient: clause.hasLogSumExpGradient)
    for instructionSet in InstructionSet.tested {
      // With one thread a head is one unit; with many its keys are dealt out.
      for threads in [1, 5] {
        let plan = try CPUGradientPlan(problem, threads: threads, instructionSet: instructionSet)
        let made = try run.compute(plan)
        for (name, comparison) in zip(
          ["dq", "dk", "dv"], run.yardstick.judge(queries: made[0], keys: made[1], values: made[2]))
        {
          #expect(comparison.passes, "\(instructionSet.name), \(threads) threads, \(name): \(comparison)")
        }
        if clause.hasSinks {
          let comparison = run.yardstick.judge(sinks: made[3])
          #expect(comparison.passes, "\(instructionSet.name), \(threads) threads, dsink: \(comparison)")
        }
        for _ in 0..<3 { #expect(try run.compute(plan) == made) }
      }
    }
  }

  /// A pool that calls more often than it was asked to, or not at all: each thread's rooms are there, and all is done.
  @Test func anyPoolDoesIt() throws {
    let clause = Clause(testDescription: "", queries: 100, keys: 300)
    let run = try Run(try clause.problem(), hasLogSumExpGradient: false)
    let plan = try CPUGradientPlan(try clause.problem(), threads: 2)
    let expected = try run.compute(plan)
    defer { WorkerTeam.use(nil) }
    WorkerTeam.use { body, data, threads, _ in for _ in 0..<threads + 7 { body?(data) } }
    #expect(try run.compute(plan) == expected)
    WorkerTeam.use { _, _, _, _ in }
    #expect(try run.compute(plan) == expected)
  }

  /// A plan says what it multiplies: pairs where a type and the vectors have them.
  @Test func aPlanSaysWhatItMultiplies() throws {
    for instructionSet in InstructionSet.tested {
      for type in [ScalarType.f32, .f16, .bf16] {
        let problem = try Clause(testDescription: "", type: type).problem()
        let plan = try CPUGradientPlan(problem, threads: 2, instructionSet: instructionSet)
        let areOfPairs = type == .bf16 && instructionSet.functions.pointee.pair_gradients.elements == 2
        let products = areOfPairs ? "of bfloat16 pairs" : "in f32"
        // Between them, perhaps, whose threads they are.
        #expect("\(plan)".hasPrefix("CPU, \(instructionSet.name), 2 threads"))
        #expect(
          "\(plan)".hasSuffix(
            ": five products \(products), tiles of 64 rows and keys, keys dealt out to 2 parts of each head"))
      }
    }
  }

  /// A NaN in a row of keys and values, and in one of queries and dO, is seen by those alone that see the row.
  @Test(arguments: [ScalarType.f32, .bf16], [(40, 70), (41, 71)])
  func aNaNStaysWithThoseWhoSeeIt(type: ScalarType, spoiled: (key: Int, query: Int)) throws {
    let clause = Clause(testDescription: "", type: type, queries: 100, keys: 100, mask: .window(left: 20, right: 0))
    let problem = try clause.problem()
    let run = try Run(problem, hasLogSumExpGradient: false, spoiled: spoiled)
    for instructionSet in InstructionSet.tested {
      let made = try run.compute(try CPUGradientPlan(problem, threads: 1, instructionSet: instructionSet))
      let isNaN = made.map { values in (0..<100).map { row in values[row * 64].isNaN } }
      let seesKey = (0..<100).map { problem.visibleKeys(ofQuery: $0).contains(spoiled.key) || $0 == spoiled.query }
      #expect(isNaN[0] == seesKey)
      // The gradient of a key is that of all queries that see it, of which some have a NaN.
      for key in 0..<100 {
        let seeing = problem.mask.seeingQueries(ofKey: key, queries: 100, keys: 100)
        let isSpoiled = seeing.contains { seesKey[$0] }
        #expect(isNaN[1][key] == isSpoiled, "dk \(key)")
        if !isSpoiled { #expect(!isNaN[2][key], "dv \(key)") }
      }
    }
  }

  /// The last row that sees a tile of keys may be the first of a word, whose other row is another chunk's.
  @Test(arguments: [ScalarType.f32, .bf16]) func aNaNStaysInItsChunk(type: ScalarType) throws {
    let problem = try Clause(
      testDescription: "", type: type, queries: 127, keys: 128, mask: .chunks(of: 64, right: nil)
    ).problem()
    #expect(problem.visibleKeys(ofQuery: 62).contains(63) && problem.visibleKeys(ofQuery: 63) == 64..<128)
    let run = try Run(problem, hasLogSumExpGradient: false, spoiled: (key: -1, query: 63))
    for instructionSet in InstructionSet.tested {
      let made = try run.compute(try CPUGradientPlan(problem, threads: 1, instructionSet: instructionSet))
      for values in made[1...2] {
        #expect((0..<128).filter { values[$0 * 64].isNaN } == Array(64..<128), "\(instructionSet.name)")
      }
    }
  }
}
