import ExampleKernels
import Foundation
import PTX
import PTXEmulator
import Testing

/// The second proof kernel: a reduction through lanes, warps and shared memory.
@Suite struct SoftmaxKernelTests {
  private func run(
    _ program: Program, rows: [[Float]], _ schedule: Schedule = .roundRobin
  ) throws(Hazard) -> (Counters, results: [[Float]]?) {
    let columns = rows[0].count
    let memory = GlobalMemory()
    let x = memory.allocate("x", rows.flatMap { $0 }, access: .readOnly)
    let y = memory.allocate("y", byteCount: rows.count * columns * 4, access: .readWrite)
    let counters = try Emulator.run(
      program,
      Launch(blocks: (rows.count, 1, 1), arguments: [.pointer(x), .pointer(y), .u32(UInt32(columns))]),
      memory: memory, schedule: schedule)
    let flat = memory.read(Float.self, count: rows.count * columns, from: y)
    return (counters, flat.map { flat in rows.indices.map { Array(flat[$0 * columns..<($0 + 1) * columns]) } })
  }

  private func error(_ row: [Float], _ result: [Float]) -> Double {
    let largest = row.map(Double.init).max()!
    let weights = row.map { largest == -.infinity ? 0 : exp(Double($0) - largest) }
    let sum = weights.reduce(0, +)
    return zip(result, weights).map { (Double($0) - (sum == 0 ? 0 : $1 / sum)).magnitude }.max()!
  }

  @Test(arguments: [32, 128], [1, 31, 128, 500])
  func computesTheSoftmax(threads: Int, columns: Int) throws {
    let program = Program(try SoftmaxKernel(threads: threads).kernel())
    let rows: [[Float]] = [
      (0..<columns).map { Float(($0 * 13) % 17) - 8 },
      (0..<columns).map { Float($0 % 5) * 40 + 1000 },
      .init(repeating: -.infinity, count: columns),
      (0..<columns).map { $0 % 3 == 0 ? -.infinity : Float($0) / 100 },
    ]
    for schedule in [Schedule.roundRobin, .random(seed: 3)] {
      let (counters, results) = try run(program, rows: rows, schedule)
      for (row, result) in zip(rows, try #require(results)) { #expect(error(row, result) < 1e-4) }
      #expect(counters.bankConflicts == 0)
    }
  }

  @Test func everyMutationIsCaught() throws {
    let kernel = try SoftmaxKernel().kernel()
    let row = (0..<300).map { Float($0 % 7) }
    let survivors = Mutation.survivors(of: kernel) { (program, schedule) throws(Hazard) in
      let results = try run(program, rows: [row], schedule).results
      return results.map { error(row, $0[0]) < 1e-4 } ?? false
    }
    #expect(Mutation.all(of: kernel).count == 1 && survivors.isEmpty, "\(survivors)")
  }
}
