import Attention
import AttentionKernels
import PTX
import PTXEmulator
import Testing

/// Every rung of the ladder fulfils the contract, with every way of laying out, keeping, storing and summing.
@Suite struct LadderTests {
  /// The values that may be combined; every pair of them that there can be occurs in some case.
  struct Case: Hashable, Sendable, CustomTestStringConvertible {
    var rung = 0, stages = 0, slices = 0, rowTiles = 0, layout = 0, queries = 0, store = 0, sums = 0, type = 0
    var clause = 0

    static let axes: [(name: String, path: any WritableKeyPath<Case, Int> & Sendable, values: [String])] = [
      ("rung", \.rung, Rung.allCases.map(\.description)), ("stages", \.stages, ["1 stage", "2 stages", "3 stages"]),
      ("slices", \.slices, ["1 slice", "2 slices"]), ("row tiles", \.rowTiles, ["1 row tile", "2 row tiles"]),
      ("layout", \.layout, SharedTile.Layout.allCases.map(\.rawValue)),
      ("Q", \.queries, ["Q in registers", "Q read again"]),
      ("store", \.store, ["O through shared memory", "O by shuffles"]), ("sums", \.sums, ["f32 sums", "f16 sums"]),
      ("type", \.type, ["f16", "bf16"]), ("clause", \.clause, clauses.map(\.testDescription)),
    ]

    static let clauses = ForwardKernelTests.clauses.filter(\.fitsEveryRung)

    var tiling: ForwardTiling {
      var tiling = ForwardTiling(
        rowTilesPerWarp: rowTiles + 1, tileKeys: 32, stages: stages + 1, slices: slices + 1,
        layout: SharedTile.Layout.allCases[layout], keepsQueries: queries == 0,
        store: ForwardTiling.Store.allCases[store], sums: sums == 0 ? .f32 : .f16, blocksPerMultiprocessor: 1)
      // What the rung would set by itself is put back, so that refusals are seen.
      let (keepsQueries, slices) = (tiling.keepsQueries, tiling.slices)
      if Rung.allCases[rung].splitsKeys { tiling.warpTiling = .queriesAndKeys(columns: 2) }
      tiling.rung = Rung.allCases[rung]
      (tiling.keepsQueries, tiling.slices) = (keepsQueries, slices)
      return tiling
    }

    var attention: EmulatedAttention {
      get throws { try Self.clauses[clause].make().with(tiling, type == 0 ? .f16 : .bf16) }
    }

    var testDescription: String { Self.axes.map { $0.values[self[keyPath: $0.path]] }.joined(separator: ", ") }

    /// The pairs of values that no kernel has, with what the refusal says.
    static func refusal(_ a: (axis: Int, value: Int), _ b: (axis: Int, value: Int)) -> String? {
      let names = Set([axes[a.axis].values[a.value], axes[b.axis].values[b.value]])
      if names == ["bf16", "f16 sums"] { return "has sums in f16, which the tensor cores make of f16 inputs alone" }
      if names.contains("Q read again") && names.contains(where: { $0.hasSuffix("shared-qkv") }) {
        return "puts K and V where Q was, so Q must be in registers (queries=registers)"
      }
      if names.contains("2 slices") && names.contains(where: { ["split-q", "split-kv"].contains($0) }) {
        return "has slices, which K and V come in only where they share memory (a rung with shared-kv or shared-qkv)"
      }
      return nil
    }

    var values: [(axis: Int, value: Int)] {
      Self.axes.indices.map { ($0, self[keyPath: Self.axes[$0].path]) }
    }

    var isPossible: Bool {
      values.allSatisfy { a in values.allSatisfy { b in a.axis >= b.axis || Self.refusal(a, b) == nil } }
    }
  }

  /// A pair of values of two axes.
  struct Pair: Hashable {
    let firstAxis, firstValue, secondAxis, secondValue: Int
  }

  private static func pairs(of test: Case) -> Set<Pair> {
    var pairs: Set<Pair> = []
    for a in test.values {
      for b in test.values where a.axis < b.axis {
        pairs.insert(Pair(firstAxis: a.axis, firstValue: a.value, secondAxis: b.axis, secondValue: b.value))
      }
    }
    return pairs
  }

  private static let allPairs: [Pair] = {
    var pairs: [Pair] = []
    for first in Case.axes.indices {
      for second in Case.axes.indices where first < second {
        for a in Case.axes[first].values.indices {
          for b in Case.axes[second].values.indices {
            pairs.append(Pair(firstAxis: first, firstValue: a, secondAxis: second, secondValue: b))
          }
        }
      }
    }
    return pairs
  }()

  /// Greedy: each case starts from a pair that none has had, and takes of every other axis the value that brings the
  /// most new pairs.
  static let cases: [Case] = {
    var missing = Set(
      allPairs.filter { Case.refusal(($0.firstAxis, $0.firstValue), ($0.secondAxis, $0.secondValue)) == nil })
    var cases: [Case] = []
    for pair in allPairs where missing.contains(pair) {
      var test = Case()
      var isSet = Set([pair.firstAxis, pair.secondAxis])
      test[keyPath: Case.axes[pair.firstAxis].path] = pair.firstValue
      test[keyPath: Case.axes[pair.secondAxis].path] = pair.secondValue
      for axis in Case.axes.indices.reversed() where !isSet.contains(axis) {
        func gain(_ value: Int) -> Int {
          var changed = test
          changed[keyPath: Case.axes[axis].path] = value
          let chosen = changed.values.filter { isSet.contains($0.axis) }
          if chosen.contains(where: { Case.refusal($0, (axis, value)) != nil }) { return -1 }
          let new = chosen.filter { other in
            let (a, b) = other.axis < axis ? (other, (axis: axis, value: value)) : ((axis: axis, value: value), other)
            return missing.contains(
              Pair(firstAxis: a.axis, firstValue: a.value, secondAxis: b.axis, secondValue: b.value))
          }
          return new.count
        }
        // Values take turns where they are equally good.
        let values = Case.axes[axis].values.indices
        let turned = values.map { ($0 + cases.count) % values.count }
        test[keyPath: Case.axes[axis].path] = turned.max { gain($0) < gain($1) }!
        isSet.insert(axis)
      }
      precondition(test.isPossible)
      cases.append(test)
      missing.subtract(pairs(of: test))
    }
    return cases
  }()

  @Test(arguments: cases)
  func fulfilsTheContract(test: Case) throws {
    let attention = try test.attention
    let program = Program(try attention.plan.kernel())
    let isConflictFree = attention.isConflictFree
    #expect(isConflictFree || test.layout == 1)
    for schedule in [Schedule.roundRobin, .random(seed: 7)] {
      let outcome = try attention.run(program, schedule)
      #expect(outcome.passes, "output \(outcome.output), log-sum-exp \(outcome.logSumExp), \(outcome.isConfined)")
      #expect(outcome.counters.bankConflicts == 0 || !isConflictFree)
    }
  }

  /// Prints how many cases each pair of values occurs in.
  @Test func everyPairOccurs() {
    #expect(Self.cases.count <= 1500)
    var counts: [Pair: Int] = [:]
    for test in Self.cases { for pair in Self.pairs(of: test) { counts[pair, default: 0] += 1 } }
    print(
      "\(Self.cases.count) cases; each pair of values in as many of them as the table says, - where there is no such kernel."
    )
    for (second, axis) in Case.axes.enumerated() {
      for (b, value) in axis.values.enumerated() where second > 0 {
        let cells = Case.axes[..<second].enumerated().map { first, other in
          other.values.indices.map { a in
            counts[Pair(firstAxis: first, firstValue: a, secondAxis: second, secondValue: b)].map { "\($0)" } ?? "-"
          }.joined(separator: " ")
        }
        print("\(value): " + cells.joined(separator: " | "))
      }
    }
    for pair in Self.allPairs {
      let isRefused =
        Case.refusal((pair.firstAxis, pair.firstValue), (pair.secondAxis, pair.secondValue)) != nil
      #expect((counts[pair] == nil) == isRefused)
    }
  }

  /// What there is no kernel for is refused by name, before anything runs.
  @Test func refusesByName() throws {
    for pair in Self.allPairs {
      guard let reason = Case.refusal((pair.firstAxis, pair.firstValue), (pair.secondAxis, pair.secondValue)) else {
        continue
      }
      var test = Case()
      test[keyPath: Case.axes[pair.firstAxis].path] = pair.firstValue
      test[keyPath: Case.axes[pair.secondAxis].path] = pair.secondValue
      if test.slices == 1 && test.rung == 0 { test.queries = 0 }
      let tiling = test.tiling
      #expect(throws: AttentionError.tiling("\(tiling)", reason: reason)) { try test.attention }
    }
  }

  /// Kernels that differ in their barriers, waits and fences: none of these may go unnoticed.
  static let mutated: [Case] = {
    var list: [Case] = []
    for rung in Rung.allCases.indices {
      for stages in 0..<3 {
        for (slices, queries, store) in [(0, 0, 0), (1, 1, 0), (1, 0, 1)] {
          var test = Case(rung: rung, stages: stages, slices: slices, queries: queries, store: store)
          if Rung.allCases[rung].sharing == .none { test.slices = 0 }
          if Rung.allCases[rung].sharing == .queriesKeysAndValues { test.queries = 0 }
          if !list.contains(test) { list.append(test) }
        }
      }
    }
    return list
  }()

  @Test(arguments: mutated)
  func everyMutationIsCaught(test: Case) throws {
    let attention = try EmulatedAttention(problem(queries: 70, keys: 150, dimension: 72, valueDimension: 64))
      .with(test.tiling, .f16)
    let kernel = try attention.plan.kernel()
    #expect(Mutation.all(of: kernel).count >= 3)
    let survivors = Mutation.survivors(of: kernel) { (program, schedule) throws(Hazard) in
      try attention.run(program, schedule).passes
    }
    #expect(survivors.isEmpty, "\(survivors)")
  }
}
