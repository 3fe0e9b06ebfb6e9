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

  /// Sums of any numbers have the bits that a GPU gives them (an H100, 2026-11-28; `verify --emulate` compares all).
  @Test(
    arguments: [
      (WarpgroupCheck(.bf16, .f32, columns: 64, left: .shared), 1_082_791_181_625_817_070),
      (WarpgroupCheck(.f16, .f32, columns: 64, left: .registers), 6_469_652_294_377_743_727),
      (WarpgroupCheck(.f16, .f16, columns: 64, left: .shared), 15_700_878_523_805_934_373),
      (WarpgroupCheck(.e4m3, .f32, columns: 64, left: .shared), 10_184_606_373_737_447_205),
      (WarpgroupCheck(.e4m3, .f16, columns: 64, left: .registers), 17_196_822_774_072_435_493),
    ] as [(WarpgroupCheck, UInt64)])
  func sumsAreThoseOfTheHardware(check: WarpgroupCheck, digest: UInt64) throws {
    let d = try check.emulate(.any(seed: 3)).d
    // FNV-1a, word by word.
    #expect(
      d.reduce(14_695_981_039_346_656_037) { ($0 ^ UInt64($1.bitPattern)) &* 1_099_511_628_211 } == digest, "\(check)")
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
