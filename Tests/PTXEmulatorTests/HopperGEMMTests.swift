import AttentionVerification
import ExampleKernels
import PTX
import PTXEmulator
import Testing

/// The proof of Hopper's instructions: a product by the copy engine and `wgmma`.
@Suite struct HopperGEMMTests {
  private static let kernels: [HopperGEMMKernel] = [
    HopperGEMMKernel(.bf16), HopperGEMMKernel(.f16, right: .plain),
    HopperGEMMKernel(.bf16, right: .plain, columns: 128, stages: 2), HopperGEMMKernel(.f16, groups: 3, columns: 128),
  ]

  @Test(arguments: kernels)
  func computesTheProduct(kernel: HopperGEMMKernel) throws {
    for (rows, columns, depth, blocks) in [(8, 8, 8, 9), (200, 264, 136, 9), (72, 520, 328, 2)] {
      let check = GEMMCheck(kernel, rows: rows, columns: columns, depth: depth)
      #expect(try check.emulate(.whole, blocks: blocks).c == check.expected(.whole), "\(check)")
    }
  }

  /// Each slice of a tile is brought once, and nothing has bank conflicts.
  @Test(arguments: WarpgroupTests.schedules)
  func noOrderIsBlamed(schedule: Schedule) throws {
    let check = GEMMCheck(HopperGEMMKernel(.bf16), rows: 136, columns: 512, depth: 200)
    let (c, counters) = try check.emulate(.whole, blocks: 1, schedule: schedule)
    #expect(c == check.expected(.whole))
    // 2 x 2 tiles of 4 slices.
    #expect(counters.bulkBytesLoaded == 16 * (128 + 256) * 128 && counters.bankConflicts == 0)
    #expect(counters.traffic["c"]?.bytesWritten == 136 * 512 * 2)
    #expect(counters.warpgroupProducts == 16 * 4 * 8)
  }

  /// Every barrier, wait and fence is needed: more slices than stages, more tiles than one.
  @Test func everyOrderingIsNeeded() throws {
    let kernel = HopperGEMMKernel(.bf16, columns: 128, stages: 2)
    let check = GEMMCheck(kernel, rows: 128, columns: 256, depth: 192)
    let expected = check.expected(.whole)
    let survivors = Mutation.survivors(of: try kernel.kernel(), schedules: WarpgroupTests.schedules) {
      (program, schedule) throws(Hazard) in
      do { return try check.emulate(.whole, blocks: 1, schedule: schedule, program: program).c == expected } catch {
        throw error as! Hazard
      }
    }
    #expect(survivors.isEmpty, "\(survivors)")
  }

  @Test func otherSizesAreRefused() {
    #expect(
      HopperGEMMKernel().obstacle(rows: 128, columns: 100, depth: 64)
        == "N is 100; this product takes multiples of 8 from 8 on.")
    #expect(HopperGEMMKernel().obstacle(rows: 128, columns: 104, depth: 64) == nil)
  }
}
