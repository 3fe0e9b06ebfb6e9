import FlashAttention
import PTX
import PTXEmulator
import Testing

@testable import AttentionKernels

/// Whatever the lists of numbers in the GPU's memory say, no kernel reads or writes outside the tensors of its call:
/// lengths, page numbers, places in the cache, starts, paddings and positions of every kind of garbage, in every kernel
/// that reads them.
@Suite struct GarbageTests {
  typealias Clause = DecodeKernelTests.Clause

  static let clauses: [Clause] = [
    Clause("lengths, batch index, padding") {
      try EmulatedDecoding(
        lengths: [90, 3, 40], heads: 2, dimension: 16, capacity: 96, batchIndex: [2, 0, 3], leftPadding: [5, 0, 40])
    },
    Clause("one sequence: its length, place and padding") {
      try EmulatedDecoding(
        lengths: [90], heads: 2, dimension: 16, capacity: 96, batchIndex: [2], leftPadding: [5])
    },
    Clause("more sequences than lanes") {
      try EmulatedDecoding(
        lengths: (0..<35).map { $0 * 5 % 31 }, dimension: 16, capacity: 32, batchIndex: (0..<35).map { 34 - $0 },
        leftPadding: (0..<35).map { $0 * 5 % 31 / 2 })
    },
    Clause("pages of whole steps") {
      try EmulatedDecoding(
        lengths: [90, 3, 40], dimension: 16, pageSize: 32, capacity: 96, combination: .launchBehind)
    },
    Clause("pages of any size, padding, e4m3") {
      try EmulatedDecoding(
        lengths: [90, 3, 40], dimension: 16, pageSize: 3, capacity: 96, leftPadding: [5, 0, 40], cacheType: .e4m3,
        hasScales: true)
    },
    Clause("packed queries and keys") {
      try EmulatedDecoding(
        lengths: [90, 3, 40], queryCounts: [2, 0, 5], dimension: 16, capacity: 96, hasPackedKeys: true,
        mask: .window(left: 40, right: 0), target: .sm80, combination: .launchBehind)
    },
    Clause("packed keys, padding") {
      try EmulatedDecoding(
        lengths: [90, 3, 40], queries: 2, dimension: 16, capacity: 96, hasPackedKeys: true, leftPadding: [5, 0, 40])
    },
    Clause("append, turned, to places of the cache") {
      try EmulatedDecoding(
        lengths: [80, 3, 40], heads: 2, queries: 3, dimension: 16, capacity: 96, batchIndex: [2, 0, 3],
        new: .init(
          counts: [3, 3, 3], rotary: RotaryEmbedding(dimension: 16, isInterleaved: true, positions: 99),
          positions: [80, 3, 96]))
    },
    Clause("append packed keys to pages, packed queries, e4m3") {
      try EmulatedDecoding(
        lengths: [80, 3, 40], queryCounts: [2, 0, 5], dimension: 16, pageSize: 16, capacity: 96,
        new: .init(
          counts: [3, 0, 7], isPacked: true,
          rotary: RotaryEmbedding(dimension: 16, isInterleaved: false, positions: 99)), cacheType: .e4m3,
        queryType: .e4m3, hasScales: true)
    },
    Clause("append to pages, splits of a fixed length") {
      try EmulatedDecoding(
        lengths: [80, 3, 40], dimension: 16, pageSize: 48, capacity: 96, new: .init(counts: [3, 3, 3]),
        keysPerSplit: 64)
    },
    Clause("parts are left, chunks") {
      try EmulatedDecoding(
        lengths: [80, 3, 40], queries: 4, dimension: 16, capacity: 96, mask: .chunks(of: 30), batchIndex: [2, 0, 3],
        keysPerSplit: 64, leavesParts: true)
    },
    Clause("whole problems: batch index") {
      try EmulatedDecoding(
        lengths: [80, 3, 40], queries: 20, dimension: 16, capacity: 96, batchIndex: [2, 0, 3],
        family: ForwardFamily.name)
    },
    Clause("whole problems: packed queries and keys, chunks") {
      try EmulatedDecoding(
        lengths: [80, 3, 40], queryCounts: [20, 0, 5], dimension: 16, capacity: 96, hasPackedKeys: true,
        mask: .chunks(of: 30), family: ForwardFamily.name)
    },
    Clause("whole problems: warps share rows") {
      try EmulatedDecoding(
        lengths: [80, 3, 40], queryCounts: [20, 0, 5], dimension: 16, capacity: 96,
        mask: .window(left: nil, right: 3), batchIndex: [2, 0, 3], changes: "rung=split-kv,warps=4",
        family: ForwardFamily.name)
    },
    Clause("Hopper: batch index") {
      try EmulatedDecoding(
        lengths: [80, 3, 40], queries: 70, dimension: 16, capacity: 96, batchIndex: [2, 0, 3],
        family: HopperForwardFamily.name)
    },
    Clause("Hopper: packed queries and keys, chunks") {
      try EmulatedDecoding(
        lengths: [80, 3, 40], queryCounts: [70, 0, 5], dimension: 16, capacity: 96, hasPackedKeys: true, keyGap: 5,
        mask: .chunks(of: 30), family: HopperForwardFamily.name)
    },
    Clause("Hopper: pages, packed queries") {
      try EmulatedDecoding(
        lengths: [80, 3, 40], queryCounts: [70, 0, 5], dimension: 16, pageSize: 16, capacity: 96,
        family: HopperForwardFamily.name)
    },
  ]

  @Test(arguments: clauses) func nothingOutsideTheTensorsIsTouched(clause: Clause) throws {
    let decoding = try clause.make()
    var random = Numbers(state: 15)
    for _ in 0..<30 {
      var lists = EmulatedDecoding.Lists(decoding.scenario)
      lists.spoil(&random, near: [decoding.problem.keys, decoding.problem.keyShape.batch, 100])
      do { _ = try decoding.run(lists: lists) } catch {
        Issue.record("\(error), with \(lists)")
        return
      }
    }
  }

  /// Zeros stand for keys on a page that does not exist, nothing is written there, and other sequences do not notice.
  @Test(arguments: [16, 3]) func aWrongPageHarmsItsSequenceAlone(pageSize: Int) throws {
    for (new, family) in [
      (nil, DecodeFamily.name), (EmulatedDecoding.New(counts: [3, 3, 3]), DecodeFamily.name),
      (nil, HopperForwardFamily.name),
    ] where family == DecodeFamily.name || pageSize == 16 {
      let decoding = try EmulatedDecoding(
        lengths: [85, 30, 40], queries: family == DecodeFamily.name ? 1 : 70, dimension: 16, pageSize: pageSize,
        capacity: 96,
        new: new, family: family)
      let right = try decoding.run()
      #expect(right.passes)
      for wrong in [-1, Int(Int32.min), decoding.problem.keyShape.batch] {
        var lists = EmulatedDecoding.Lists(decoding.scenario)
        // The page of the last key.
        lists.pageTable![(85 + (new == nil ? -1 : 2)) / pageSize] = wrong
        let outcome = try decoding.run(lists: lists)
        let ofSequence = outcome.bits.count / 3
        #expect(outcome.bits.dropFirst(ofSequence) == right.bits.dropFirst(ofSequence))
        #expect(outcome.bits.prefix(ofSequence) != right.bits.prefix(ofSequence))
        #expect(outcome.bits.allSatisfy { !BFloat16(bitPattern: $0).asFloat.isNaN })
      }
    }
  }

  private struct Numbers: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return state ^ state >> 29
    }
  }
}
