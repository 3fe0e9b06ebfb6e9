import AttentionBenchmarks
import AttentionVerification
import PTX
import PTXEmulator
import Testing

/// The kernels that measure what Hopper's units give do nothing forbidden, and do as much as is counted.
@Suite struct HopperProbeTests {
  static let kernels: [HopperProbeKernel] = [
    .products(columns: 80, isFromRegisters: false), .products(columns: 64, isFromRegisters: true),
    .copies(isMulticast: false), .copies(isMulticast: true), .exponentials(isPolynomial: false),
    .exponentials(isPolynomial: true), .turns(isByTransactionBarrier: false), .turns(isByTransactionBarrier: true),
    .chain,
    .empty,
  ]

  private func run(_ kernel: HopperProbeKernel, _ schedule: Schedule, _ turns: Int) throws -> Counters {
    let memory = GlobalMemory()
    let boxes = memory.allocate("boxes", byteCount: 4 * HopperProbeKernel.boxByteCount, access: .anyOrder)
    memory.write([UInt8](repeating: 0x5a, count: 4 * HopperProbeKernel.boxByteCount), to: boxes)
    let map = Launch.Argument.tensorMap(
      TensorMap(.bf16, address: boxes, extents: [64, 1024], strides: [128], box: [64, 128], swizzle: .bytes128))
    var arguments: [Launch.Argument] = [.pointer(memory.allocate("result", byteCount: 4, access: .readWrite))]
    switch kernel {
    case .copies: arguments += [map, .u32(3)]
    case .empty: arguments += [map, map, map, map]
    case .products, .exponentials, .turns, .chain: break
    }
    return try Emulator.run(
      Program(try kernel.kernel()),
      Launch(
        blocks: (2, 1, 1), dynamicSharedByteCount: kernel.sharedByteCount,
        arguments: arguments + [.u32(UInt32(turns))]), memory: memory, schedule: schedule, stepLimit: 5_000_000)
  }

  @Test(arguments: kernels)
  func doesNothingForbidden(kernel: HopperProbeKernel) throws {
    for schedule in WarpgroupTests.schedules {
      let (one, three) = (try run(kernel, schedule, 1), try run(kernel, schedule, 3))
      // Of two blocks, what two turns more do.
      let work = kernel.workATurn * 4
      switch kernel {
      case .products(let columns, _):
        #expect(Double(three.warpgroupProducts - one.warpgroupProducts) * Double(2 * 16 * columns * 16) == work)
      case .copies: #expect(Double(three.bulkBytesLoaded - one.bulkBytesLoaded) == work)
      case .exponentials(isPolynomial: false): #expect(Double(three.exponentials - one.exponentials) == work)
      case .exponentials, .turns, .chain, .empty: break
      }
    }
  }
}
