import Foundation
import PTX
import PTXEmulator
import Testing

/// The meaning of the instructions, held against Swift's own arithmetic and against the definitions of the PTX manual.
@Suite struct InstructionTests {
  /// Runs one warp: two words a lane go in, the words that `body` returns come out.
  private func run(
    _ a: [UInt32], _ b: [UInt32], _ body: (KernelBuilder, Register<U32>, Register<U32>) -> [Register<U32>]
  ) throws -> [[UInt32]] {
    var count = 0
    let kernel = try Kernel.build("instruction", threadsPerBlock: 32) { k in
      let (x, y, z) = (k.pointer("x"), k.pointer("y"), k.pointer("z"))
      let place = k.multiplyWide(k.special(.lane), 4)
      let results = body(k, k.load(U32.self, global: x + place), k.load(U32.self, global: y + place))
      count = results.count
      for (i, result) in results.enumerated() { k.store(result, global: z + place, offset: 128 * i) }
    }
    let memory = GlobalMemory()
    let (x, y) = (memory.allocate("x", a, access: .readOnly), memory.allocate("y", b, access: .readOnly))
    let z = memory.allocate("z", byteCount: 128 * count, access: .readWrite)
    _ = try Emulator.run(
      Program(kernel), Launch(blocks: (1, 1, 1), arguments: [.pointer(x), .pointer(y), .pointer(z)]), memory: memory)
    let flat = try #require(memory.read(UInt32.self, count: 32 * count, from: z))
    return (0..<count).map { Array(flat[32 * $0..<32 * $0 + 32]) }
  }

  /// Awkward words: ends of ranges, signs, small numbers.
  private static let a: [UInt32] = (0..<32).map {
    [0, 1, 0xffff_ffff, 0x8000_0000, 0x7fff_ffff, 5, 0xdead_beef, 100][$0 % 8] &+ UInt32($0 / 8)
  }
  private static let b: [UInt32] = (0..<32).map {
    [1, 3, 0xffff_fffe, 7, 0x8000_0000, 31, 33, 0x1234_5678][($0 / 4 + $0) % 8]
  }

  @Test func integers() throws {
    let (a, b) = (Self.a, Self.b)
    let results = try run(a, b) { k, x, y in
      let (s, t) = (x.reinterpreted(as: S32.self), y.reinterpreted(as: S32.self))
      let wide = k.multiplyWide(x, y)
      let signed = [s + t, s * t, s / t, s % t, k.minimum(s, t), k.maximum(s, t), s >> 3, s >> (y & 63), k.absolute(s)]
      return [x + y, x - y, x * y, x / y, x % y, x & y, x | y, x ^ y, x << 5, x >> 5, x << 32, x >> 40, x >> (y & 63)]
        + [k.minimum(x, y), k.maximum(x, y), k.narrow(wide), k.narrow(wide >> 32)]
        + signed.map { $0.reinterpreted(as: U32.self) }
        + [k.select(x .< y, 1, 0, U32.self), k.select(s .< t, 1, 0, U32.self), k.select(x .>= y, x, y)]
    }
    func map(_ f: (UInt32, UInt32) -> UInt32) -> [UInt32] { zip(a, b).map(f) }
    func signed(_ f: (Int32, Int32) -> Int32) -> [UInt32] {
      map { UInt32(bitPattern: f(Int32(bitPattern: $0), Int32(bitPattern: $1))) }
    }
    let expected: [[UInt32]] = [
      map(&+), map(&-), map(&*), map(/), map(%), map(&), map(|), map(^), map { x, _ in x << 5 }, map { x, _ in x >> 5 },
      map { _, _ in 0 }, map { _, _ in 0 }, map { $0 >> ($1 & 63) }, map(min), map(max), map(&*),
      map { UInt32((UInt64($0) * UInt64($1)) >> 32) }, signed(&+), signed(&*),
      signed { $0.dividedReportingOverflow(by: $1).partialValue },
      signed { $0.remainderReportingOverflow(dividingBy: $1).partialValue }, signed(min), signed(max),
      signed { x, _ in x >> 3 }, signed { x, y in x >> (y & 63) }, signed { x, _ in x < 0 ? 0 &- x : x },
      map { $0 < $1 ? 1 : 0 },
      map { Int32(bitPattern: $0) < Int32(bitPattern: $1) ? 1 : 0 }, map { $0 >= $1 ? $0 : $1 },
    ]
    for (index, (result, wanted)) in zip(results, expected).enumerated() {
      #expect(result == wanted, "number \(index)")
    }
  }

  /// By a power of two, quotients are shifts and some remainders masks, which must not show.
  @Test(arguments: [1, 2, 8, 1 << 30, 3, 7]) func quotientsByConstants(divisor: Int) throws {
    let results = try run(Self.a, Self.b) { k, x, _ in
      let s = x.reinterpreted(as: S32.self)
      return [x / divisor, x % divisor] + [s / divisor, s % divisor].map { $0.reinterpreted(as: U32.self) }
    }
    let signed = Self.a.map { Int32(bitPattern: $0) }
    #expect(results[0] == Self.a.map { $0 / UInt32(divisor) })
    #expect(results[1] == Self.a.map { $0 % UInt32(divisor) })
    #expect(results[2] == signed.map { UInt32(bitPattern: $0 / Int32(divisor)) })
    #expect(results[3] == signed.map { UInt32(bitPattern: $0 % Int32(divisor)) })
  }

  /// What a mutation test changes: each fence and barrier is left out, and each part of an access's ordering.
  @Test func mutationsWeakenWhatOrders() throws {
    let kernel = try Kernel.build("orders", threadsPerBlock: 32) { k in
      let x = k.pointer("x")
      let one = k.constant(1, U32.self)
      _ = k.atomic(.add, global: x, one, ordering: .acquireRelease)
      _ = k.atomic(.add, global: x, one)
      k.store(k.load(U32.self, global: x, ordering: .acquire), global: x, ordering: .release)
      k.barrier()
    }
    #expect(
      Mutation.all(of: kernel).map { "\($0)".split(separator: ": ", maxSplits: 1)[1].split(separator: " ")[0] }
        == [
          "atom.acq_rel.gpu.global.add.u32", "atom.acq_rel.gpu.global.add.u32", "ld.acquire.gpu.global.b32",
          "st.release.gpu.global.b32", "bar.sync",
        ])
    #expect(
      Mutation.all(of: kernel).map { $0.replacement?.split(separator: " ").first }
        == [
          "atom.acquire.gpu.global.add.u32", "atom.release.gpu.global.add.u32", "ld.relaxed.gpu.global.b32",
          "st.relaxed.gpu.global.b32", nil,
        ])
  }

  @Test func bytesAndBits() throws {
    let results = try run(Self.a, Self.b) { k, x, y in
      [
        k.permute(x, y, selector: 0x7531), k.permute(x, y, selector: 0x0123), k.permute(x, y, selector: 0xba98),
        k.logic3(x, y, x ^ y, table: 0xe8), k.logic3(x, y, y, table: 0xf0 & 0xcc),
      ]
    }
    for lane in 0..<32 {
      let (x, y) = (Self.a[lane], Self.b[lane])
      let bytes =
        (0..<4).map { UInt8(truncatingIfNeeded: x >> (8 * $0)) }
        + (0..<4).map { UInt8(truncatingIfNeeded: y >> (8 * $0)) }
      func word(_ bytes: [UInt8]) -> UInt32 { bytes.reversed().reduce(0) { $0 << 8 | UInt32($1) } }
      #expect(results[0][lane] == word([bytes[1], bytes[3], bytes[5], bytes[7]]))
      #expect(results[1][lane] == x.byteSwapped)
      #expect(results[2][lane] == word((0..<4).map { bytes[$0] & 0x80 != 0 ? 0xff : 0 }))
      #expect(results[3][lane] == (x & y | x & (x ^ y) | y & (x ^ y)))
      #expect(results[4][lane] == x & y)
    }
  }

  @Test func lanes() throws {
    let a = (0..<32).map { UInt32($0 * 3) }
    let results = try run(a, a) { k, x, _ in
      [
        k.shuffle(x, xor: 5), k.shuffle(x, .up, by: 3), k.shuffle(x, .down, by: 9, width: 16),
        k.shuffle(x, lane: k.special(.lane) ^ 1, width: 4), k.ballot(x .> 40),
        k.select(k.vote(.any, x .== 93), 1, 0, U32.self), k.select(k.vote(.all, x .< 93), 1, 0, U32.self),
      ]
    }
    for lane in 0..<32 {
      #expect(results[0][lane] == a[lane ^ 5])
      #expect(results[1][lane] == a[lane < 3 ? lane : lane - 3])
      #expect(results[2][lane] == a[lane % 16 + 9 < 16 ? lane + 9 : lane])
      #expect(results[3][lane] == a[lane / 4 * 4 + (lane ^ 1) % 4])
      #expect(results[4][lane] == (14..<32).reduce(0) { $0 | 1 << UInt32($1) })
      #expect(results[5][lane] == 1 && results[6][lane] == 0)
    }
  }

  /// Of a warp one lane is elected, the same in every launch of an order, and not always the first.
  @Test func oneLaneIsElected() throws {
    let kernel = try Kernel.build("elect", threadsPerBlock: 64) { k in
      let z = k.pointer("z")
      k.store(
        k.select(k.elect(), 1, 0, U32.self), global: z + k.multiplyWide(k.special(.threadX), 4))
    }
    var elected: Set<Int> = []
    for seed in 1...20 {
      let memory = GlobalMemory()
      let z = memory.allocate("z", byteCount: 256, access: .readWrite)
      _ = try Emulator.run(
        Program(kernel), Launch(blocks: (1, 1, 1), arguments: [.pointer(z)]), memory: memory,
        schedule: .random(seed: UInt64(seed)))
      let flags = try #require(memory.read(UInt32.self, count: 64, from: z))
      #expect(flags[..<32].reduce(0, +) == 1 && flags[32...].reduce(0, +) == 1)
      elected.insert(try #require(flags.firstIndex(of: 1)))
    }
    #expect(elected.count > 3)
  }

  /// stmatrix by the definition of its fragments: lane 4 g + t holds of each matrix row g, columns 2 t and 2 t + 1, or,
  /// transposed, column g and these rows; and ldmatrix brings back what was there.
  @Test(arguments: [1, 2, 4], [false, true])
  func storedMatrices(count: Int, isTransposed: Bool) throws {
    let values: [UInt32] = (0..<32 * count).map { UInt32($0) * 0x2_0002 + 0x1_0000 }
    let kernel = try Kernel.build("stmatrix", threadsPerBlock: 32) { k in
      let (x, z) = (k.pointer("x"), k.pointer("z"))
      let shared = k.shared("matrices", byteCount: 128 * count)
      let lane = k.special(.lane)
      let place = k.multiplyWide(lane, 4)
      let words = (0..<count).map { k.load(U32.self, global: x + place, offset: 128 * $0) }
      // Rows 16 bytes apart in reverse, so that each has the address of its own lane.
      let row = shared + ((lane ^ 31) & (8 * count - 1)) * 16
      k.storeMatrix(words, shared: row, isTransposed: isTransposed)
      k.warpBarrier()
      for i in 0..<count {
        k.store(k.load(U32.self, shared: shared + lane * 4, offset: 128 * i), global: z + place, offset: 128 * i)
      }
      for (i, word) in k.loadMatrix(count: count, shared: row, isTransposed: isTransposed).enumerated() {
        k.store(word, global: z + place, offset: 128 * (count + i))
      }
    }
    let memory = GlobalMemory()
    let x = memory.allocate("x", values, access: .readOnly)
    let z = memory.allocate("z", byteCount: 256 * count, access: .readWrite)
    _ = try Emulator.run(
      Program(kernel),
      Launch(blocks: (1, 1, 1), arguments: [.pointer(x), .pointer(z)]), memory: memory)
    let stored = try #require(memory.read(UInt16.self, count: 64 * count, from: z))
    for matrix in 0..<count {
      for row in 0..<8 {
        for column in 0..<8 {
          let (g, c) = isTransposed ? (column, row) : (row, column)
          let word: UInt32 = values[matrix * 32 + g * 4 + c / 2]
          let expected = UInt16(truncatingIfNeeded: c % 2 == 0 ? word : word >> 16)
          let place = 8 * count - 1 - (matrix * 8 + row)
          #expect(stored[place * 8 + column] == expected)
        }
      }
    }
    #expect(memory.read(UInt32.self, count: 32 * count, from: z + UInt64(128 * count)) == values)
  }

  /// All 65536 f16, and floats around every tie, through the conversions.
  @Test func sixteenBitFloats() throws {
    for start in stride(from: 0, to: 65536, by: 64 * 37) {
      let pairs = (0..<32).map { UInt32((start + 2 * $0) & 0xffff) | UInt32((start + 2 * $0 + 1) & 0xffff) << 16 }
      let results = try run(pairs, pairs) { k, x, _ in
        let (h, b) = (x.reinterpreted(as: F16x2.self), x.reinterpreted(as: BF16x2.self))
        return [k.unpack(h).low, k.unpack(h).high, k.unpack(b).low, k.unpack(b).high].map {
          $0.reinterpreted(as: U32.self)
        }
      }
      for lane in 0..<32 {
        for half in 0..<2 {
          let bits = UInt16(truncatingIfNeeded: pairs[lane] >> UInt32(16 * half))
          let f16 = Float(Float16(bitPattern: bits))
          #expect(results[half][lane] == f16.bitPattern || f16.isNaN)
          #expect(results[2 + half][lane] == UInt32(bits) << 16)
        }
      }
    }
    let floats: [Float] = [
      1.00048828125, 1.0009765625, 65504, 65519.99, 65520, 1e-8, 5.96e-8, -2.98e-8, 0, -0, .infinity, 3.3895314e38, 448,
      464,
      1.0625, 1.1875, 0.001953125, 0.0009765625, 0.0009765626, 500, -0.4, 2.5, 3.5, -3.5, 2.147483e9, 4.3e9, -1, 1e10,
      17, 0.3, 100.7, 7,
    ]
    let words = floats.map(\.bitPattern)
    let results = try run(words, words) { k, x, _ in
      let f = x.reinterpreted(as: F32.self)
      return [
        k.pack(f, f * 2, as: F16x2.self).reinterpreted(as: U32.self),
        k.pack(f, f, as: BF16x2.self).reinterpreted(as: U32.self),
        k.unpackE4M3(k.packE4M3(f, f)).reinterpreted(as: U32.self),
        k.float(x).reinterpreted(as: U32.self), k.float(x.reinterpreted(as: S32.self)).reinterpreted(as: U32.self),
      ]
    }
    // e4m3 has three fraction bits from 2^-6 on, and steps of 2^-9 below.
    func e4m3(_ x: Float) -> Float {
      let magnitude = min(x.magnitude, 448)
      let step = Float(
        sign: .plus, exponent: max(magnitude == 0 ? -9 : Int(magnitude.exponent), -6) - 3, significand: 1)
      return (x.sign == .minus ? -1 : 1) * (magnitude / step).rounded(.toNearestOrEven) * step
    }
    for (lane, f) in floats.enumerated() {
      #expect(results[0][lane] == UInt32(Float16(f * 2).bitPattern) << 16 | UInt32(Float16(f).bitPattern))
      let brain = (words[lane] + 0x7fff + (words[lane] >> 16 & 1)) >> 16
      #expect(results[1][lane] == brain << 16 | brain)
      #expect(results[2][lane] & 0xffff == UInt32(Float16(e4m3(f)).bitPattern), "e4m3 of \(f)")
      #expect(results[3][lane] == Float(words[lane]).bitPattern)
      #expect(results[4][lane] == Float(Int32(bitPattern: words[lane])).bitPattern)
    }
  }

  /// 2^x, 1/x and log2 x within the errors that the manual states; subnormals flushed.
  @Test func approximations() throws {
    let inputs: [Float] = (0..<32).map { Float($0 - 16) * 7.3 + 0.37 }
    let positive: [Float] = (0..<32).map { exp2(Float($0 - 16) * 5) * 1.3 }
    let results = try run(inputs.map(\.bitPattern), positive.map(\.bitPattern)) { k, x, y in
      let (f, p) = (x.reinterpreted(as: F32.self), y.reinterpreted(as: F32.self))
      return [k.exp2(f), k.reciprocal(p), k.log2(p), k.exp2(f * 0 - 140)].map { $0.reinterpreted(as: U32.self) }
    }
    for lane in 0..<32 {
      let power = exp2(Double(inputs[lane]))
      let result = Double(Float(bitPattern: results[0][lane]))
      #expect(
        power < 0x1p-126 ? result == 0 : power > 0x1p128 ? result == .infinity : abs(result / power - 1) < 0x1p-22)
      #expect(abs(Double(Float(bitPattern: results[1][lane])) * Double(positive[lane]) - 1) < 0x1p-22)
      #expect(abs(Double(Float(bitPattern: results[2][lane])) - log2(Double(positive[lane]))) < 1e-5)
      #expect(results[3][lane] == 0)
    }
  }

  /// Where the manual leaves a choice, or where one rounding differs from two: what an H200 gave.
  @Test func asTheHardwareDoes() throws {
    func one(
      _ a: UInt32, _ b: UInt32, _ body: (KernelBuilder, Register<U32>, Register<U32>) -> Register<U32>
    ) throws -> UInt32 {
      try run(.init(repeating: a, count: 32), .init(repeating: b, count: 32)) { [body($0, $1, $2)] }[0][7]
    }
    func float(_ x: Register<U32>) -> Register<F32> { x.reinterpreted(as: F32.self) }
    #expect(try one(0x40, 0) { $1 % $2 } == 0xffff_ffff)
    #expect(try one(0x40, 0) { $1 / $2 } == 0xffff_ffff)
    // There is one NaN.
    #expect(try one(0x7f80_0001, 0x40d3_264d) { (float($1) + float($2)).reinterpreted(as: U32.self) } == 0x7fff_ffff)
    #expect(try one(0xffff_ffff, 0) { (-float($1) + float($2) * 0).reinterpreted(as: U32.self) } == 0x7fff_ffff)
    #expect(
      try one(0x7fc0_0000, 0xffff_ffff) { $0.minimum(float($1), float($2)).reinterpreted(as: U32.self) } == 0x7fff_ffff)
    // A result that is too small is a zero with its sign.
    #expect(try one(0xfeff_cbbc, 0) { k, x, _ in k.reciprocal(float(x)).reinterpreted(as: U32.self) } == 0x8000_0000)
    // Both halves lie near a tie of the exact sum.
    let fused = try one(0xe12b_d718, 0xbf8b_ddb8) { k, x, y in
      let c = k.constant(0xbd57_1080, U32.self).reinterpreted(as: BF16x2.self)
      return k.multiplyAdd(x.reinterpreted(as: BF16x2.self), y.reinterpreted(as: BF16x2.self), c).reinterpreted(
        as: U32.self)
    }
    #expect(fused == 0x613a_755b)
  }

  /// A tile product by the fragments' definition, element by element.
  @Test(arguments: Matrix.Inputs.allCases)
  func matrixFragments(inputs: Matrix.Inputs) throws {
    func bits(_ value: Float) -> UInt32 {
      inputs == .f16 ? UInt32(Float16(value).bitPattern) : value.bitPattern >> 16
    }
    let a = (0..<256).map { Float(($0 * 7) % 13 - 6) / 4 }
    let b = (0..<128).map { Float(($0 * 5) % 11 - 5) / 2 }
    let kernel = try Kernel.build("tile", threadsPerBlock: 32) { k in
      let (x, y, z) = (k.pointer("a"), k.pointer("b"), k.pointer("c"))
      let lane = k.wide(k.special(.lane))
      let sums = (0..<4).map { k.variable(k.constant(Float($0))) }
      k.multiplyAdd(
        inputs, a: k.load(U32.self, count: 4, global: x + lane * 16),
        b: k.load(U32.self, count: 2, global: y + lane * 8),
        into: sums)
      k.store(sums, global: z + lane * 16)
    }
    // Lane l = 4 g + t holds of A rows g and g + 8, of B column g, columns and rows 2t, 2t + 1 and 8 more.
    var fragmentsOfA: [UInt32] = []
    var fragmentsOfB: [UInt32] = []
    for lane in 0..<32 {
      let (g, t) = (lane / 4, lane % 4)
      for (row, column) in [(g, 2 * t), (g + 8, 2 * t), (g, 2 * t + 8), (g + 8, 2 * t + 8)] {
        fragmentsOfA.append(bits(a[row * 16 + column]) | bits(a[row * 16 + column + 1]) << 16)
      }
      for row in [2 * t, 2 * t + 8] { fragmentsOfB.append(bits(b[row * 8 + g]) | bits(b[(row + 1) * 8 + g]) << 16) }
    }
    let memory = GlobalMemory()
    let z = memory.allocate("c", byteCount: 512, access: .readWrite)
    _ = try Emulator.run(
      Program(kernel),
      Launch(
        blocks: (1, 1, 1),
        arguments: [
          .pointer(memory.allocate("a", fragmentsOfA, access: .readOnly)),
          .pointer(memory.allocate("b", fragmentsOfB, access: .readOnly)), .pointer(z),
        ]), memory: memory)
    let result = try #require(memory.read(Float.self, count: 128, from: z))
    for lane in 0..<32 {
      for i in 0..<4 {
        let (row, column) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2)
        let exact = (0..<16).reduce(Float(i)) { $0 + a[row * 16 + $1] * b[$1 * 8 + column] }
        #expect(result[lane * 4 + i] == exact)
      }
    }
  }

  /// A grid over 2^33 bytes of address space, of which only the touched pages exist.
  @Test func memoryIsSparse() throws {
    let kernel = try Kernel.build("sparse", threadsPerBlock: 32) { k in
      let x = k.pointer("x")
      let place = x + k.wide(k.special(.lane)) * (1 << 28)
      k.store(k.load(U32.self, global: place) + 1, global: place, offset: 4)
    }
    let memory = GlobalMemory()
    let x = memory.allocate("x", byteCount: 1 << 33, access: .readWrite)
    for lane in 0..<32 { memory.write([UInt32(lane)], to: x + UInt64(lane) << 28) }
    _ = try Emulator.run(Program(kernel), Launch(blocks: (1, 1, 1), arguments: [.pointer(x)]), memory: memory)
    for lane in 0..<32 {
      #expect(memory.read(UInt32.self, count: 2, from: x + UInt64(lane) << 28) == [UInt32(lane), UInt32(lane) + 1])
    }
    #expect(memory.read(UInt32.self, count: 1, from: x + 100) == nil)
  }

  /// A launch that may begin early has no memory that kernels write until it has waited for the one before.
  @Test func aDependentLaunchWaits() throws {
    func run(waits: Bool, isDependent: Bool) throws -> [UInt32]? {
      let kernel = try Kernel.build("dependent", threadsPerBlock: 32) { k in
        let place = k.pointer("place")
        k.launchDependents()
        if waits { k.waitForPrerequisites() }
        k.if(k.special(.lane) .== 0) { k.store(k.load(U32.self, global: place) + 1, global: place, offset: 4) }
      }
      let memory = GlobalMemory()
      let place = memory.allocate("result", byteCount: 8, access: .readWrite)
      memory.write([UInt32(7)], to: place)
      let launch = Launch(blocks: (1, 1, 1), arguments: [.pointer(place)], isDependent: isDependent)
      _ = try Emulator.run(Program(kernel), launch, memory: memory)
      return memory.read(UInt32.self, count: 2, from: place)
    }
    #expect(try run(waits: true, isDependent: true) == [7, 8])
    #expect(try run(waits: false, isDependent: false) == [7, 8])
    let hazard = #expect(throws: Hazard.self) { try run(waits: false, isDependent: true) }
    #expect("\(hazard!)".contains("'result' may still be written by the launch before, for which nobody waited"))
  }

  /// What follows a dependent launch begins when that has ended: before the launch in front of it, if nobody waits.
  @Test func aDependentLaunchWaitsAlsoWhereItDoesNothing() throws {
    func run(waits: Bool) throws {
      let kernel = try Kernel.build("idle", threadsPerBlock: 64) { k in
        let isNeeded = k.pointer("place") .== 0
        k.if(isNeeded) { k.waitForPrerequisites() }
        if waits { k.waitForPrerequisites() }
      }
      let launch = Launch(blocks: (2, 1, 1), arguments: [.pointer(64)], isDependent: true)
      _ = try Emulator.run(Program(kernel), launch, memory: GlobalMemory())
    }
    try run(waits: true)
    let hazard = #expect(throws: Hazard.self) { try run(waits: false) }
    #expect(hazard?.kind == .race && "\(hazard!)".contains("ended without having waited for the launch before"))
  }

  /// Memory of which races are not looked for; what nobody wrote still may not be read, nor anything outside.
  @Test func memoryInAnyOrderHasNoRaces() throws {
    func run(_ access: GlobalMemory.Access, offset: Int) throws {
      let kernel = try Kernel.build("all_write", threadsPerBlock: 64) { k in
        let place = k.pointer("place")
        k.store(k.special(.threadX), global: place)
        k.store(k.load(U32.self, global: place, offset: offset), global: place)
      }
      let memory = GlobalMemory()
      let place = memory.allocate("place", byteCount: 8, access: access)
      _ = try Emulator.run(Program(kernel), Launch(blocks: (1, 1, 1), arguments: [.pointer(place)]), memory: memory)
    }
    try run(.anyOrder, offset: 0)
    for (access, offset, kind) in [
      (GlobalMemory.Access.readWrite, 0, Hazard.Kind.race), (.anyOrder, 4, .uninitialized),
      (.anyOrder, 8, .outOfBounds),
    ] {
      let hazard = #expect(throws: Hazard.self) { try run(access, offset: offset) }
      #expect(hazard?.kind == kind)
    }
  }
}
