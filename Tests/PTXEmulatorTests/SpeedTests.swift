import PTX
import PTXEmulator
import Testing

/// How long the emulator takes for an instruction of a warp, all checks on. The limits are five times what was measured, for slow
/// and busy machines.
@Suite(.serialized) struct SpeedTests {
  private func nanoseconds(
    _ name: String, perIteration count: Int, _ prepare: (KernelBuilder, Register<U32>) -> (() -> Void)
  ) throws -> Double {
    let iterations = 2000
    func kernel(_ isFull: Bool) throws -> Kernel {
      try Kernel.build("speed", threadsPerBlock: 128) { k in
        let shared = k.dynamicShared()
        let zero = k.constant(0, U32.self)
        let own = shared + k.special(.threadX) * 16
        k.store([zero, zero, zero, zero], shared: own)
        k.barrier()
        let body = prepare(k, own)
        k.loop(from: zero, to: k.constant(iterations, U32.self)) { _ in if isFull { body() } }
      }
    }
    func seconds(_ kernel: Kernel) throws -> Double {
      let program = Program(kernel)
      let launch = Launch(blocks: (1, 1, 1), dynamicSharedByteCount: 2048, arguments: [])
      return try ContinuousClock().measure { _ = try Emulator.run(program, launch, memory: GlobalMemory()) }
        / .seconds(1)
    }
    let time = try (seconds(kernel(true)) - seconds(kernel(false))) / Double(iterations * 4 * count) * 1e9
    print("emulator: \(Int(time)) ns a warp for \(name)")
    return time
  }

  @Test func instructionsAreFast() throws {
    let matrix = try nanoseconds("mma.m16n8k16", perIteration: 4) { k, own in
      let words = k.load(U32.self, count: 4, shared: own)
      let sums = (0..<4).map { _ in k.variable(k.constant(0)) }
      return { for _ in 0..<4 { k.multiplyAdd(.f16, a: words, b: Array(words[0..<2]), into: sums) } }
    }
    let load = try nanoseconds("ld.shared.v4", perIteration: 4) { k, own in
      { for _ in 0..<4 { _ = k.load(U32.self, count: 4, shared: own) } }
    }
    let store = try nanoseconds("st.shared.v4", perIteration: 4) { k, own in
      let words = k.load(U32.self, count: 4, shared: own)
      return { for _ in 0..<4 { k.store(words, shared: own) } }
    }
    let word = try nanoseconds("ld.shared.b32", perIteration: 4) { k, own in
      // Neighbouring lanes read neighbouring words, as they should.
      let neighbour = own - k.special(.threadX) * 12
      return { for _ in 0..<4 { _ = k.load(U32.self, shared: neighbour) } }
    }
    let arithmetic = try nanoseconds("fma.f32", perIteration: 16) { k, _ in
      let sum = k.variable(k.constant(1))
      return { for _ in 0..<16 { _ = k.multiplyAdd(sum, sum, sum) } }
    }
    #expect(matrix < 2_500 && load < 8_000 && store < 12_000 && word < 3_000 && arithmetic < 400)
  }
}
