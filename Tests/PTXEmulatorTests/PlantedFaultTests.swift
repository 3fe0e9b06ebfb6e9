import Foundation
import PTX
import PTXEmulator
import Testing

@Suite struct PlantedFaultTests {
  static let schedules = [Schedule.roundRobin] + (1...4).map { Schedule.random(seed: $0) }

  /// Each fault is found, as what it is and where it is, in whatever order the warps run.
  @Test(arguments: PlantedFault.all)
  func isFound(_ fault: PlantedFault) throws {
    let (kernel, lines) = try fault.kernel(isFaulty: true)
    for schedule in Self.schedules {
      let hazard = #expect(throws: Hazard.self) { try fault.run(kernel, schedule) }
      #expect(hazard?.kind == fault.kind, "\(schedule): \(hazard?.description ?? "")")
      #expect(hazard?.location.map { lines.contains($0.line) } == true, "\(schedule): \(hazard?.description ?? "")")
      #expect(hazard?.location?.file == "PTXEmulatorTests/PlantedFaults.swift")
    }
  }

  /// The same kernel without the fault is not blamed.
  @Test(arguments: PlantedFault.all)
  func theCleanTwinIsNotBlamed(_ fault: PlantedFault) throws {
    let (kernel, _) = try fault.kernel(isFaulty: false)
    for schedule in Self.schedules { try fault.run(kernel, schedule) }
  }

  @Test func everyKindOfHazardIsPlanted() {
    // A launch that does not fit is found before the kernel runs.
    let planted = Set(PlantedFault.all.map(\.kind)).union(HopperFault.all.flatMap(\.kinds))
    #expect(planted.union([.launch]) == Set(Hazard.Kind.allCases))
  }

  /// The table in the documentation is what the emulator says.
  @Test func theTableInTheDocumentationIsTrue() throws {
    var table = "| planted fault | detected as | at |\n|---|---|---|\n"
    for fault in PlantedFault.all {
      let (kernel, _) = try fault.kernel(isFaulty: true)
      let hazard = #expect(throws: Hazard.self) { try fault.run(kernel, .roundRobin) }
      let instruction = hazard.map { $0.instruction.split(separator: " ").first ?? "" } ?? ""
      table +=
        "| \(fault.name) | \(hazard?.kind.rawValue ?? "") | `\(hazard?.location?.description ?? "")`, `\(instruction)` |\n"
    }
    let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent()
    let page = try String(contentsOf: root.appending(path: "Documentation/Emulator.md"), encoding: .utf8)
    if !page.contains(table) {
      let place = FileManager.default.temporaryDirectory.appending(path: "planted-faults.md")
      try table.write(to: place, atomically: true, encoding: .utf8)
      Issue.record("The table in Documentation/Emulator.md is not up to date; the new one is in \(place.path).")
    }
  }

  @Test func messagesNameBothSides() throws {
    let fault = PlantedFault.all[0]
    let hazard = #expect(throws: Hazard.self) { try fault.run(fault.kernel(isFaulty: true).0, .roundRobin) }
    let text = try #require(hazard?.description)
    #expect(text.contains(" race: shared address ") && text.contains(" was read by block 0, warp 1, lane "))
    #expect(text.contains("and nothing orders the two") && text.contains("`st.shared.b32"))
  }

  /// Out of bounds in ways that a careless check would trap on.
  @Test func farOutOfBounds() throws {
    for (offset, count, bytes) in [(0, 4, 4), (Int.max, 1, 64), (Int.min, 1, 64), (60, 2, 64)] {
      let kernel = try Kernel.build("far", threadsPerBlock: 32) { k in
        let x = k.pointer("x") + k.constant(offset, U64.self)
        _ = k.load(U32.self, count: count, global: x)
      }
      let memory = GlobalMemory()
      let x = memory.allocate("x", [UInt8](repeating: 0, count: bytes), access: .readWrite)
      let hazard = #expect(throws: Hazard.self) {
        try Emulator.run(Program(kernel), Launch(blocks: (1, 1, 1), arguments: [.pointer(x)]), memory: memory)
      }
      #expect(hazard?.kind == .outOfBounds)
    }
  }

  @Test func aLaunchThatDoesNotFitIsRefused() throws {
    let (kernel, _) = try PlantedFault.all[0].kernel(isFaulty: false)
    let memory = GlobalMemory()
    func refuse(_ launch: Launch) -> String? {
      do {
        _ = try Emulator.run(Program(kernel), launch, memory: memory)
        return nil
      } catch { return error.message }
    }
    #expect(refuse(Launch(blocks: (1, 1, 1), arguments: [])) == "planted takes 3 arguments; 0 were given")
    let word = Launch.Argument.u32(1)
    #expect(
      refuse(Launch(blocks: (1, 1, 1), arguments: [word, word, word]))
        == "argument 'input' is u32(1), which the kernel does not expect")
    #expect(
      refuse(Launch(blocks: (0, 1, 1), arguments: [.pointer(0), .pointer(0), .pointer(0)]))
        == "a grid of 0 x 1 x 1 blocks is impossible; y and z have 1 to 65535, x at least 1")
    #expect(
      refuse(
        Launch(blocks: (1, 1, 1), dynamicSharedByteCount: 1 << 20, arguments: [.pointer(0), .pointer(0), .pointer(0)]))
        == "a block is given 1048576 bytes of shared memory; no GPU has more than 232448")
  }
}
