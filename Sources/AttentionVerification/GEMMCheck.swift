internal import Attention
internal import CUDADriver
package import ExampleKernels
package import GPURuntime
internal import PTX
package import PTXEmulator

/// A product of two matrices by Hopper's instructions, so that the emulator can be held against whole numbers, and
/// against a GPU.
package struct GEMMCheck: Hashable, Sendable, CustomStringConvertible {
  package let kernel: HopperGEMMKernel
  package let rows, columns, depth: Int

  package init(_ kernel: HopperGEMMKernel, rows: Int, columns: Int, depth: Int) {
    (self.kernel, self.rows, self.columns, self.depth) = (kernel, rows, columns, depth)
  }

  package var description: String { "\(kernel), M \(rows), N \(columns), K \(depth)" }

  /// Products of random sizes by kernels of all kinds; the same seed draws the same.
  package static func random(_ count: Int, seed: UInt64) -> [GEMMCheck] {
    var random = RandomSource(seed: seed)
    return (0..<count).map { number in
      let kernel = HopperGEMMKernel(
        number % 2 == 0 ? .bf16 : .f16, right: number / 2 % 2 == 0 ? .transposed : .plain,
        groups: number % 5 == 4 ? 3 : 2, columns: number % 5 > 2 ? 128 : 256, stages: number % 3 + 2)
      return GEMMCheck(
        kernel, rows: 8 * random.int(1...70), columns: 8 * random.int(1...90), depth: 8 * random.int(1...60))
    }
  }

  // MARK: - Values

  private func rounded(_ value: Float) -> Float {
    kernel.inputs == .f16 ? Float(Float16(value)) : Float(BFloat16(value))
  }

  private func bits(_ value: Float) -> UInt16 {
    kernel.inputs == .f16 ? Float16(value).bitPattern : BFloat16(value).bitPattern
  }

  /// A by rows, B by columns of the product.
  private func operands(_ values: WarpgroupCheck.Values) -> (a: [[Float]], b: [[Float]]) {
    var random: RandomSource
    var isWhole = false
    switch values {
    case .whole: (random, isWhole) = (RandomSource(seed: 7), true)
    case .any(let seed): random = RandomSource(seed: seed)
    }
    func matrix(_ rows: Int) -> [[Float]] {
      (0..<rows).map { _ in
        (0..<depth).map { _ in isWhole ? Float(random.int(-2...2)) : rounded(Float(random.int(-1000...1000)) / 300) }
      }
    }
    return (matrix(rows), matrix(columns))
  }

  /// What C is, of whole numbers: their sums are exact, and rounded once.
  package func expected(_ values: WarpgroupCheck.Values) -> [Float] {
    let (a, b) = operands(values)
    return a.flatMap { row in b.map { column in rounded(zip(row, column).reduce(0) { $0 + $1.0 * $1.1 }) } }
  }

  private func words(_ values: WarpgroupCheck.Values) -> (a: [UInt16], b: [UInt16]) {
    let (a, b) = operands(values)
    return (
      a.flatMap { $0.map(bits) },
      kernel.right == .transposed
        ? b.flatMap { $0.map(bits) } : (0..<depth).flatMap { k in b.map { bits($0[k]) } }
    )
  }

  private func floats(_ words: [UInt16]) -> [Float] {
    words.map { kernel.inputs == .f16 ? Float(Float16(bitPattern: $0)) : Float(BFloat16(bitPattern: $0)) }
  }

  // MARK: - Runs

  /// C as the emulator makes it.
  package func emulate(
    _ values: WarpgroupCheck.Values, blocks: Int = 3, schedule: Schedule = .roundRobin, program: Program? = nil
  ) throws -> (c: [Float], counters: Counters) {
    let memory = GlobalMemory()
    let (a, b) = words(values)
    let c = memory.allocate("c", byteCount: rows * columns * 2, access: .readWrite)
    let launch = kernel.launch(
      rows: rows, columns: columns, depth: depth, a: memory.allocate("a", a, access: .readOnly),
      b: memory.allocate("b", b, access: .readOnly), c: c, blocks: blocks)
    let counters = try Emulator.run(
      try program ?? Program(kernel.kernel()),
      Launch(
        blocks: (launch.blocks, 1, 1), dynamicSharedByteCount: kernel.sharedByteCount, arguments: launch.arguments),
      memory: memory, schedule: schedule, stepLimit: 5_000_000)
    return (memory.read(UInt16.self, count: rows * columns, from: c).map(floats) ?? [], counters)
  }

  /// C as a GPU makes it, several times.
  package func run(_ values: WarpgroupCheck.Values, times: Int = 1, on gpu: GPU) throws -> [[Float]] {
    let (a, b) = words(values)
    func upload(_ words: [UInt16]) throws(AttentionError) -> GPUBuffer {
      let buffer = try GPUBuffer(byteCount: words.count * 2, on: gpu)
      try words.withUnsafeBufferPointer { (words) throws(AttentionError) in
        try buffer.copy(from: UnsafeRawBufferPointer(words))
      }
      return buffer
    }
    let (placeA, placeB) = (try upload(a), try upload(b))
    let c = try GPUBuffer(byteCount: rows * columns * 2, on: gpu)
    let launch = kernel.launch(
      rows: rows, columns: columns, depth: depth, a: placeA.address, b: placeB.address, c: c.address,
      blocks: gpu.device.multiprocessors)
    let built = try kernel.kernel()
    return try (0..<times).map { _ in
      try c.fill(0xff)
      try gpu.run(built, launch.arguments, blocks: launch.blocks, sharedByteCount: kernel.sharedByteCount)
      var result = [UInt16](repeating: 0, count: rows * columns)
      try result.withUnsafeMutableBufferPointer { (words) throws(AttentionError) in
        try c.copy(to: UnsafeMutableRawBufferPointer(words))
      }
      return floats(result)
    }
  }
}
