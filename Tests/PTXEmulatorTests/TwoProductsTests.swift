import AttentionVerification
import PTX
import PTXEmulator
import Testing

/// The two products of attention as Hopper does them, without the maximum: exp2(Q K^T) V of 64 queries and as many tiles
/// of 64 keys as there are, D 64. One warp brings tiles into a ring of two stages, four multiply.
struct TwoProducts {
  static let (rows, dimension, stages) = (64, 64, 2)
  let tiles: Int

  private static let tile = MatrixTile(rows: 64, columns: 64)
  static var sharedByteCount: Int { (1 + 2 * stages) * tile.byteCount + 128 }

  /// 256 threads; parameters are the maps of Q, K and V, the address of O, `[64, 64]` f32, and the number of tiles.
  static func kernel() throws(KernelError) -> Kernel {
    try Kernel.build("two_products", threadsPerBlock: 256) { k in
      let (mapQ, mapK, mapV) = (k.tensorMap("q"), k.tensorMap("k"), k.tensorMap("v"))
      let (output, tiles) = (k.pointer("output"), k.parameter("tiles", U32.self))
      let shared = k.dynamicShared(alignment: 1024)
      let (thread, lane) = (k.special(.threadX), k.special(.lane))
      let bytes = tile.byteCount
      let (keys, values) = (shared + bytes, shared + (1 + stages) * bytes)
      // Of Q; full and empty of K; full and empty of V.
      let first = shared + (1 + 2 * stages) * bytes
      func barriers(_ number: Int) -> Register<U32> { first + (8 + number * stages * 8) }
      k.if(thread .== 0) {
        k.initialize(transactionBarrier: first, arrivals: 1)
        for number in 0..<4 {
          for stage in 0..<stages {
            k.initialize(transactionBarrier: barriers(number), offset: stage * 8, arrivals: number % 2 == 0 ? 1 : 4)
          }
        }
        k.barrierInitializationFence()
      }
      k.barrier()
      let zero = k.constant(0, U32.self)
      k.roles([
        WarpRole("consumer", registers: 240) { _ in
          let q = BarrierRing(k, stages: 1, at: first, as: .consumer)
          let fullK = BarrierRing(k, stages: stages, at: barriers(0), as: .consumer)
          let emptyK = BarrierRing(k, stages: stages, at: barriers(1), as: .consumer)
          let fullV = BarrierRing(k, stages: stages, at: barriers(2), as: .consumer)
          let emptyV = BarrierRing(k, stages: stages, at: barriers(3), as: .consumer)
          let scores = k.accumulators(32)
          let sums = (0..<32).map { _ in k.variable(k.constant(0)) }
          let totals = (0..<2).map { _ in k.variable(k.constant(0)) }
          let ofQ = k.descriptor(tile, at: shared)
          func free(_ ring: BarrierRing) { k.if(lane .== 0) { ring.arrive() } }
          q.wait()
          k.loop(from: zero, to: tiles) { _ in
            fullK.wait()
            let ofK = k.descriptor(tile, at: keys + fullK.stage * bytes)
            k.warpgroupFence()
            for step in 0..<4 {
              k.startProduct(
                .bf16, a: ofQ.step(step), b: ofK.step(step), into: scores, sum: step == 0 ? .never : .always)
            }
            k.commitProducts()
            k.waitForProducts()
            free(emptyK)
            let weights = scores.map { k.exp2($0) }
            for (i, weight) in weights.enumerated() { k.set(totals[i / 2 % 2], to: totals[i / 2 % 2] + weight) }
            let pairs = stride(from: 0, to: 32, by: 2).map {
              k.pack(weights[$0], weights[$0 + 1], as: BF16x2.self).reinterpreted(as: U32.self)
            }
            fullV.wait()
            let ofV = k.descriptor(tile, at: values + fullV.stage * bytes, isTransposed: true)
            k.warpgroupFence()
            for step in 0..<4 {
              k.startProduct(.bf16, a: Array(pairs[step * 4..<step * 4 + 4]), b: ofV.step(step), into: sums)
            }
            k.commitProducts()
            k.waitForProducts()
            free(emptyV)
            for ring in [fullK, emptyK, fullV, emptyV] { ring.advance() }
          }
          let row = (thread / 32) * 16 + lane / 4
          for half in 0..<2 {
            let total = [1, 2].reduce(totals[half]) { $0 + k.shuffle($0, xor: $1) }
            let scale = k.reciprocal(total)
            let place = output + k.multiplyWide(row + half * 8, 256) + k.wide((lane % 4) * 8)
            for column in 0..<8 {
              let i = column * 4 + half * 2
              k.store([sums[i] * scale, sums[i + 1] * scale], global: place, offset: column * 32)
            }
          }
        },
        WarpRole("producer", registers: 24) { _ in
          k.if(thread .== 128) {
            let zero = k.constant(0, S32.self)
            k.arrive(transactionBarrier: first, expecting: bytes)
            k.copy(mapQ, [zero, zero], to: shared, barrier: first)
            let rings = (0..<4).map {
              BarrierRing(k, stages: stages, at: barriers($0), as: $0 % 2 == 0 ? .consumer : .producer)
            }
            k.loop(from: k.constant(0, U32.self), to: tiles) { number in
              let row = (number * 64).reinterpreted(as: S32.self)
              for (full, empty, map, start) in [
                (rings[0], rings[1], mapK, keys), (rings[2], rings[3], mapV, values),
              ] {
                empty.wait()
                full.arrive(expecting: bytes)
                k.copy(map, [zero, row], to: start + full.stage * bytes, barrier: full.current)
                full.advance()
                empty.advance()
              }
            }
          }
        },
      ])
    }
  }

  private func number(_ i: Int, _ subject: Int) -> Float { Float((i * 37 + subject * 11) % 17 - 8) / 16 }
  private func matrix(_ rows: Int, _ subject: Int) -> [[Float]] {
    (0..<rows).map { row in (0..<64).map { number(row * 64 + $0 + row / 3, subject) } }
  }

  func run(_ program: Program, _ schedule: Schedule) throws(Hazard) -> (o: [Float], counters: Counters) {
    let memory = GlobalMemory()
    func map(_ name: String, _ rows: Int, _ subject: Int) -> Launch.Argument {
      // bf16 of numbers that it has exactly.
      let bits = matrix(rows, subject).joined().map { UInt16($0.bitPattern >> 16) }
      let address = memory.allocate(name, bits, access: .readOnly)
      return .tensorMap(
        TensorMap(.bf16, address: address, extents: [64, rows], strides: [128], box: [64, 64], swizzle: .bytes128))
    }
    let arguments = [map("q", 64, 1), map("k", tiles * 64, 2), map("v", tiles * 64, 3)]
    let output = memory.allocate("o", byteCount: 64 * 64 * 4, access: .readWrite)
    let counters = try Emulator.run(
      program,
      Launch(
        blocks: (1, 1, 1), dynamicSharedByteCount: Self.sharedByteCount,
        arguments: arguments + [.pointer(output), .u32(UInt32(tiles))]), memory: memory, schedule: schedule,
      stepLimit: 5_000_000)
    return (memory.read(Float.self, count: 4096, from: output) ?? [], counters)
  }

  var expected: [Double] {
    let (q, k, v) = (matrix(64, 1), matrix(tiles * 64, 2), matrix(tiles * 64, 3))
    return q.flatMap { row -> [Double] in
      let weights = k.map { key in pow2(zip(row, key).reduce(0.0) { $0 + Double($1.0) * Double($1.1) }) }
      let total = weights.reduce(0, +)
      return (0..<64).map { d in zip(weights, v).reduce(0.0) { $0 + $1.0 * Double($1.1[d]) } / total }
    }
  }

  private func pow2(_ x: Double) -> Double {
    // Of a small number, by its series, so that no library is asked.
    let y = x * 0.6931471805599453
    return (1...30).reversed().reduce(1.0) { 1 + y / Double($1) * $0 }
  }

  func isRight(_ o: [Float]) -> Bool {
    o.count == 4096 && zip(o, expected).allSatisfy { (Double($0) - $1).magnitude < 4e-3 }
  }
}

@Suite struct TwoProductsTests {
  @Test(arguments: WarpgroupTests.schedules)
  func attentionByTheCopyEngineAndWgmma(schedule: Schedule) throws {
    let program = Program(try TwoProducts.kernel())
    for tiles in [1, 2, 5] {
      let test = TwoProducts(tiles: tiles)
      let (o, counters) = try test.run(program, schedule)
      #expect(test.isRight(o), "\(tiles) tiles")
      // Each tile of K and V is brought once, and each product reads B once.
      #expect(counters.bulkBytesLoaded == (1 + 2 * tiles) * 8192)
      #expect(counters.traffic["k"]?.bytesRead == tiles * 8192 && counters.traffic["k"]?.sectorsRead == tiles * 256)
      #expect(counters.warpgroupProducts == tiles * 8 * 4)
      #expect(counters.warpgroupOperandBytes == tiles * (2 * 8192 + 8192) && counters.bankConflicts == 0)
    }
  }

  /// Every barrier, wait and fence is needed, in some schedule.
  @Test func everyOrderingIsNeeded() throws {
    let kernel = try TwoProducts.kernel()
    let test = TwoProducts(tiles: 5)
    let survivors = Mutation.survivors(of: kernel, schedules: WarpgroupTests.schedules) {
      (program, schedule) throws(Hazard) in test.isRight(try test.run(program, schedule).o)
    }
    #expect(survivors.isEmpty, "\(survivors)")
  }
}
