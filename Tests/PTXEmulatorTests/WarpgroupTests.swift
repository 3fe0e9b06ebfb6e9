import AttentionVerification
import PTX
import PTXEmulator
import Testing

/// `wgmma`, the copy engine and transaction barriers in the emulator.
@Suite struct WarpgroupTests {
  static let schedules: [Schedule] = [
    .roundRobin, .copiesAtOnce, .copiesLate, .firstAhead, .lastAhead, .random(seed: 1), .random(seed: 2),
  ]

  /// Whole numbers, whose sums are exact, in every layout, swizzle and type, and every size.
  @Test(arguments: WarpgroupCheck.all)
  func productsAreRight(check: WarpgroupCheck) throws {
    let (d, counters) = try check.emulate(.whole)
    #expect(d == check.expected(.whole), "\(check)")
    #expect(counters.warpgroupProducts == 4 * check.steps)
  }

  @Test func everySizeIsAmongThem() {
    #expect(Set(WarpgroupCheck.all.map(\.columns)) == Set(stride(from: 8, through: 256, by: 8)))
    #expect(WarpgroupCheck.all.count > 90)
  }

  @Test(arguments: schedules)
  func noOrderIsBlamed(schedule: Schedule) throws {
    for check in WarpgroupCheck.all.prefix(20) {
      #expect(try check.emulate(.whole, schedule: schedule).d == check.expected(.whole), "\(check)")
    }
  }

  /// Every barrier, wait and fence of a kernel is needed: without it, or with less ordering, somebody objects.
  @Test func everyOrderingIsNeeded() throws {
    let check = WarpgroupCheck(.bf16, .f32, columns: 64, left: .shared)
    let kernel = try check.kernel()
    let expected = check.expected(.whole)
    let survivors = Mutation.survivors(of: kernel, schedules: Self.schedules) { (program, schedule) throws(Hazard) in
      do { return try check.emulate(.whole, schedule: schedule, program: program).d == expected } catch {
        throw error as! Hazard
      }
    }
    #expect(survivors.isEmpty, "\(survivors)")
    #expect(Mutation.all(of: kernel).count >= 6)
  }
}

@Suite struct BulkCopyTests {
  /// Every word in shared memory, and every element of the tensors, for all boxes in all orders.
  @Test(arguments: BulkCopyCheck.all)
  func boxesArriveAndLeave(check: BulkCopyCheck) throws {
    let expected = check.expected()
    for schedule in WarpgroupTests.schedules {
      let own = try check.emulate(schedule: schedule)
      #expect(
        own.words == expected.words && own.copy == expected.copy && own.sum == expected.sum, "\(check), \(schedule)")
    }
  }

  @Test func everyOrderingIsNeeded() throws {
    let check = BulkCopyCheck.all[2]
    let expected = check.expected()
    let survivors = Mutation.survivors(of: try check.kernel(), schedules: WarpgroupTests.schedules) {
      (program, schedule) throws(Hazard) in
      do { return try check.emulate(schedule: schedule, program: program) == expected } catch { throw error as! Hazard }
    }
    #expect(survivors.isEmpty, "\(survivors)")
  }
}
