import PTX
import Testing

/// What the language says of Hopper's instructions before anything runs.
@Suite struct HopperKernelTests {
  private func message(_ body: (KernelBuilder) -> Void) -> String {
    do throws(KernelError) {
      _ = try Kernel.build("wrong", threadsPerBlock: 256, body)
      return "nothing was refused"
    } catch { return error.message }
  }

  private func roles(_ registers: [(groups: Int, registers: Int)]) -> String {
    message { k in k.roles(registers.map { WarpRole("role", warpgroups: $0.groups, registers: $0.registers) { _ in } })
    }
  }

  @Test func rolesAddUp() {
    #expect(roles([(1, 24), (1, 240)]) == "nothing was refused")
    #expect(roles([(1, 24)]) == "The roles have 128 threads together, the block 256; they must be the same.")
    #expect(
      roles([(1, 20), (1, 240)])
        == "The role 'role' asks for 20 registers; a thread has a multiple of 8 from 24 to 256.")
    let three = Result { () throws(KernelError) in
      try Kernel.build("three", threadsPerBlock: 384) { k in
        k.roles([
          WarpRole("producer", registers: 40) { _ in }, WarpRole("consumer", warpgroups: 2, registers: 240) { _ in },
        ])
      }
    }
    #expect(throws: KernelError.self) { try three.get() }
    // Two such blocks on a multiprocessor have half as many each.
    #expect(throws: KernelError.self) {
      try Kernel.build("two", threadsPerBlock: 256, blocksPerMultiprocessor: 2) { k in
        k.roles([WarpRole("producer", registers: 24) { _ in }, WarpRole("consumer", registers: 240) { _ in }])
      }
    }
    if case .failure(let error) = three {
      #expect(
        error.message
          == "The roles ask for 520 registers, counted for one thread of each group; 3 groups of 168 have 504.")
    }
  }

  @Test func productsThatCannotBe() {
    let tile = MatrixTile(rows: 64, columns: 64)
    func product(
      _ inputs: WarpgroupMatrix.Inputs, _ count: Int, isTransposed: Bool = false, elementByteCount: Int = 2,
      negatesA: Bool = false
    ) -> String {
      message { k in
        let tile = MatrixTile(rows: 64, columns: 64, elementByteCount: elementByteCount)
        let operand = k.descriptor(tile, at: k.dynamicShared(alignment: 1024), isTransposed: isTransposed)
        k.startProduct(inputs, a: operand, b: operand, into: k.accumulators(count), negatesA: negatesA)
      }
    }
    #expect(product(.bf16, 32) == "nothing was refused")
    #expect(
      product(.bf16, 33)
        == "A product has a multiple of 8 columns from 8 to 256; 33 accumulators are 66 columns.")
    #expect(product(.e4m3, 32) == "A is a tile of 2-byte elements; e4m3 has 1.")
    #expect(product(.e4m3, 32, elementByteCount: 1, negatesA: true) == "Bytes have no negation; negate the sums.")
    #expect(product(.bf16, 40) == "B is read for 80 of N; its tile has 64.")
    #expect(
      product(.e4m3, 32, isTransposed: true, elementByteCount: 1)
        == "Bytes cannot be transposed; k runs along the rows of both operands in memory.")
    #expect(
      message { k in
        let operand = k.descriptor(tile, at: k.dynamicShared(alignment: 1024))
        k.startProduct(.bf16, a: operand, b: operand, into: (0..<16).map { _ in k.constant(bits: 0, F16x2.self) })
      } == "There are no f16 accumulators for bf16 inputs; use f32.")
    #expect(
      message { k in
        let operand = k.descriptor(tile, at: k.dynamicShared(alignment: 1024))
        let word = k.special(.lane)
        k.startProduct(.bf16, a: [word, word], b: operand, into: k.accumulators(32))
      } == "A product takes 4 registers of A; 2 were given.")
    #expect(
      message { k in _ = k.descriptor(tile, at: k.dynamicShared(alignment: 1024)).advanced(by: 8) }
        == "An operand begins at a multiple of 16 bytes; 8 is none.")
    #expect(
      message { $0.waitForProducts(pending: 8) } == "A wait leaves 0 to 7 groups of products pending; 8 were asked for."
    )
  }

  @Test func barriersAndCopiesThatCannotBe() {
    #expect(
      message { k in k.initialize(transactionBarrier: k.dynamicShared(), arrivals: 0) }
        == "A transaction barrier counts 1 to 1048575 arrivals; 0 were asked for.")
    #expect(
      message { k in k.arrive(transactionBarrier: k.dynamicShared(), expecting: 1 << 20) }
        == "A phase of a transaction barrier takes up to 1048575 bytes; 1048576 were asked for.")
    #expect(
      message { k in
        let shared = k.dynamicShared()
        k.copy(k.tensorMap("map"), [], to: shared, barrier: shared)
      } == "A tensor has 1 to 5 dimensions; 0 coordinates were given.")
    #expect(
      message { k in k.storeMatrix([k.special(.lane), k.special(.lane), k.special(.lane)], shared: k.dynamicShared()) }
        == "stmatrix stores 1, 2 or 4 matrices; 3 were given.")
    #expect(
      message { k in k.setRegisterCount(20, isIncrease: false) }
        == "A thread has a multiple of 8 registers from 24 to 256; 20 is none.")
  }

  @Test func mapsThatCannotBe() {
    func obstacle(
      address: UInt64 = 256, _ extents: [Int] = [64, 64], _ strides: [Int] = [128], _ box: [Int] = [64, 64],
      _ swizzle: TensorMap.Swizzle = .bytes128
    ) -> String? {
      TensorMap(.bf16, address: address, extents: extents, strides: strides, box: box, swizzle: swizzle).obstacle
    }
    #expect(obstacle() == nil)
    #expect(
      obstacle([64, 64], [])
        == "A tensor map has 1 to 5 dimensions, a stride for each but the innermost, and a box of all; this one has 2, 0 and 2."
    )
    #expect(obstacle(address: 8) == "The address of a tensor map is a multiple of 16 bytes; 8 is none.")
    #expect(obstacle([64, 0]) == "A dimension of a tensor map has 1 to 2^32 elements; 0 were given.")
    #expect(
      obstacle([64, 64], [130]) == "A stride of a tensor map is a multiple of 16 bytes from 0 up to 2^40; 130 is none."
    )
    #expect(
      obstacle([64, 999], [128], [64, 257])
        == "A box of a tensor map has 1 to 256 elements along a dimension; 257 were given.")
    #expect(
      obstacle([64, 64], [128], [4, 64]) == "The rows of a tensor map's box are multiples of 16 bytes; 8 is none.")
    #expect(
      obstacle([128, 64], [256], [128, 64])
        == "The rows of a tensor map's box have 256 bytes; with a swizzle of 128 they have as many at most.")
  }

  /// sm_90a runs on 9.0 and nowhere else, and a kernel that needs it is written for nothing else.
  @Test func whatIsHoppersAloneStaysThere() throws {
    #expect(
      Target.sm90a.runs(onCapability: 90) && !Target.sm90a.runs(onCapability: 100)
        && !Target.sm90a.runs(onCapability: 89))
    #expect(
      Target.sm90.runs(onCapability: 120) && Target.sm80.runs(onCapability: 90) && !Target.sm90.runs(onCapability: 89))
    let blackwell = try #require(Target("sm_100"))
    #expect(!blackwell.has(.sm90a) && blackwell.has(.sm90) && Target.sm90a.has(.sm90) && !Target.sm90.has(.sm90a))
    let kernel = try InstructionCatalogue.warpgroups(.bf16, .f32)
    #expect(try kernel.text().hasPrefix(".version 8.0\n.target sm_90a\n"))
    let error = #expect(throws: KernelError.self) { try kernel.text(target: blackwell) }
    #expect(error?.message.hasSuffix("` needs sm_90a; sm_100 was asked for.") == true)
    #expect(try InstructionCatalogue.copies().text().contains(".reqnctapercluster 2, 1, 1\n"))
    #expect(try InstructionCatalogue.copies().text().contains("  .param .align 64 .b8 parameter_0[128],  // map1\n"))
  }

  /// A tile's bytes, each once, whatever the swizzle; and where its operands begin.
  @Test(arguments: TensorMap.Swizzle.allCases.filter { $0 != .none })
  func tilesHaveAPlaceForEachElement(swizzle: TensorMap.Swizzle) {
    for (rows, columns) in [(64, 64), (16, 128), (8, 24)] {
      let tile = MatrixTile(rows: rows, columns: columns, swizzle: swizzle)
      let places = (0..<rows).flatMap { row in (0..<columns).map { tile.offset(row: row, column: $0) } }
      #expect(Set(places).count == rows * columns && places.allSatisfy { (0..<tile.byteCount).contains($0) })
      // Eight rows of one 16-byte column lie in as many different banks as the pattern is wide.
      let banks = Set((0..<8).map { tile.offset(row: $0, column: 0) % 128 / 16 })
      #expect(banks.count == 8)
    }
  }
}
