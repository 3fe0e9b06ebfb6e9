import Attention
import AttentionBenchmarks
import AttentionKernels
import AttentionVerification
import ExampleKernels
import PTX
import Testing

/// What ptxas made of Hopper's kernels. Skipped, by name, without `ptxas` and `nvdisasm`; CI has both and insists.
@Suite(
  .enabled(
    if: PTXAssembler.find() != nil && PTXAssembler.canDisassemble,
    "ptxas or nvdisasm is neither on the PATH nor in .venv (pip install nvidia-cuda-nvcc nvidia-cuda-nvdisasm)"))
struct MachineCodeTests {
  private func disassemble(_ text: String) throws -> (report: PTXAssembler.Report, code: MachineCode) {
    try #require(PTXAssembler.find()?.disassemble(text, for: .sm90a))
  }

  /// Of every shipped kernel: products where they are meant, one wait a slice, nothing spilled, nothing warned of.
  @Test(arguments: HopperGEMMKernel.shipped)
  func productsFly(kernel: HopperGEMMKernel) throws {
    let (report, code) = try disassemble(try kernel.kernel().text())
    #expect(report.isAccepted && report.remarks.isEmpty && report.spilledBytes == 0, "\(report.text)")
    // What a thread of 384 or of 512 begins with.
    #expect(report.registers == (kernel.groups == 2 ? 168 : 128))
    #expect(code.products == 4 && !code.isSerialized)
    #expect(code.count("USETMAXREG") == 2 && code.count("WARPGROUP.DEPBAR") == 2)
    #expect(code.count("UTMALDG") == (kernel.right == .transposed ? 2 : 1 + kernel.columns / 64))
    #expect(code.writesOfOperandsUnderWay.isEmpty)
  }

  /// Of attention, by the tilings that plans choose and those beside them: nothing warned of, nothing spilled, the products of
  /// a tile under way together, all exponentials behind the wait for its scores and before that for the output, and no operand
  /// of a product under way rewritten.
  @Test(arguments: [
    (64, 64, "groups=3,keys=128"), (64, 64, "groups=3,keys=64"), (96, 96, "groups=3,keys=96"),
    (128, 128, "groups=3,keys=64,stages=4,query-stages=2"), (128, 128, "groups=2,keys=128"),
    (128, 128, "groups=2,keys=176"), (128, 128, "groups=3,keys=80,softmax=maxima"), (192, 128, "groups=2,keys=128"),
    (256, 256, "groups=2,keys=64"), (256, 256, "groups=2,keys=80"),
  ])
  func attentionFlies(dimension: Int, valueDimension: Int, tiling: String) throws {
    let (whole, packed) = (
      AttentionProblem.KeyStorage.whole(length: 4096), AttentionProblem.KeyStorage.packed(total: 5000, longest: 4096)
    )
    for (mask, softcap, type, keys, sinkType, ranges) in [
      (AttentionMask.none, nil, .f16, whole, nil, nil), (.causal, nil, .bf16, whole, nil, nil),
      (.window(left: 500, right: 20), nil, .bf16, whole, nil, nil),
      (.window(left: 500, right: 20), nil, .bf16, whole, .bf16, nil), (.causal, 30, .f16, whole, nil, nil),
      (.causal, nil, .bf16, packed, nil, nil),
      (
        .window(left: 500, right: 20), nil, .f16,
        AttentionProblem.KeyStorage.paged(pages: 999, pageSize: 16, pagesPerSequence: 256), nil, nil
      ),
      (.causal, nil, .bf16, whole, nil, .given(count: 2, isShared: true)),
      (.window(left: 500, right: 0), nil, .bf16, whole, nil, .firstKeys(4)),
    ] as [(AttentionMask, Double?, ScalarType, AttentionProblem.KeyStorage, ScalarType?, KeyRanges.Form?)] {
      var problem = try AttentionProblem(
        batch: 2, queries: 4096, packedQueries: keys == whole ? nil : 5000, queryHeads: 8, keyValueHeads: 8,
        dimension: dimension, valueDimension: valueDimension, keys: keys, scalarType: type, mask: mask,
        softcap: softcap)
      (problem.sinkType, problem.ranges) = (sinkType, ranges)
      guard let own = HopperForwardTiling().changed(by: try TilingChanges(tiling)),
        HopperForwardFamily.obstacle(to: own, for: problem, on: .typical(of: .sm90)) == nil
      else { continue }
      let plan = try KernelPlan(problem, on: .typical(of: .sm90), own, of: HopperForwardFamily.self)
      let (report, code) = try disassemble(try plan.launches.attention.kernel.kernel().text())
      #expect(report.isAccepted && report.remarks.isEmpty && report.spilledBytes == 0, "\(plan): \(report.text)")
      #expect(report.registers == (own.groups == 2 ? 168 : 128) && code.count("USETMAXREG") == 2)
      #expect(code.count("MEMBAR.ALL.GPU") == 0)
      let (scores, output) = ((dimension + 15) / 16, own.tileKeys / 16)
      // First keys that are few have products of 16 keys, each waited for, and their exponentials in between.
      let hasFewKeys = ranges == .firstKeys(4)
      #expect(code.products == 2 * (scores + output) + (hasFewKeys ? scores + 1 : 0) && !code.isSerialized)
      #expect(code.count("WARPGROUP.DEPBAR") == (hasFewKeys ? 6 : 4))
      // Of each score one, with a softcap two, and two where rows are rescaled; in the loop the same once more where some
      // row has outgrown its maximum. (Without the vote on their sums, ptxas moves exponentials behind the next wait.)
      let exponentials = own.tileKeys / 2 * (softcap == nil ? 1 : 2) + 2
      var counts = code.counts(of: "MUFU.EX2")
      if hasFewKeys {
        #expect(counts.starts(with: [0, 16 / 2 + 2, 0]))
        counts.removeFirst(2)
      }
      if sinkType != nil {
        // Of each of two rows, two more at its end.
        #expect(counts.reduce(0, +) == (own.softmax == .lazy ? 3 : 2) * exponentials + 4)
      } else if own.softmax == .lazy {
        #expect(counts == [0, exponentials, 2 * exponentials, 0, 0])
      } else {
        #expect(counts.count == 5 && counts[1] == exponentials && counts[2] + counts[3] == exponentials)
      }
      #expect(code.writesOfOperandsUnderWay.isEmpty)
    }
  }

  /// Of gradients: nothing spilled, products of a tile not one after the other, weights while dP is under way and gradients while dV is, and no
  /// operand of a product under way rewritten. (ptxas adds fences of its own behind the loops that wait for tiles, and says so.)
  @Test(arguments: [
    (64, 64, "share=keys,passing=3"), (128, 128, "share=keys,passing=2"), (128, 64, "share=keys,passing=1"),
    (128, 128, "share=columns,passing=2"), (256, 256, "share=columns,passing=1"),
  ])
  func gradientsFly(dimension: Int, valueDimension: Int, tiling: String) throws {
    var measured = 0
    for (mask, softcap, group, order) in [
      (AttentionMask.none, nil, 1, AttentionProblem.GradientOrder.fixed), (.causal, nil, 8, .any),
      (.window(left: 500, right: 20), nil, 1, .any), (.causal, 30, 4, .any), (.causal, nil, 1, .fixed),
    ] as [(AttentionMask, Double?, Int, AttentionProblem.GradientOrder)] {
      var problem = try AttentionProblem(
        batch: 2, queries: 4096, queryHeads: 2 * group, keyValueHeads: 2, dimension: dimension,
        valueDimension: valueDimension, keys: .whole(length: 4096), scalarType: group == 8 ? .f16 : .bf16, mask: mask,
        softcap: softcap)
      problem.gradientOrder = order
      for adding in order == .any ? HopperBackwardTiling.Adding.allCases : [.copies] {
        var own = try #require(HopperBackwardTiling().changed(by: try TilingChanges(tiling)))
        (own.addsQueries, own.adding) = (order == .any, adding)
        if HopperBackwardFamily.obstacle(to: own, for: problem, on: .typical(of: .sm90)) != nil { continue }
        let plan = try KernelPlan(problem, on: .typical(of: .sm90), own, of: HopperBackwardFamily.self)
        let (report, code) = try disassemble(try plan.launches.attention.kernel.kernel().text())
        measured += 1
        #expect(report.isAccepted && report.spilledBytes == 0 && report.registers == 168, "\(plan): \(report.text)")
        #expect(report.remarks.allSatisfy { $0.contains("warpgroup.arrive is injected") }, "\(plan): \(report.remarks)")
        #expect(code.count("USETMAXREG") == 2 && code.count("MEMBAR.ALL.GPU") == 0)
        let products = (dimension + valueDimension) / 16 + 2 * 64 / 16 + (order == .any ? own.keys / 16 : 0)
        #expect(code.products == products && !code.isSerialized)
        #expect(code.writesOfOperandsUnderWay.isEmpty)
        #expect(code.count("UBLKRED") == (order == .any && adding == .copies ? 1 : 0))
        // Of 64 keys by 64 rows, or 32, by 128 threads.
        let exponentials = own.share == .keys ? 32 : 16
        #expect(code.count("MUFU.EX2") >= exponentials * (softcap == nil ? 1 : 2))
        if softcap == nil {
          #expect(code.counts(of: "MUFU.EX2").contains(exponentials), "\(code.counts(of: "MUFU.EX2"))")
        }
      }
    }
    // Of 8, those with a softcap where it takes too many registers, and copies where there is no room for them.
    #expect(measured >= 5, "\(measured)")
  }

  /// Of decoding: the same, but for exponentials, which parts that are put together have too.
  @Test(arguments: [
    (64, 64, "groups=1,keys=128"), (128, 128, "groups=1,keys=64"), (128, 128, "groups=1,keys=128"),
    (128, 128, "groups=2,keys=64"), (128, 128, "groups=2,keys=96"), (256, 256, "groups=1,keys=64"),
    (256, 256, "groups=2,keys=48"), (128, 128, "groups=halves,keys=128"), (64, 240, "groups=halves,keys=128"),
    (192, 192, "groups=halves,keys=128"),
  ])
  func decodingFlies(dimension: Int, valueDimension: Int, tiling: String) throws {
    var measured = 0
    for (mask, group, keys) in [
      (AttentionMask.causal, 16, .contiguous(sequences: 8, capacity: 8192)),
      (.window(left: 500, right: 0), 7, .paged(pages: 999, pageSize: 16, pagesPerSequence: 256)),
      (.none, 4, .packed(total: 9999, longest: 4096)),
      (.causal, 8, .contiguous(sequences: 8, capacity: 8192)),
    ] as [(AttentionMask, Int, AttentionProblem.KeyStorage)] {
      var problem = try AttentionProblem(
        batch: 8, queries: 16, queryHeads: 2 * group, keyValueHeads: 2, dimension: dimension,
        valueDimension: valueDimension, keys: keys, scalarType: group == 4 ? .f16 : .bf16, mask: mask,
        softcap: group == 8 ? 20 : nil)
      problem.sinkType = group == 7 ? .bf16 : nil
      guard let own = HopperDecodeTiling().changed(by: try TilingChanges(tiling)),
        HopperDecodeFamily.obstacle(to: own, for: problem, on: .typical(of: .sm90)) == nil
      else { continue }
      let plan = try KernelPlan(problem, on: .typical(of: .sm90), own, of: HopperDecodeFamily.self)
      let (report, code) = try disassemble(try plan.launches.attention.kernel.kernel().text())
      #expect(report.isAccepted && report.remarks.isEmpty && report.spilledBytes == 0, "\(plan): \(report.text)")
      #expect(code.products == 2 * ((dimension + 15) / 16 + own.tileKeys / own.keyGroups / 16) && !code.isSerialized)
      #expect(code.count("USETMAXREG") == 2 && code.writesOfOperandsUnderWay.isEmpty)
      measured += 1
    }
    // Of 4, one with a softcap or window that takes too many registers, or on pages of which a tile is no multiple.
    #expect(measured >= 2, "\(measured)")
  }

  /// Of both over bytes: a fence between the proxies that waits for the block's memory and not for the GPU's, and one instruction for
  /// two bytes.
  @Test(arguments: [64, 128, 256]) func bytesAreConverted(dimension: Int) throws {
    func check(_ plan: KernelPlan, products: Int, converted: Int) throws -> MachineCode {
      let (report, code) = try disassemble(try plan.launches.attention.kernel.kernel().text())
      #expect(report.isAccepted && report.remarks.isEmpty && report.spilledBytes == 0, "\(plan): \(report.text)")
      #expect(code.products == products && !code.isSerialized && code.writesOfOperandsUnderWay.isEmpty)
      #expect(code.count("USETMAXREG") == 3 && code.count("F2FP.F16.E4M3") == converted)
      return code
    }
    func problem(_ queries: Int, _ type: ScalarType, _ keys: AttentionProblem.KeyStorage) throws -> AttentionProblem {
      try AttentionProblem(
        batch: 2, queries: queries, queryHeads: 16, keyValueHeads: 2, dimension: dimension, keys: keys,
        scalarType: type,
        cacheType: .e4m3, mask: .causal)
    }
    let pages = AttentionProblem.KeyStorage.paged(pages: 999, pageSize: 16, pagesPerSequence: 256)
    // A thread converts its share of two tiles, two bytes at a time.
    func converted(_ tileKeys: Int) -> Int { tileKeys * dimension * 2 / 128 / 2 }
    let isWide = dimension == 128
    let keys = isWide ? AttentionProblem.KeyStorage.contiguous(sequences: 2, capacity: 8192) : pages
    let (prefill, decoding) = (
      try problem(2048, isWide ? .bf16 : .f16, keys), try problem(16, isWide ? .bf16 : .f16, keys)
    )
    let gpu = GPULimits.typical(of: .sm90)
    var tilings = 0
    // Of D 256, ptxas takes no product by blocks of 512 threads.
    for tiling in HopperForwardFamily.tilings(for: prefill, on: gpu)
    where HopperForwardFamily.obstacle(to: tiling, for: prefill, on: gpu) == nil {
      let plan = try KernelPlan(prefill, on: gpu, tiling, of: HopperForwardFamily.self)
      let code = try check(
        plan, products: 2 * (dimension / 16 + tiling.tileKeys / 16), converted: converted(tiling.tileKeys))
      #expect(code.count("FENCE.VIEW.ASYNC") > 0 && code.count("MEMBAR.ALL.GPU") == 0)
      tilings += 1
    }
    #expect(dimension == 256 ? tilings == 0 : tilings >= 2)
    tilings = 0
    for tiling in HopperDecodeFamily.tilings(for: decoding, on: gpu)
    where tiling.combination == .lastBlock && HopperDecodeFamily.obstacle(to: tiling, for: decoding, on: gpu) == nil {
      let plan = try KernelPlan(decoding, on: gpu, tiling, of: HopperDecodeFamily.self)
      _ = try check(
        plan, products: 2 * (dimension / 16 + tiling.tileKeys / tiling.keyGroups / 16),
        converted: converted(tiling.tileKeys))
      tilings += 1
    }
    #expect(tilings >= 2)
  }

  /// The probes measure what they are there for.
  @Test func probesAreWhatTheyMeasure() throws {
    for columns in [64, 80, 96, 128, 192, 256] {
      for isFromRegisters in [false, true] {
        let kernel = HopperProbeKernel.products(columns: columns, isFromRegisters: isFromRegisters)
        let (report, code) = try disassemble(try kernel.kernel().text())
        #expect(report.remarks.isEmpty && report.spilledBytes == 0, "\(report.text)")
        #expect(code.products == 8 && !code.isSerialized)
      }
    }
    for (kernel, opcode, count) in [
      (HopperProbeKernel.exponentials(isPolynomial: false), "MUFU.EX2", 8),
      (.exponentials(isPolynomial: true), "MUFU", 0),
      (.chain, "FFMA", HopperProbeKernel.chainLength), (.copies(isMulticast: true), "UTMALDG", 12),
    ] as [(HopperProbeKernel, String, Int)] {
      let (report, code) = try disassemble(try kernel.kernel().text())
      #expect(
        report.remarks.isEmpty && code.count(opcode) >= count && (count > 0 || code.count(opcode) == 0), "\(kernel)")
    }
  }

  /// Each of the checks fails where it should, and nowhere else.
  @Test(arguments: SlowProducts.allCases)
  func whatIsWrongIsSeen(kernel: SlowProducts) throws {
    let (report, code) = try disassemble(try kernel.text())
    #expect(report.isAccepted, "\(report.text)")
    let numbers = Set(report.remarks.compactMap { $0.firstMatch(of: /C7[0-9]+/).map { String($0.0) } })
    switch kernel {
    case .none:
      #expect(numbers.isEmpty && !code.isSerialized && report.spilledBytes == 0)
    case .writesTooEarly: #expect(numbers == [kernel.number] && code.isSerialized, "\(report.text)")
    case .readsTooEarly: #expect(numbers == [kernel.number] && !code.isSerialized, "\(report.text)")
    case .spills: #expect(!numbers.isEmpty && report.spilledBytes > 0)
    case .registersLeftOut: #expect(numbers == [kernel.number] && code.count("USETMAXREG") == 0)
    }
  }

  /// A listing with the fault of ptxas before 13.3: of two groups under way, A of the first is written before its wait.
  @Test func aRewrittenOperandIsSeen() {
    func listing(_ between: String, wait: String) -> MachineCode {
      MachineCode(
        """
        .L_x_1:
                /*0000*/                   WARPGROUP.ARRIVE ;
                /*0010*/                   HGMMA.64x64x16.F32.BF16 R24, R4, gdesc[UR8].tnspB, R24, gsb0 ;
                /*0020*/                   HGMMA.64x64x16.F32.BF16 R56, R8, gdesc[UR8].tnspB, R56, gsb0 ;
                /*0030*/                   WARPGROUP.DEPBAR.LE gsb0, \(wait) ;
                /*0040*/                   \(between) ;
                /*0050*/                   MUFU.EX2 R20, R21 ;
                /*0060*/              @P0 BRA `(.L_x_1) ;
                /*0070*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        """)
    }
    #expect(listing("MOV R9, R12", wait: "0x1").writesOfOperandsUnderWay == ["MOV R9, R12"])
    #expect(listing("LDS.128 R8, [R12]", wait: "0x1").writesOfOperandsUnderWay == ["LDS.128 R8, [R12]"])
    #expect(listing("MOV R5, R12", wait: "0x1").writesOfOperandsUnderWay.isEmpty)
    #expect(listing("MOV R9, R12", wait: "0x0").writesOfOperandsUnderWay.isEmpty)
    #expect(listing("STS.128 [R12], R8", wait: "0x1").writesOfOperandsUnderWay.isEmpty)
    #expect(listing("ISETP.NE.AND P1, PT, R9, RZ, PT", wait: "0x1").writesOfOperandsUnderWay.isEmpty)
    #expect(listing("MOV R5, R12", wait: "0x1").counts(of: "MUFU.EX2") == [0, 1, 0])
    // Around the loop: the second group of the turn before is still under way.
    let around = MachineCode(
      """
      .L_x_1:
              /*0000*/                   F2FP.BF16.F32.PACK_AB R8, R13, R12 ;
              /*0010*/                   HGMMA.64x64x16.F32.BF16 R24, R8, gdesc[UR8].tnspB, R24, gsb0 ;
              /*0020*/              @P0 BRA `(.L_x_1) ;
              /*0030*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
      """)
    #expect(around.writesOfOperandsUnderWay == ["F2FP.BF16.F32.PACK_AB R8, R13, R12"])
  }
}
