internal import AttentionKernels
package import PTX
package import PTXEmulator

/// A kernel whose lanes apply arithmetic, conversions, exchanges between lanes and matrix products to words of all
/// kinds, so that the emulator can be held against a GPU, result by result. Memory instructions are not among them.
package struct InstructionCheck: Sendable {
  /// How near the two must be.
  package enum Bound: Hashable, Sendable {
    /// The same bits: integers, moves, conversions, and f32 arithmetic, which is rounded once.
    case exact
    /// f32 within units in the last place.
    case ulps(Int)

    func holds(_ a: UInt32, _ b: UInt32) -> Bool {
      let (x, y) = (Float(bitPattern: a), Float(bitPattern: b))
      switch self {
      case .exact: return a == b
      case .ulps(let count):
        if x.isNaN || y.isNaN { return x.isNaN && y.isNaN }
        return x == y || (x - y).magnitude <= Float(count) * max(x.magnitude, y.magnitude).ulp
      }
    }
  }

  /// Threads of the only block.
  package static let threads = 1024
  /// One for each result of a lane.
  package let names: [String]
  package let bounds: [Bound]
  package let kernel: Kernel

  package init() throws(KernelError) {
    var list: [(name: String, bound: Bound)] = []
    kernel = try Kernel.build("instruction_check", threadsPerBlock: Self.threads) { k in
      let (input, output) = (k.pointer("input"), k.pointer("output"))
      let thread = k.special(.threadX)
      let words = k.load(U32.self, count: 4, global: input + k.multiplyWide(thread, 16))
      func put(_ name: String, _ bound: Bound, _ value: Register<U32>) {
        k.store(value, global: output + k.multiplyWide(thread, 4), offset: list.count * Self.threads * 4)
        list.append((name, bound))
      }
      func put(_ name: String, _ bound: Bound, _ value: Register<F32>) {
        put(name, bound, value.reinterpreted(as: U32.self))
      }
      let (a, b, c) = (words[0], words[1], words[2])
      let (s, t) = (a.reinterpreted(as: S32.self), b.reinterpreted(as: S32.self))
      let (x, y, z) = (
        a.reinterpreted(as: F32.self), b.reinterpreted(as: F32.self), c.reinterpreted(as: F32.self)
      )
      for (name, value) in [
        ("add", a + b), ("sub", a - b), ("mul.lo", a * b), ("and", a & b), ("or", a | b), ("xor", a ^ b),
        ("shl", a << 5), ("shr", a >> 7), ("shr.by", a >> (b & 63)), ("div", a / (b | 1)), ("rem", a % (b | 1)),
        ("min", k.minimum(a, b)),
        ("max", k.maximum(a, b)), ("mul.hi", k.multiplyHigh(a, b)), ("prmt", k.permute(a, b, selector: 0x5410)),
        ("lop3", k.logic3(a, b, c, table: 0xe8)), ("mad", k.multiplyAdd(a, b, c)),
        ("selp", k.select(a .< b, a, c)), ("mul.wide", k.narrow(k.multiplyWide(a, b) >> 9)),
        ("shfl.bfly", k.shuffle(a, xor: 2)), ("shfl.idx", k.shuffle(a, lane: b & 31)), ("vote", k.ballot(a .< b)),
      ] { put(name, .exact, value) }
      for (name, value) in [
        ("min.s32", k.minimum(s, t)), ("max.s32", k.maximum(s, t)), ("shr.s32", s >> 3), ("div.s32", s / 7),
      ] { put(name, .exact, value.reinterpreted(as: U32.self)) }
      for (name, value) in [
        ("add.f32", x + y), ("sub.f32", x - y), ("mul.f32", x * y), ("fma.f32", k.multiplyAdd(x, y, z)),
        ("min.f32", k.minimum(x, y)), ("max.f32", k.maximum(x, y)), ("abs.f32", k.absolute(x)),
        ("neg.f32", -x), ("selp.f32", k.select(x .> y, z, 1)), ("cvt.f32.u32", k.float(a)), ("cvt.f32.s32", k.float(s)),
      ] { put(name, .exact, value) }
      put("cvt.f16x2", .exact, Matrix.Inputs.f16.pack(k, x, y))
      put("cvt.bf16x2", .exact, Matrix.Inputs.bf16.pack(k, x, y))
      put("cvt.s32.f32", .exact, k.integer(x, .towardZero, as: S32.self).reinterpreted(as: U32.self))
      put("ex2", .ulps(4), k.exp2(x))
      put("rcp", .ulps(2), k.reciprocal(x))
      // Two products of numbers of some sizes, one after the other.
      for inputs in Matrix.Inputs.allCases {
        let (mask, one) = inputs == .f16 ? (0x8fff_8fff, 0x3000_3000) : (0x83ff_83ff, 0x3c00_3c00)
        let operands = words.map { ($0 & mask) | one }
        func multiply<T: FloatType>(into sums: [Register<T>]) {
          k.multiplyAdd(inputs, a: operands, b: Array(operands[1...2]), into: sums)
          k.multiplyAdd(inputs, a: operands, b: [operands[3], operands[0]], into: sums)
        }
        let sums = (0..<4).map { _ in k.variable(k.constant(0)) }
        multiply(into: sums)
        for (i, sum) in sums.enumerated() { put("mma.\(inputs.rawValue) \(i)", .exact, sum) }
        if inputs == .bf16 { continue }
        let pairs = (0..<2).map { _ in k.variable(k.constant(bits: 0, F16x2.self)) }
        multiply(into: pairs)
        for (i, pair) in pairs.enumerated() { put("mma.f16 to f16 \(i)", .exact, pair.reinterpreted(as: U32.self)) }
      }
    }
    (names, bounds) = (list.map(\.name), list.map(\.bound))
  }

  /// Words that matter: numbers of every size, both zeros, infinities, NaNs, subnormals, and random bits.
  package var input: [UInt32] {
    let special: [UInt32] = [
      0, 0x8000_0000, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0x7f80_0001, 1, 0x8000_0001, 0x007f_ffff, 0x0080_0000,
      0x3f80_0000, 0xbf80_0000, 0x4770_0000, 0x7f7f_ffff, 0x3380_0000, 0xffff_ffff,
    ]
    var random = RandomSource(seed: 5)
    return (0..<4 * Self.threads).map { i in
      let bits = UInt32(truncatingIfNeeded: random.next())
      switch i / 4 % 4 {
      case 0: return special[Int(bits % 16)]
      case 1: return Float(bitPattern: 0x3f80_0000 | bits & 0x807f_ffff).bitPattern
      case 2: return (Float(Int32(bitPattern: bits)) * 0x1p-26).bitPattern
      default: return bits
      }
    }
  }

  /// The emulator's results, one word for each instruction and thread.
  package func emulate() throws(Hazard) -> [UInt32] {
    let memory = GlobalMemory()
    let place = memory.allocate("input", input, access: .readOnly)
    let results = memory.allocate("output", byteCount: names.count * Self.threads * 4, access: .readWrite)
    _ = try Emulator.run(
      Program(kernel), Launch(blocks: (1, 1, 1), arguments: [.pointer(place), .pointer(results)]), memory: memory)
    return memory.read(UInt32.self, count: names.count * Self.threads, from: results) ?? []
  }

  /// The instructions whose results differ by more than they may, with the number of lanes and an example.
  package func differences(_ emulated: [UInt32], _ actual: [UInt32]) -> [String] {
    names.indices.compactMap { number in
      let lanes = (0..<Self.threads).filter {
        !bounds[number].holds(emulated[number * Self.threads + $0], actual[number * Self.threads + $0])
      }
      guard let lane = lanes.first else { return nil }
      let place = number * Self.threads + lane
      let words = (0..<4).map { String(input[lane * 4 + $0], radix: 16) }.joined(separator: " ")
      return "\(names[number]): \(lanes.count) of \(Self.threads) lanes; of \(words), the emulator makes "
        + "\(String(emulated[place], radix: 16)), the GPU \(String(actual[place], radix: 16))"
    }
  }
}
