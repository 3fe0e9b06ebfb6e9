import ExampleKernels
import PTX
import PTXEmulator
import Testing

/// The first proof kernel: a pipelined product on tensor cores.
@Suite struct GEMMKernelTests {
  struct Size: Sendable, CustomTestStringConvertible {
    let rows, columns, depth: Int
    var testDescription: String { "\(rows) x \(columns) x \(depth)" }
  }

  /// Runs a program on random matrices; returns the counters, and the largest error in parts of what may be.
  private func run(
    _ program: Program, _ gemm: GEMMKernel, _ size: Size, _ schedule: Schedule = .roundRobin
  ) throws(Hazard) -> (Counters, error: Double) {
    let (m, n, depth) = (size.rows, size.columns, size.depth)
    func element(_ i: Int, _ seed: Int) -> Float { Float((i * 37 + seed * 11) % 29 - 14) / 8 }
    let memory = GlobalMemory()
    func bits(_ value: Float) -> UInt16 {
      gemm.inputs == .f16 ? Float16(value).bitPattern : UInt16(value.bitPattern >> 16)
    }
    let a = memory.allocate("a", (0..<m * depth).map { bits(element($0, 1)) }, access: .readOnly)
    let b = memory.allocate("b", (0..<n * depth).map { bits(element($0, 2)) }, access: .readOnly)
    let c = memory.allocate("c", byteCount: m * n * 4, access: .readWrite)
    let launch = Launch(
      blocks: gemm.blocks(rows: m, columns: n), dynamicSharedByteCount: gemm.sharedByteCount,
      arguments: [
        .pointer(a), .pointer(b), .pointer(c), .u32(UInt32(m)), .u32(UInt32(n)), .u32(UInt32(depth)),
      ])
    let counters = try Emulator.run(program, launch, memory: memory, schedule: schedule)
    guard let result = memory.read(Float.self, count: m * n, from: c) else { return (counters, .infinity) }
    var worst = 0.0
    for i in 0..<m {
      for j in 0..<n {
        var exact = 0.0
        for k in 0..<depth { exact += Double(element(i * depth + k, 1)) * Double(element(j * depth + k, 2)) }
        // All products and sums are multiples of 1/64 far below 2^24: exact in any order.
        worst = max(worst, (Double(result[i * n + j]) - exact).magnitude)
      }
    }
    return (counters, worst)
  }

  @Test(
    arguments: [Size(rows: 64, columns: 64, depth: 64), Size(rows: 70, columns: 136, depth: 200)],
    Matrix.Inputs.allCases)
  func computesTheProduct(size: Size, inputs: Matrix.Inputs) throws {
    for stages in 2...4 {
      let gemm = GEMMKernel(stages: stages, inputs: inputs)
      let program = Program(try gemm.kernel())
      for schedule in [Schedule.roundRobin, .random(seed: 7)] {
        #expect(try run(program, gemm, size, schedule).error == 0)
      }
    }
  }

  @Test func readsEachTileOnceWithoutConflicts() throws {
    let gemm = GEMMKernel(stages: 3)
    let size = Size(rows: 128, columns: 192, depth: 256)
    let (counters, error) = try run(Program(try gemm.kernel()), gemm, size)
    #expect(error == 0)
    #expect(counters.bankConflicts == 0 && counters.sharedPasses > 0)
    // 2 x 3 blocks; each reads its 64 rows of A and of B once, in whole sectors.
    let a = try #require(counters.traffic["a"])
    let b = try #require(counters.traffic["b"])
    #expect(a.bytesRead == 3 * 128 * 256 * 2 && a.sectorsRead == a.bytesRead / 32)
    #expect(b.bytesRead == 2 * 192 * 256 * 2 && b.sectorsRead == b.bytesRead / 32)
    #expect(counters.traffic["c"]?.bytesWritten == 128 * 192 * 4)
    #expect(counters.matrixInstructions == (128 / 16) * (192 / 8) * (256 / 16))
    // One barrier a slice, by each of 4 warps.
    #expect(counters.barriers == 6 * 4 * (256 / 64))
  }

  @Test(arguments: 2...4)
  func everyMutationIsCaught(stages: Int) throws {
    let gemm = GEMMKernel(stages: stages)
    let kernel = try gemm.kernel()
    #expect(!Mutation.all(of: kernel).isEmpty)
    let survivors = Mutation.survivors(of: kernel) { (program, schedule) throws(Hazard) in
      try run(program, gemm, Size(rows: 64, columns: 64, depth: 64 * 6), schedule).error == 0
    }
    #expect(survivors.isEmpty, "\(survivors)")
  }
}
