internal import ArgumentParser
internal import AttentionBenchmarks
internal import PTX
internal import PTXEmulator

struct BenchEmulatorCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "emulator",
    abstract: "Measure the emulator: the time of an instruction of a warp, with all its checks.",
    discussion: "Each number is of a loop with the instruction, less that of the same loop without, for four warps.")

  @Option(help: "Turns of the loop.")
  var iterations = 2000

  func validate() throws {
    guard (1...10_000_000).contains(iterations) else {
      throw ValidationError("--iterations is \(iterations); it must be from 1 to 10000000.")
    }
  }

  func run() throws {
    var rows: [[String]] = [["instruction", "a warp"]]
    for (name, count, prepare) in Self.instructions {
      let kernels = [
        try Self.kernel(iterations, prepare),
        try Self.kernel(iterations) { k, own in
          _ = prepare(k, own); return {}
        },
      ]
      let times = try kernels.map { kernel in
        let program = Program(kernel)
        return try elapsedSeconds {
          _ = try Emulator.run(
            program, Launch(blocks: (1, 1, 1), dynamicSharedByteCount: 2048, arguments: []), memory: GlobalMemory())
        }
      }
      rows.append([name, "\(Int((times[0] - times[1]) / Double(iterations * 4 * count) * 1e9)) ns"])
    }
    print(table(rows))
  }

  typealias Prepare = (KernelBuilder, Register<U32>) -> (() -> Void)

  /// A kernel of four warps that repeats what `prepare` returns, which gets a place in shared memory for each thread.
  static func kernel(_ iterations: Int, _ prepare: Prepare) throws(KernelError) -> Kernel {
    try Kernel.build("speed", threadsPerBlock: 128) { k in
      let shared = k.dynamicShared()
      let zero = k.constant(0, U32.self)
      let own = shared + k.special(.threadX) * 16
      k.store([zero, zero, zero, zero], shared: own)
      k.barrier()
      let body = prepare(k, own)
      k.loop(from: zero, to: k.constant(iterations, U32.self)) { _ in body() }
    }
  }

  /// What is measured, and how often a turn of the loop has it.
  static let instructions:
    [(name: String, count: Int, prepare: @Sendable (KernelBuilder, Register<U32>) -> (() -> Void))] = [
      (
        "mma.m16n8k16", 4,
        { k, own in
          let words = k.load(U32.self, count: 4, shared: own)
          let sums = (0..<4).map { _ in k.variable(k.constant(0)) }
          return { for _ in 0..<4 { k.multiplyAdd(.f16, a: words, b: Array(words[0..<2]), into: sums) } }
        }
      ),
      ("ld.shared.v4", 4, { k, own in { for _ in 0..<4 { _ = k.load(U32.self, count: 4, shared: own) } } }),
      (
        "st.shared.v4", 4,
        { k, own in
          let words = k.load(U32.self, count: 4, shared: own)
          return { for _ in 0..<4 { k.store(words, shared: own) } }
        }
      ),
      (
        "ld.shared.b32", 4,
        { k, own in
          // Neighbouring lanes read neighbouring words, as they should.
          let neighbour = own - k.special(.threadX) * 12
          return { for _ in 0..<4 { _ = k.load(U32.self, shared: neighbour) } }
        }
      ),
      (
        "fma.f32", 16,
        { k, _ in
          let sum = k.variable(k.constant(1))
          return { for _ in 0..<16 { _ = k.multiplyAdd(sum, sum, sum) } }
        }
      ),
    ]
}
