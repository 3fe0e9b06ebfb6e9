import PTX
import PTXEmulator
import Testing

@testable import flash_attention

/// What `bench emulator` times, counted: the loops have as many instructions as it divides by, and take the emulator's
/// short way.
@Suite struct EmulatorBenchTests {
  @Test(arguments: BenchEmulatorCommand.instructions.indices) func loopsHaveWhatTheySay(index: Int) throws {
    let (name, count, prepare) = BenchEmulatorCommand.instructions[index]
    func counters(_ prepare: BenchEmulatorCommand.Prepare) throws -> Counters {
      try Emulator.run(
        Program(try BenchEmulatorCommand.kernel(50, prepare)),
        Launch(blocks: (1, 1, 1), dynamicSharedByteCount: 2048, arguments: []), memory: GlobalMemory())
    }
    let full = try counters(prepare)
    let empty = try counters { k, own in
      _ = prepare(k, own)
      return {}
    }
    #expect(full.instructions - empty.instructions == 50 * 4 * count, "\(name)")
    // Words are checked as words; bytes would cost several times as much.
    #expect(full.splitWords == 0 && full.bankConflicts == 0)
  }

  @Test func bytesAreToldApartWhereTheyMustBe() throws {
    let kernel = try BenchEmulatorCommand.kernel(1) { k, own in
      { k.store(k.load(B16.self, shared: own, offset: 2), shared: own, offset: 2) }
    }
    let launch = Launch(blocks: (1, 1, 1), dynamicSharedByteCount: 2048, arguments: [])
    #expect(try Emulator.run(Program(kernel), launch, memory: GlobalMemory()).splitWords == 128)
  }
}
