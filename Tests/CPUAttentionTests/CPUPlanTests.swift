import Attention
import AttentionVerification
import CPUMicrokernels
import Dispatch
import Glibc
import Synchronization
import Testing
import TileModel

@testable import CPUAttention

@Suite struct CPUPlanTests {
  struct Shape: Sendable, CustomTestStringConvertible {
    var queryHeads = 2, keyValueHeads = 1, queries = 50, keys = 100, dimension = 64, valueDimension = 64
    var mask = AttentionMask.none
    var softcap: Double?
    var scale: Double?
    /// Of Q, K and V.
    var layout = TensorLayout.bhnd

    var testDescription: String {
      "\(queryHeads)/\(keyValueHeads) heads, \(queries)x\(keys), \(dimension)/\(valueDimension), \(mask), "
        + "softcap \(softcap ?? 0), scale \(scale ?? 1), \(layout)"
    }

    func problem(_ type: ScalarType) throws -> AttentionProblem {
      func shape(_ heads: Int, _ length: Int, _ dimension: Int) -> TensorShape {
        TensorShape(batch: 2, heads: heads, length: length, dimension: dimension)
      }
      return try AttentionProblem(
        queries: shape(queryHeads, queries, dimension), keys: shape(keyValueHeads, keys, dimension),
        values: shape(keyValueHeads, keys, valueDimension), scalarType: type, mask: mask, scale: scale,
        softcap: softcap)
    }
  }

  /// One shape for each place where the kernels branch: panel widths, row counts, tails, masks, softcap, splits.
  static let shapes = [
    Shape(queries: 1, keys: 1, dimension: 8, valueDimension: 8),
    Shape(queryHeads: 1, queries: 1, keys: 1200),
    Shape(queries: 1, keys: 700, dimension: 40, valueDimension: 72),
    Shape(queries: 2, keys: 333, dimension: 128, valueDimension: 8, mask: .causal),
    Shape(queryHeads: 3, queries: 2, keys: 77, dimension: 24, valueDimension: 256, softcap: 4),
    Shape(queryHeads: 8, queries: 1, keys: 4100, dimension: 104, valueDimension: 104, scale: -0.1),
    Shape(queryHeads: 1, queries: 9, keys: 65),
    Shape(queryHeads: 1, queries: 17, keys: 63, dimension: 72, valueDimension: 40),
    Shape(queries: 100, keys: 700, mask: .causal),
    Shape(queries: 100, keys: 60, mask: .causal),
    Shape(queries: 333, keys: 129, dimension: 16, valueDimension: 24, mask: .window(left: 30, right: 5)),
    Shape(queries: 70, keys: 200, dimension: 256, valueDimension: 256, softcap: 20, scale: -0.3),
    Shape(queries: 70, keys: 200, dimension: 32, valueDimension: 32, mask: .causal, scale: -0.3),
    Shape(queries: 40, keys: 50, dimension: 1024, valueDimension: 520),
    Shape(queries: 20, keys: 50, scale: 0),
    Shape(queries: 2, keys: 50, mask: .window(left: 0, right: 0), scale: 0),
    Shape(queries: 30, keys: 0),
    Shape(queries: 100, keys: 200, mask: .causal, layout: .bnhd),
    // Few rows of heads that are read together: all, one of them alone at the end, three and two.
    Shape(queryHeads: 12, keyValueHeads: 6, queries: 2, keys: 1100, mask: .causal, layout: .bnhd),
    Shape(queryHeads: 5, keyValueHeads: 5, queries: 3, keys: 77, dimension: 24, valueDimension: 1024, layout: .bnhd),
    Shape(
      queryHeads: 5, keyValueHeads: 5, queries: 1, keys: 530, dimension: 256, valueDimension: 40, softcap: 4,
      layout: .bnhd),
    Shape(
      queryHeads: 6, keyValueHeads: 3, queries: 4, keys: 100, mask: .window(left: 30, right: 0), scale: -0.1,
      layout: .bnhd),
  ]

  private func run(
    _ plan: CPUPlan, _ q: GuardedTensor, _ k: GuardedTensor, _ v: GuardedTensor
  ) throws -> (output: [Float], logSumExp: [Float]) {
    let problem = plan.problem
    let output = GuardedTensor(problem.outputShape, problem.scalarType) { _ in .nan }
    var logSumExp = [Float](repeating: .nan, count: problem.logSumExpCount)
    try logSumExp.withUnsafeMutableBufferPointer {
      try plan.run(
        queries: q.view.readOnly, keys: k.view.readOnly, values: v.view.readOnly, output: output.view, logSumExp: $0)
    }
    return (
      (0..<problem.outputShape.elementCount).map { problem.scalarType.load(from: output.view.base, at: $0) }, logSumExp
    )
  }

  private func inputs(
    _ problem: AttentionProblem, layout: TensorLayout = .bhnd
  ) -> (GuardedTensor, GuardedTensor, GuardedTensor) {
    // Fractions of multiples: spread like noise, the same on every machine.
    func tensor(_ shape: TensorShape, _ phase: Double) -> GuardedTensor {
      GuardedTensor(shape, problem.scalarType, layout: layout) { i in
        let x = Double(i) * 12.9898 + phase
        let noise = (x - x.rounded(.down) - 0.5) * 4
        return Float(noise * ((x * 0.37).truncatingRemainder(dividingBy: 3)) / 2)
      }
    }
    return (tensor(problem.queryShape, 0.1), tensor(problem.keyShape, 0.7), tensor(problem.valueShape, 0.3))
  }

  /// Every instruction set, every type, every shape: within the tolerance, and without touching a byte beyond the
  /// tensors, which end at the end of readable memory.
  @Test(arguments: 0..<InstructionSet.tested.count, shapes)
  func agreesWithTheReference(set: Int, shape: Shape) throws {
    for type in ScalarType.computed {
      let problem = try shape.problem(type)
      let (q, k, v) = inputs(problem, layout: shape.layout)
      let reference = ReferenceAttention.compute(
        problem, queries: q.view.readOnly, keys: k.view.readOnly, values: v.view.readOnly)
      var plain = AttentionValues(for: problem)
      for b in 0..<problem.batch {
        for h in 0..<problem.queryHeads {
          plain.set(
            PlainAttention.head(
              h, batch: b, of: problem, queries: q.view.readOnly, keys: k.view.readOnly, values: v.view.readOnly),
            batch: b, head: h, of: problem)
        }
      }
      for threads in [1, 3] {
        let plan = try CPUPlan(problem, threads: threads, instructionSet: InstructionSet.tested[set])
        let result = try run(plan, q, k, v)
        let outputs = Comparison(
          actual: result.output.map(Double.init), plain: plain.output, reference: reference.output, type: type)
        #expect(outputs.passes, "\(plan): \(outputs)")
        let statistics = Comparison(
          actual: result.logSumExp.map(Double.init), plain: plain.logSumExp, reference: reference.logSumExp, type: .f32)
        #expect(statistics.passes, "\(plan): log-sum-exp \(statistics)")
      }
    }
  }

  /// A NaN or an infinity in the inputs reaches exactly the rows that see it: never hidden, never spread.
  @Test(arguments: 0..<InstructionSet.tested.count, ScalarType.computed)
  func whatIsNoNumberReachesThoseWhoSeeIt(set: Int, type: ScalarType) throws {
    for shape in [
      Shape(queries: 90, keys: 150, dimension: 16, valueDimension: 24, mask: .causal),
      Shape(queries: 4, keys: 150, dimension: 16, valueDimension: 24, mask: .window(left: 40, right: 0)),
      Shape(queries: 1, keys: 1500, dimension: 16, valueDimension: 24),
      Shape(queries: 90, keys: 150, dimension: 16, valueDimension: 24, mask: .causal, softcap: 5),
      Shape(
        queryHeads: 6, keyValueHeads: 3, queries: 4, keys: 150, dimension: 16, valueDimension: 24,
        mask: .window(left: 40, right: 0), layout: .bnhd),
    ] {
      let problem = try shape.problem(type)
      let plan = try CPUPlan(problem, threads: 3, instructionSet: InstructionSet.tested[set])
      let bad = problem.keys - 3
      for (place, value) in [(0, Float.nan), (1, .nan), (2, .nan), (2, .infinity)] {
        let (q, k, v) = inputs(problem, layout: shape.layout)
        let query = problem.queries / 2
        let row =
          [
            q.view.row(batch: 1, head: 1, token: query), k.view.row(batch: 1, head: 0, token: bad),
            v.view.row(batch: 1, head: 0, token: bad),
          ][place]
        type.store(value, to: row, at: 5)
        let result = try run(plan, q, k, v)
        for h in 0..<problem.queryHeads {
          for i in 0..<problem.queries {
            let index = (problem.queryHeads + h) * problem.queries + i
            let sees = h < problem.groupSize && problem.visibleKeys(ofQuery: i).contains(bad)
            let columns = (0..<24).map { result.output[index * 24 + $0] }
            let wrong =
              switch place {
              case 0: h == 1 && i == query ? columns.contains { !$0.isNaN } : columns.contains { !$0.isFinite }
              case 1: sees ? columns.contains { !$0.isNaN } : columns.contains { !$0.isFinite }
              default: columns.enumerated().contains { $1.isFinite == (sees && $0 == 5) }
              }
            if wrong { Issue.record("\(plan), \(["q", "k", "v"][place]) \(value), head \(h), query \(i): \(columns)") }
            let isStatisticBad = place == 0 ? h == 1 && i == query : place == 1 && sees
            #expect(result.logSumExp[index].isNaN == isStatisticBad)
          }
        }
      }
    }
  }

  /// Offsets beyond 32 bits, and more heads than 16 bits count.
  @Test func sizesBeyond32And16Bits() throws {
    // Two sequences 2^33 bytes apart; only the pages that are used exist.
    let distance = 1 << 33
    let mapping = mmap(
      nil, distance + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)!
    defer { munmap(mapping, distance + 4096) }
    let shape = TensorShape(batch: 2, heads: 1, length: 4, dimension: 8)
    for b in 0..<2 {
      for i in 0..<32 { mapping.storeBytes(of: Float(i * (b + 1)), toByteOffset: b * distance + i * 4, as: Float.self) }
    }
    let view = TensorView(
      base: mapping, scalarType: .f32, shape: shape, strides: TensorStrides(batch: distance / 4, heads: 32, length: 8))
    let problem = try AttentionProblem(queries: shape, keys: shape, values: shape, scalarType: .f32, mask: .causal)
    let output = GuardedTensor(shape, .f32)
    try CPUPlan(problem).run(queries: view, keys: view, values: view, output: output.view)
    // The first query of each sequence sees its own key only.
    for b in 0..<2 {
      for d in 0..<8 {
        #expect(output.view.base.load(fromByteOffset: (b * 32 + d) * 4, as: Float.self) == Float(d * (b + 1)))
      }
    }

    let many = TensorShape(batch: 1, heads: 70_000, length: 1, dimension: 8)
    let values = GuardedTensor(many, .f32) { Float($0 / 8) }
    let all = try AttentionProblem(queries: many, keys: many, values: many, scalarType: .f32)
    let result = try run(CPUPlan(all), values, values, values).output
    #expect((0..<70_000).allSatisfy { result[$0 * 8] == Float($0) })
  }

  @Test func theSamePlanGivesTheSameBits() throws {
    for shape in [Shape(queries: 1, keys: 5000), Shape(queries: 200, keys: 900, mask: .causal)] {
      let problem = try shape.problem(.bf16)
      let (q, k, v) = inputs(problem)
      let plan = try CPUPlan(problem)
      let first = try run(plan, q, k, v)
      for _ in 0..<10 {
        let again = try run(plan, q, k, v)
        #expect(again.output.map(\.bitPattern) == first.output.map(\.bitPattern))
        #expect(again.logSumExp.map(\.bitPattern) == first.logSumExp.map(\.bitPattern))
      }
    }
  }

  /// However many callers there are, the helpers never outnumber the processors. The workers of each call are counted
  /// too, because Dispatch has a limit of its own on how many of them run at one time.
  @Test func helpersNeverOutnumberTheProcessors() {
    let items = 8 * WorkerTeam.processors
    let active = Mutex(0)
    let most = Mutex(0)
    let callers = 6
    DispatchQueue.concurrentPerform(iterations: callers) { _ in
      for _ in 0..<20 {
        let mine = Mutex(0)
        WorkerTeam.run(items: items, threads: items) { queue in
          mine.withLock { $0 += 1 }
          let now = active.withLock {
            $0 += 1; return $0
          }
          most.withLock { $0 = max($0, now) }
          while queue.next() != nil { usleep(50) }
          active.withLock { $0 -= 1 }
        }
        // One call alone: its own thread, and the helpers.
        let workers = mine.withLock { $0 }
        #expect((1...WorkerTeam.processors).contains(workers))
      }
    }
    // Each caller works itself; the others are helpers.
    #expect(most.withLock { $0 } <= callers + WorkerTeam.processors - 1)
  }

  /// Several tasks at once get the right answers.
  @Test func manyTasksAtOnce() async throws {
    let problem = try Shape(queries: 64, keys: 300).problem(.f32)
    let (q, k, v) = inputs(problem)
    let plan = try CPUPlan(problem, threads: 4)
    let expected = try run(plan, q, k, v).output
    nonisolated(unsafe) let (sharedQ, sharedK, sharedV) = (q, k, v)
    try await withThrowingTaskGroup(of: [Float].self) { group in
      for _ in 0..<16 { group.addTask { try run(plan, sharedQ, sharedK, sharedV).output } }
      for try await result in group { #expect(result == expected) }
    }
  }

  @Test func choosesThePathByTheRows() throws {
    let few = try CPUPlan(Shape(queryHeads: 8, queries: 1).problem(.f32))
    #expect(few.path == .rows)
    let many = try CPUPlan(Shape(queryHeads: 9, queries: 1).problem(.f32))
    #expect(many.path == .panels)
    let pairs = try CPUPlan(Shape().problem(.bf16))
    #expect(pairs.path == (InstructionSet.best.hasPairs ? .pairPanels : .panels))
    #expect(few.description.contains("few query rows"))
  }

  @Test func splitsTheKeysWhereThereIsLittleElseToDivide() throws {
    let long = try CPUPlan(Shape(queries: 1, keys: 100_000).problem(.f32), threads: 4)
    #expect(long.keySplits > 1 && long.description.contains("keys split \(long.keySplits) ways"))
    let short = try CPUPlan(Shape(queries: 1, keys: 500).problem(.f32), threads: 4)
    #expect(short.keySplits == 1)
    let single = try CPUPlan(
      Shape(queryHeads: 32, keyValueHeads: 32, queries: 1, keys: 100_000).problem(.f32), threads: 1)
    #expect(single.keySplits == 1)
  }

  /// Pairs, where the vectors have them: rows take bytes, too, panels do not.
  @Test func choosesPairsByTheTypes() throws {
    let many = Shape(queries: 50, keys: 100)
    for instructionSet in InstructionSet.tested {
      for type in ScalarType.computed {
        let isPaired = type == .bf16 && instructionSet.hasPairs
        let functions = instructionSet.functions.pointee
        for hasBytes in [false, true] {
          func path(_ shape: Shape) throws -> CPUPlan.Path {
            try CPUPlan(shape.problem(type), hasBytes: hasBytes, threads: 1, instructionSet: instructionSet).path
          }
          let pairs = Int(functions.pair_rows)
          for rows in [1, 2, 4, 8] {
            #expect(
              try path(Shape(queryHeads: rows, queries: 1, keys: 1000))
                == (isPaired && rows <= pairs ? .pairRows : .rows))
          }
          #expect(try path(Shape(queries: 0, keys: 1000)) == (isPaired && pairs > 0 ? .pairRows : .rows))
          if instructionSet.hasTiles { #expect(pairs == 1) }
          #expect(try path(many) == (isPaired && !hasBytes ? .pairPanels : .panels))
        }
      }
    }
  }

  /// AMX: of whole rows in whole tiles no product is one of pairs, and each is computed once.
  @Test(.enabled(if: InstructionSet.tileModel != nil)) func tilesAreMultipliedOnce() throws {
    let set = try #require(InstructionSet.tileModel)
    // Tiles of 256 keys, the last of 40: panels of 48 rows are three tiles wide, the last one's 16 are one.
    let shape = Shape(queryHeads: 1, queries: 64, keys: 296, dimension: 72, valueDimension: 40)
    let problem = try shape.problem(.bf16)
    let plan = try CPUPlan(problem, threads: 1, instructionSet: set)
    #expect(plan.path == .pairPanels && plan.tileKeys == 256 && plan.description.contains("bfloat16 tiles"))
    let (q, k, v) = inputs(problem)
    _ = fa_tile_model_products()
    _ = try run(plan, q, k, v)
    // 16 and 3 tiles of 16 keys, whose dimension is two tiles and a quarter of one; 3 of columns, over 8 and 2 tiles of pairs.
    #expect(fa_tile_model_products() == 2 * 4 * (19 * 3 + 3 * 10))
  }

  /// AMX: what no row of a panel sees is not multiplied, but for what is left of 32 keys.
  @Test(.enabled(if: InstructionSet.tileModel != nil)) func tilesThatNoRowSeesAreNotMultiplied() throws {
    let set = try #require(InstructionSet.tileModel)
    func products(_ mask: AttentionMask) throws -> Int {
      var shape = Shape(queryHeads: 1, queries: 96, keys: 96, dimension: 64, valueDimension: 64)
      shape.mask = mask
      let problem = try shape.problem(.bf16)
      let plan = try CPUPlan(problem, threads: 1, instructionSet: set)
      let (q, k, v) = inputs(problem)
      _ = fa_tile_model_products()
      _ = try run(plan, q, k, v)
      return Int(fa_tile_model_products())
    }
    // Two heads, panels of three tiles of rows: of keys, 16 by two tiles of the dimension; of 4 tiles of columns, 32 keys.
    #expect(try products(.none) == 2 * 3 * 2 * (6 * 2 + 4 * 3))
    // The first panel's 48 rows see 48 keys, with the rest of a tile 64.
    #expect(try products(.causal) == 2 * 3 * ((4 + 6) * 2 + 4 * (2 + 3)))
    // Rows 48 to 95 see keys 40 to 95: of the tile, those from 32 on.
    #expect(try products(.window(left: 8, right: 0)) == 2 * 3 * ((4 + 4) * 2 + 4 * (2 + 2)))
  }

  /// What is reckoned for waking threads: all pairs without a mask, and with one those that panels compute beside.
  @Test func reckonsWhatPanelsCompute() throws {
    func plan(_ shape: Shape, _ mask: AttentionMask) throws -> CPUPlan {
      var shape = shape
      shape.mask = mask
      return try CPUPlan(shape.problem(.f32), threads: 2)
    }
    for queries in [1, 64, 500] {
      let shape = Shape(queries: queries, keys: queries)
      let (all, causal) = (try plan(shape, .none), try plan(shape, .causal))
      #expect(all.computedFlops == all.problem.flops)
      #expect(causal.computedFlops >= causal.problem.flops && causal.computedFlops <= all.computedFlops)
      if queries == 64 { #expect(causal.computedFlops > 1.2 * causal.problem.flops) }
      if queries == 500 { #expect(causal.computedFlops < 1.2 * causal.problem.flops) }
    }
    #expect(try plan(Shape(queries: 5, keys: 0), .causal).computedFlops == 0)
  }

  /// Where rows of heads lie between one another in memory, a unit reads those of several heads, unless threads would have
  /// nothing to do then; as many as have a page of memory together.
  @Test func readsHeadsTogetherThatLieTogether() throws {
    func together(
      _ shape: Shape, _ type: ScalarType = .f32, threads: Int = 2, layout: TensorLayout = .bnhd
    ) throws -> CPUPlan {
      let problem = try shape.problem(type)
      let (_, k, v) = inputs(problem, layout: layout)
      return try CPUPlan(problem, threads: threads).reading(KeyRows(k.view.readOnly), KeyRows(v.view.readOnly))
    }
    let eight = Shape(
      queryHeads: 32, keyValueHeads: 8, queries: 1, keys: 1024, dimension: 128, valueDimension: 128)
    let plan = try together(eight)
    let tile = plan.asksFar ? 32 : 16
    #expect(plan.headsTogether == 8 && plan.tileKeys == tile && plan.keySplits == 2 && plan.units == 4)
    #expect(plan.description.contains("tiles of \(tile) keys, those of 8 heads together"))
    let unread = try CPUPlan(eight.problem(.f32))
    #expect(unread.description.contains("or of \(tile) keys of up to 8 heads where these lie side by side"))
    let apart = try together(eight, layout: .bhnd)
    #expect(apart.headsTogether == 1 && apart.tileKeys == 128)
    // Five heads of 2 KB: two, two and one.
    let wide = Shape(
      queryHeads: 5, keyValueHeads: 5, queries: 1, keys: 100, dimension: 512, valueDimension: 512)
    #expect(try together(wide).headsTogether == 2 && together(wide).units == 6)
    #expect(try together(wide, .bf16).headsTogether == 3 && together(wide, .bf16).units == 4)
    // With more threads, fewer heads, and none.
    #expect(try together(eight, threads: 8).headsTogether == 4 && together(eight, threads: 8).units == 8)
    #expect(try together(eight, threads: 64).headsTogether == 1)
    // Of one head, all rows are neighbours; many rows are another path's.
    #expect(try together(Shape(queries: 1, keys: 1000)).headsTogether == 1)
    #expect(try together(Shape(queryHeads: 8, keyValueHeads: 8, queries: 50, keys: 100)).headsTogether == 1)
  }

  /// Scratch memory does not grow with the lengths, and stays a few hundred KB at the usual head dimensions, or what the L2 cache of a
  /// core with tiles has room for.
  @Test(arguments: 0..<InstructionSet.tested.count) func scratchMemoryIsBounded(set: Int) throws {
    for type in ScalarType.computed {
      for dimension in [64, 128, 256] {
        func plan(_ count: Int) throws -> CPUPlan {
          try CPUPlan(
            Shape(queries: count, keys: count, dimension: dimension, valueDimension: dimension).problem(type),
            instructionSet: InstructionSet.tested[set])
        }
        let (small, large) = (try plan(1000), try plan(1_000_000))
        #expect(
          large.scratchByteCount <= (large.path == .pairPanels && large.instructionSet.hasTiles ? 1_400_000 : 700_000))
        #expect(abs(large.scratchByteCount - small.scratchByteCount) <= 250_000)
      }
    }
  }

  @Test(arguments: [(60, 64), (64, 12), (1032, 64), (64, 4096)])
  func refusesOtherDimensions(dimension: Int, valueDimension: Int) throws {
    let problem = try Shape(dimension: dimension, valueDimension: valueDimension).problem(.f32)
    let error = #expect(throws: AttentionError.self) { try CPUPlan(problem) }
    let isValue = dimension == 64
    #expect(
      error?.description
        == "The head dimension of \(isValue ? "values" : "queries and keys") is \(isValue ? valueDimension : dimension); "
        + "the CPU path takes multiples of 8 from 8 to 1024. Pad the dimension with zeros up to the next multiple (and "
        + "keep the scale).")
  }

  @Test func refusesViewsThatWereNotPlanned() throws {
    let problem = try Shape().problem(.f32)
    let plan = try CPUPlan(problem)
    let (q, k, v) = inputs(problem)
    var wrong = problem.outputShape
    wrong.length += 1
    let output = GuardedTensor(wrong, .f32)
    let shape = #expect(throws: AttentionError.self) {
      try plan.run(queries: q.view.readOnly, keys: k.view.readOnly, values: v.view.readOnly, output: output.view)
    }
    #expect(
      shape?.description
        == "output has batch 2, heads 2, length 51, dimension 64, but the plan was made for batch 2, heads 2, length 50, "
        + "dimension 64; make a plan for the new shape.")
    let half = GuardedTensor(problem.keyShape, .f16)
    let type = #expect(throws: AttentionError.self) {
      try plan.run(queries: q.view.readOnly, keys: half.view.readOnly, values: v.view.readOnly, output: output.view)
    }
    #expect(type?.description == "keys is f16, but the plan is f32; convert them to one type.")
    var statistics = [Float](repeating: 0, count: 3)
    let right = GuardedTensor(problem.outputShape, .f32)
    let count = #expect(throws: AttentionError.self) {
      try statistics.withUnsafeMutableBufferPointer {
        try plan.run(
          queries: q.view.readOnly, keys: k.view.readOnly, values: v.view.readOnly, output: right.view, logSumExp: $0)
      }
    }
    #expect(count?.description == "The log-sum-exp buffer holds 3 values; batch x query heads x queries needs 200.")
  }
}
