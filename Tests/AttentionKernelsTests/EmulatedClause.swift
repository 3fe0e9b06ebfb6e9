import PTXEmulator
import Testing

/// A call of one of the families, on the emulator.
struct EmulatedClause: Sendable, CustomTestStringConvertible {
  let testDescription: String
  let run: @Sendable (Schedule) throws -> Bool

  init(whole name: String, _ make: @escaping @Sendable () throws -> EmulatedAttention) {
    testDescription = name
    run = { try make().run(nil, $0).passes }
  }

  init(cached name: String, _ make: @escaping @Sendable () throws -> EmulatedDecoding) {
    testDescription = name
    run = { try make().run(EmulatedDecoding.Programs(), $0, calls: 2).passes }
  }
}
