import Foundation
import PTX
import PTXEmulator
import Testing

@Suite struct HopperFaultTests {
  private func found(_ fault: HopperFault, _ schedule: Schedule) throws -> Hazard? {
    do {
      try fault.run(try fault.kernel(isFaulty: true), schedule)
      return nil
    } catch let hazard as Hazard { return hazard }
  }

  /// Each fault is found as what it is, in every order; those that luck decides, in one at least.
  @Test(arguments: HopperFault.all)
  func isFound(_ fault: HopperFault) throws {
    var times = 0
    for schedule in WarpgroupTests.schedules {
      guard let hazard = try found(fault, schedule) else { continue }
      times += 1
      #expect(fault.kinds.contains(hazard.kind), "\(schedule): \(hazard)")
    }
    #expect(fault.needsLuck ? times > 0 : times == WarpgroupTests.schedules.count, "found \(times) times")
  }

  /// The same kernel without the fault is not blamed, in whatever order.
  @Test(arguments: HopperFault.all)
  func theCleanTwinIsNotBlamed(_ fault: HopperFault) throws {
    let kernel = try fault.kernel(isFaulty: false)
    for schedule in WarpgroupTests.schedules { try fault.run(kernel, schedule) }
  }

  @Test func thereAreMany() {
    #expect(HopperFault.all.count >= 40 && Set(HopperFault.all.map(\.name)).count == HopperFault.all.count)
  }

  /// The table in the documentation is what the emulator says.
  @Test func theTableInTheDocumentationIsTrue() throws {
    var table = "| planted fault | detected as | at |\n|---|---|---|\n"
    for fault in HopperFault.all {
      let schedule = try #require(WarpgroupTests.schedules.first { try found(fault, $0) != nil })
      let hazard = try #require(try found(fault, schedule))
      let instruction = hazard.instruction.split(separator: " ").first ?? ""
      table +=
        "| \(fault.name) | \(hazard.kind.rawValue) | `\(instruction)`\(fault.needsLuck ? ", in some orders" : "") |\n"
    }
    let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent()
    let page = try String(contentsOf: root.appending(path: "Documentation/Emulator.md"), encoding: .utf8)
    if !page.contains(table) {
      let place = FileManager.default.temporaryDirectory.appending(path: "planted-hopper-faults.md")
      try table.write(to: place, atomically: true, encoding: .utf8)
      Issue.record(
        "The table of Hopper's faults in Documentation/Emulator.md is not up to date; the new one is in \(place.path).")
    }
  }
}
