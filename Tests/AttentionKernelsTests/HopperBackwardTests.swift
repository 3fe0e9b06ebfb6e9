import Attention
import AttentionKernels
import AttentionVerification
import PTX
import PTXEmulator
import Testing

/// Hopper's gradients' kernel on the emulator: right, without a hazard, and with counters that prove what is claimed for it.
@Suite struct HopperBackwardTests {
  struct Clause: Sendable, CustomTestStringConvertible {
    let testDescription: String
    let orders: [AttentionProblem.GradientOrder]
    let make: @Sendable (AttentionProblem.GradientOrder) throws -> EmulatedGradients

    init(
      _ name: String, tiling: String = "", layout: TensorLayout = .bnhd, rowGap: Int = 0, sinks: ScalarType? = nil,
      isOutputGradientExpanded: Bool = false, _ problem: @escaping @Sendable () throws -> AttentionProblem
    ) {
      testDescription = name
      orders = tiling.contains("adding") ? [.any] : [.fixed, .any]
      make = { order in
        var problem = try problem()
        problem.gradientOrder = order
        var gradients = try EmulatedGradients(
          problem, layout: layout, rowGap: rowGap, tiling: tiling, sinks: sinks, family: HopperBackwardFamily.name,
          on: .sm90a)
        gradients.isOutputGradientExpanded = isOutputGradientExpanded
        return gradients
      }
    }
  }

  static let clauses: [Clause] = [
    Clause("f16, odd lengths") { try problem(queries: 131, keys: 211) },
    Clause("bf16, odd lengths") { try problem(.bf16, queries: 131, keys: 211) },
    Clause("one query, three keys") { try problem(batch: 2, heads: 3, queries: 1, keys: 3) },
    Clause("causal, more keys than queries") { try problem(queries: 150, keys: 333, mask: .causal) },
    Clause("causal, more heads than a section") {
      try problem(batch: 3, heads: 6, queries: 20, keys: 70, mask: .causal)
    },
    Clause("causal, more queries than keys: empty rows") { try problem(.bf16, queries: 200, keys: 70, mask: .causal) },
    Clause("window on both sides") { try problem(queries: 190, keys: 260, mask: .window(left: 37, right: 21)) },
    Clause("window: keys that no query sees") {
      try problem(queries: 20, keys: 260, mask: .window(left: 30, right: 0))
    },
    Clause("window that some rows do not reach") {
      try problem(queries: 200, keys: 60, mask: .window(left: 3, right: 0))
    },
    Clause("chunks and a window, more queries than keys, GQA") {
      try problem(group: 2, queries: 200, keys: 150, mask: .chunks(of: 33, left: 20, right: nil))
    },
    Clause("no keys at all") { try problem(queries: 40, keys: 0) },
    Clause("no queries at all") { try problem(queries: 0, keys: 40) },
    Clause("softcap") { try problem(queries: 70, mask: .causal, softcap: 1.5) },
    Clause("scale below zero") { try problem(.bf16, scale: -0.2) },
    Clause("scale zero") { try problem(mask: .causal, scale: 0) },
    Clause("GQA, few queries") { try problem(.bf16, heads: 2, group: 8, queries: 2, mask: .causal) },
    Clause("heads before tokens, gaps between rows, NaN in them", layout: .bhnd, rowGap: 8) {
      try problem(batch: 2, heads: 2, queries: 67, keys: 99)
    },
    Clause("one row of the gradient of the output for all", isOutputGradientExpanded: true) {
      try problem(batch: 2, group: 2, queries: 40, keys: 90)
    },
    Clause("sinks", sinks: .f16) { try problem(heads: 3, group: 4, queries: 70, keys: 40, mask: .causal) },
    Clause("D 128") { try problem(queries: 140, keys: 200, dimension: 128, mask: .causal) },
    Clause("D 128, one stage", tiling: "passing=1") { try problem(.bf16, queries: 200, keys: 130, dimension: 128) },
    Clause("D 128, D_v 64") { try problem(.bf16, queries: 70, keys: 140, dimension: 128, valueDimension: 64) },
    Clause("D 64, D_v 128") { try problem(queries: 70, keys: 140, dimension: 64, valueDimension: 128) },
    Clause("D 128, groups divide columns", tiling: "share=columns,passing=2") {
      try problem(
        .bf16, group: 4, queries: 75, keys: 140, dimension: 128, mask: .window(left: 60, right: 3), softcap: 3)
    },
    Clause("D 256") { try problem(.bf16, queries: 80, keys: 130, dimension: 256, mask: .causal) },
    Clause("D 128, dQ by atomics", tiling: "adding=atomics,passing=2") {
      try problem(group: 2, queries: 75, keys: 140, dimension: 128, mask: .causal)
    },
    Clause("D 256, dQ by atomics", tiling: "share=columns,adding=atomics,passing=2") {
      try problem(.bf16, queries: 140, keys: 130, dimension: 256, mask: .causal)
    },
    Clause("D 256, D_v 128, one stage", tiling: "share=columns,passing=1") {
      try problem(queries: 150, keys: 70, dimension: 256, valueDimension: 128)
    },
  ]

  @Test(arguments: clauses)
  func fulfilsTheContract(clause: Clause) throws {
    for order in clause.orders {
      let gradients = try clause.make(order)
      let outcomes = try [Schedule.roundRobin, .random(seed: 11)].map { try gradients.run($0) }
      for outcome in outcomes {
        #expect(outcome.passes, "\(gradients.plan): \(outcome.gradients), \(outcome.isConfined)")
        #expect(outcome.counters.bankConflicts == 0)
      }
      // Whatever runs first, the bits are the same.
      if order == .fixed { #expect(outcomes[0].values == outcomes[1].values) }
    }
  }

  /// How dQ is added up is nothing where it is not.
  @Test func refusesWhatItDoesNotHonour() throws {
    let error = try #require(throws: AttentionError.self) {
      try Clause("", tiling: "adding=atomics") { try problem() }.make(.fixed)
    }
    #expect("\(error)".contains("says how dQ is added up in memory"), "\(error)")
  }

  /// What there are no such kernels for, in words.
  @Test func knowsItsLimits() throws {
    for (problem, words) in [
      (try problem(dimension: 72), "head dimensions but 64, 128 and 256"),
      (try problem(dimension: 192), "head dimensions but 64, 128 and 256"),
      (try problem(dimension: 192, valueDimension: 64), "head dimensions but 64, 128 and 256"),
      (try problem(group: 3), "groups of 3 query heads"),
    ] {
      let error = try #require(throws: AttentionError.self) { try Clause("") { problem }.make(.fixed) }
      #expect("\(error)".contains(words), "\(error)")
    }
    let error = try #require(throws: AttentionError.self) {
      try EmulatedGradients(problem(mask: .causal), ranges: .prefix, family: HopperBackwardFamily.name, on: .sm90a)
    }
    #expect("\(error)".contains("ranges of keys"), "\(error)")
  }

  /// Any of the gradients alone: what nobody wants is not written.
  @Test(arguments: 1..<8) func computesWhatIsWanted(bits: Int) throws {
    for (tiling, order) in [
      ("adding=copies", AttentionProblem.GradientOrder.any), ("adding=atomics", .any), ("", .fixed),
    ] {
      var gradients = try Clause("", tiling: tiling) { try problem(queries: 140, keys: 150, mask: .causal) }.make(order)
      gradients.wanted = (0..<3).map { bits >> $0 & 1 == 1 }
      let outcome = try gradients.run()
      #expect(outcome.passes, "\(outcome.gradients), \(outcome.isConfined)")
    }
  }

  /// A call whose strides the copy engine does not take goes to the kernels of `mma.sync`, in the same workspace.
  @Test(arguments: [AttentionProblem.GradientOrder.fixed, .any], [64, 256])
  func leavesRoomForOthers(order: AttentionProblem.GradientOrder, dimension: Int) throws {
    let plan = try Clause("") { try problem(group: 2, queries: 300, keys: 200, dimension: dimension) }.make(order).plan
    #expect(plan.family == HopperBackwardFamily.name && plan.familyWithoutMaps == BackwardFamily.name)
    let other = try KernelPlan(
      plan.problem, on: plan.gpu, options: KernelOptions(family: plan.familyWithoutMaps),
      families: KernelFamilies.backward)
    #expect(other.launches.workspaceByteCount <= plan.launches.workspaceByteCount)
  }

  /// What waits, fences and barriers of each kind of kernel are for: without any of them, some schedule shows it.
  @Test(arguments: [
    ("share=keys,passing=2", 64, AttentionProblem.GradientOrder.fixed), ("share=keys,passing=2", 64, .any),
    ("share=columns,passing=2", 128, .fixed), ("share=columns,passing=2", 128, .any),
    ("share=keys,passing=2,adding=atomics", 64, .any),
  ])
  func everyMutationIsCaught(tiling: String, dimension: Int, order: AttentionProblem.GradientOrder) throws {
    let clause = Clause("", tiling: tiling) {
      try problem(queries: 200, keys: 150, dimension: dimension, mask: .causal)
    }
    let gradients = try clause.make(order)
    let kernel = try #require(gradients.plan.launches.attention.kernel as? HopperBackwardKernel)
    let built = try kernel.kernel()
    #expect(Mutation.all(of: built).count >= 10)
    let survivors = Mutation.survivors(of: built) { (program, schedule) throws(Hazard) in
      try gradients.run(schedule) { $0 is HopperBackwardKernel ? program : nil }.passes
    }
    #expect(survivors.isEmpty, "\(survivors)")
  }

  /// Five products, and without dQ four; each tensor read once a tile that passes.
  @Test(arguments: [("share=keys", 128, 2), ("share=columns", 64, 2)])
  func countsWhatIsClaimed(tiling: String, keysOfBlock: Int, group: Int) throws {
    for order in [AttentionProblem.GradientOrder.fixed, .any] {
      let clause = Clause("", tiling: tiling) {
        try problem(batch: 2, group: group, queries: 64, keys: 256, dimension: 128)
      }
      let outcome = try clause.make(order).run()
      #expect(outcome.passes)
      let counters = outcome.counters
      let (rows, keys, d, all) = (64 * group, 256, 128, 2)
      #expect(counters.exponentials == all * rows * keys)
      // A group's products, counted for each of its four warps, are 64 x N x 16. With keys of its own its N are 64 rows, 128 columns of dK and dV, and 64 of dQ; with half of
      // the columns, 32, 64 and 64.
      let tiles = all * rows / 64 * keys / keysOfBlock
      let ofTile =
        8 * (2 * 8 + 2 * 4 + (order == .any ? keysOfBlock / 16 : 0))
      #expect(counters.warpgroupProducts == tiles * ofTile)
      let (q, k) = (all * rows * d * 2, all * keys * d * 2)
      let passes = keys / keysOfBlock
      #expect(try #require(counters.traffic["q"]).bytesRead == (passes + (order == .any ? 0 : 1)) * q)
      if order == .any { #expect(try #require(counters.traffic["k"]).bytesRead == k) }
    }
  }
}
