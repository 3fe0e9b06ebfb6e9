internal import Attention
internal import CUDADriver
package import GPURuntime
package import PTX
package import PTXEmulator

/// A product of two small matrices by `wgmma`, with its operands brought by the copy engine: in every layout, swizzle
/// and type, so that the emulator can be held against whole numbers, and against a GPU.
package struct WarpgroupCheck: Hashable, Sendable, CustomStringConvertible {
  /// Where A comes from.
  package enum Left: String, Hashable, Sendable, CaseIterable { case shared, transposed, registers }

  package var inputs: WarpgroupMatrix.Inputs
  package var accumulator: Matrix.Accumulator
  /// N.
  package var columns: Int
  package var left: Left
  package var isTransposedB: Bool
  package var swizzleA, swizzleB: TensorMap.Swizzle
  /// Products along k.
  package var steps = 4

  /// What is asked of the values: whole numbers, whose sums are exact in any order, or any.
  package enum Values: Sendable { case whole, any(seed: UInt64) }

  package init(
    _ inputs: WarpgroupMatrix.Inputs, _ accumulator: Matrix.Accumulator, columns: Int, left: Left,
    isTransposedB: Bool = false, swizzleA: TensorMap.Swizzle = .bytes128, swizzleB: TensorMap.Swizzle = .bytes128
  ) {
    (self.inputs, self.accumulator, self.columns, self.left) = (inputs, accumulator, columns, left)
    (self.isTransposedB, self.swizzleA, self.swizzleB) = (isTransposedB, swizzleA, swizzleB)
  }

  package var description: String {
    "m64n\(columns) \(inputs) \(accumulator), A \(left) \(swizzleA.rawValue), B \(isTransposedB ? "transposed " : "")"
      + "\(swizzleB.rawValue)"
  }

  /// Every combination of types, sources, transpositions and swizzles once, with the sizes in turn, and every size.
  package static let all: [WarpgroupCheck] = {
    let types: [(WarpgroupMatrix.Inputs, Matrix.Accumulator)] = [
      (.bf16, .f32), (.f16, .f32), (.f16, .f16), (.e4m3, .f32), (.e4m3, .f16),
    ]
    let swizzles: [TensorMap.Swizzle] = [.bytes128, .bytes64, .bytes32]
    var result: [WarpgroupCheck] = []
    var columns = 8
    for (inputs, accumulator) in types {
      for left in Left.allCases where inputs.byteCount == 2 || left != .transposed {
        for isTransposed in [false, true] where inputs.byteCount == 2 || !isTransposed {
          for swizzleA in swizzles where left != .registers || swizzleA == .bytes128 {
            for swizzleB in swizzles {
              result.append(
                WarpgroupCheck(
                  inputs, accumulator, columns: columns, left: left, isTransposedB: isTransposed, swizzleA: swizzleA,
                  swizzleB: swizzleB))
              columns = columns % 256 + 8
            }
          }
        }
      }
    }
    return result
  }()

  private var depth: Int { steps * inputs.depth }
  private func tile(_ rows: Int, isTransposed: Bool, _ swizzle: TensorMap.Swizzle) -> MatrixTile {
    MatrixTile(
      rows: isTransposed ? depth : rows, columns: isTransposed ? rows : depth, elementByteCount: inputs.byteCount,
      swizzle: swizzle)
  }
  private var tileA: MatrixTile { tile(64, isTransposed: left == .transposed, swizzleA) }
  private var tileB: MatrixTile { tile(columns, isTransposed: isTransposedB, swizzleB) }
  private static func rounded(_ byteCount: Int) -> Int { (byteCount + 1023) / 1024 * 1024 }
  private var offsetB: Int { Self.rounded(tileA.byteCount) }
  private var offsetOfBarrier: Int { offsetB + Self.rounded(tileB.byteCount) }
  package var sharedByteCount: Int { offsetOfBarrier + 16 }

  /// A box of a map is a slab of a tile.
  private func map(_ tile: MatrixTile, at address: UInt64) -> TensorMap {
    let element: TensorMap.Element =
      switch inputs {
      case .f16: .f16
      case .bf16: .bf16
      case .e4m3: .u8
      }
    return TensorMap(
      element, address: address, extents: [tile.columns, tile.rows], strides: [tile.columns * inputs.byteCount],
      box: [tile.slabColumns, tile.rows], swizzle: tile.swizzle)
  }

  /// The kernel: 128 threads; parameters are both maps, A's address, and that of D, row after row in f32.
  package func kernel() throws(KernelError) -> Kernel {
    try Kernel.build("warpgroup_check", threadsPerBlock: 128) { k in
      let (mapA, mapB) = (k.tensorMap("a"), k.tensorMap("b"))
      let (a, output) = (k.pointer("a_rows"), k.pointer("output"))
      let shared = k.dynamicShared(alignment: 1024)
      let (thread, lane) = (k.special(.threadX), k.special(.lane))
      let barrier = shared + offsetOfBarrier
      let full = BarrierRing(k, stages: 1, at: barrier, as: .consumer)
      let isFirst = thread .== 0
      k.if(isFirst) {
        k.initialize(transactionBarrier: barrier, arrivals: 1)
        k.barrierInitializationFence()
      }
      k.barrier()
      k.if(isFirst) {
        full.arrive(expecting: tileA.byteCount + tileB.byteCount)
        for (map, tile, start) in [(mapA, tileA, 0), (mapB, tileB, offsetB)] {
          for slab in 0..<tile.slabs {
            k.copy(
              map, [k.constant(slab * tile.slabColumns, S32.self), k.constant(0, S32.self)],
              to: shared + (start + slab * tile.slabByteCount), barrier: barrier)
          }
        }
      }
      let row = (thread / 32) * 16 + lane / 4
      // Registers of A, as they lie in memory, row after row.
      let rowBytes = depth * inputs.byteCount
      let place = a + k.multiplyWide(row, rowBytes) + k.wide((lane % 4) * 4)
      let registers =
        left == .registers
        ? (0..<steps).map { step in
          (0..<4).map { i in
            k.load(U32.self, global: place, offset: i % 2 * 8 * rowBytes + step * 32 + i / 2 * 16)
          }
        } : []
      full.wait()
      let b = k.descriptor(tileB, at: shared + offsetB, isTransposed: isTransposedB)
      let ofA = k.descriptor(tileA, at: shared, isTransposed: left == .transposed)
      func multiply<T: FloatType>(into sums: [Register<T>]) {
        k.warpgroupFence()
        for step in 0..<steps {
          let sum: KernelBuilder.ProductSum = step == 0 ? .never : .always
          if left == .registers {
            k.startProduct(inputs, a: registers[step], b: b.step(step), into: sums, sum: sum)
          } else {
            k.startProduct(inputs, a: ofA.step(step), b: b.step(step), into: sums, sum: sum)
          }
        }
        k.commitProducts()
        k.waitForProducts()
      }
      func store(_ value: Register<F32>, row own: Int, column: Int) {
        let start = output + k.multiplyWide(row + own, columns * 4) + k.wide((lane % 4) * 8)
        k.store(value, global: start, offset: column * 4)
      }
      if accumulator == .f32 {
        let sums = k.accumulators(columns / 2)
        multiply(into: sums)
        for (i, value) in sums.enumerated() { store(value, row: i / 2 % 2 * 8, column: i / 4 * 8 + i % 2) }
      } else {
        let sums = (0..<columns / 4).map { _ in k.variable(k.constant(bits: 0x7e00, F16x2.self)) }
        multiply(into: sums)
        for (i, pair) in sums.enumerated() {
          let (low, high) = k.unpack(pair)
          store(low, row: i % 2 * 8, column: i / 2 * 8)
          store(high, row: i % 2 * 8, column: i / 2 * 8 + 1)
        }
      }
    }
  }

  // MARK: - Values

  private func bits(_ value: Float) -> [UInt8] {
    func two(_ bits: UInt16) -> [UInt8] { [UInt8(truncatingIfNeeded: bits), UInt8(bits >> 8)] }
    return switch inputs {
    case .f16: two(Float16(value).bitPattern)
    case .bf16: two(BFloat16(value).bitPattern)
    case .e4m3: [Float8E4M3(value).bitPattern]
    }
  }

  private func rounded(_ value: Float) -> Float {
    switch inputs {
    case .f16: Float(Float16(value))
    case .bf16: Float(BFloat16(value))
    case .e4m3: Float(Float8E4M3(value))
    }
  }

  /// A by rows of k, B by columns of k.
  package func operands(_ values: Values) -> (a: [[Float]], b: [[Float]]) {
    var random: RandomSource
    var isWhole = false
    switch values {
    case .whole: (random, isWhole) = (RandomSource(seed: 7), true)
    case .any(let seed): random = RandomSource(seed: seed)
    }
    func matrix(_ rows: Int) -> [[Float]] {
      (0..<rows).map { _ in
        (0..<depth).map { _ in
          isWhole ? Float(random.int(-3...3)) : rounded(Float(random.int(-1000...1000)) / 300)
        }
      }
    }
    return (matrix(64), matrix(columns))
  }

  private func bytes(_ matrix: [[Float]], isTransposed: Bool) -> [UInt8] {
    isTransposed
      ? (0..<depth).flatMap { k in matrix.flatMap { bits($0[k]) } } : matrix.flatMap { $0.flatMap { bits($0) } }
  }

  /// What D is, of whole numbers.
  package func expected(_ values: Values) -> [Float] {
    let (a, b) = operands(values)
    return a.flatMap { row in b.map { column in zip(row, column).reduce(0) { $0 + $1.0 * $1.1 } } }
  }

  // MARK: - Runs

  private func run<Failure: Error>(
    _ values: Values, _ allocate: ([UInt8]) throws(Failure) -> UInt64, output: UInt64
  ) throws(Failure) -> [Kernel.Argument] {
    let (a, b) = operands(values)
    let placeA = try allocate(bytes(a, isTransposed: left == .transposed))
    let placeB = try allocate(bytes(b, isTransposed: isTransposedB))
    return [
      .tensorMap(map(tileA, at: placeA)), .tensorMap(map(tileB, at: placeB)), .pointer(placeA), .pointer(output),
    ]
  }

  /// D as the emulator makes it.
  package func emulate(
    _ values: Values, schedule: Schedule = .roundRobin, program: Program? = nil
  ) throws -> (d: [Float], counters: Counters) {
    let memory = GlobalMemory()
    let output = memory.allocate("output", byteCount: 64 * columns * 4, access: .readWrite)
    let arguments = run(values, { memory.allocate("operand", $0, access: .readOnly) }, output: output)
    let counters = try Emulator.run(
      try program ?? Program(kernel()),
      Launch(blocks: (1, 1, 1), dynamicSharedByteCount: sharedByteCount, arguments: arguments), memory: memory,
      schedule: schedule, stepLimit: 2_000_000)
    return (memory.read(Float.self, count: 64 * columns, from: output) ?? [], counters)
  }

  /// D as a GPU makes it.
  package func run(_ values: Values, on gpu: GPU) throws -> [Float] {
    let output = try GPUBuffer(byteCount: 64 * columns * 4, on: gpu)
    var buffers: [GPUBuffer] = []
    let arguments = try run(
      values,
      { (bytes) throws(AttentionError) in
        let buffer = try GPUBuffer(byteCount: bytes.count, on: gpu)
        try bytes.withUnsafeBufferPointer { (bytes) throws(AttentionError) in
          try buffer.copy(from: UnsafeRawBufferPointer(bytes))
        }
        buffers.append(buffer)
        return buffer.address
      }, output: output.address)
    try gpu.run(kernel(), arguments, blocks: 1, sharedByteCount: sharedByteCount)
    var result = [Float](repeating: .nan, count: 64 * columns)
    try result.withUnsafeMutableBufferPointer { (floats) throws(AttentionError) in
      try output.copy(to: UnsafeMutableRawBufferPointer(floats))
    }
    withExtendedLifetime(buffers) {}
    return result
  }
}
