import Attention
import AttentionKernels
import AttentionVerification
import GPURuntime
import PTX
import PTXEmulator
import Testing

/// What every family gets from the house: planned, refused, ranked, emulated and judged without another file.
@Suite struct FamilyTests {
  private let gpu = GPULimits.typical(of: .sm90)
  private let families: [any KernelFamily.Type] = KernelFamilies.all + [ToyFamily.self]

  private func sentence(_ body: () throws -> Void) -> String {
    do {
      try body()
      return "nothing was thrown"
    } catch { return "\(error)" }
  }

  private func toy(_ problem: AttentionProblem, _ tiling: String? = nil) throws -> KernelPlan {
    try KernelPlan(
      problem, on: gpu, options: KernelOptions(family: "toy", tiling: tiling.map { try TilingChanges($0) }),
      families: families)
  }

  @Test func aNewFamilyIsRankedBesideTheOthers() throws {
    let problem = try problem(.bf16, heads: 2, group: 2, queries: 30, keys: 200, mask: .causal)
    let choice = try Choice(problem, on: gpu, families: families)
    #expect(Set(choice.ranked.map(\.family)) == ["forward", "decode", "hopper-decode", "toy"])
    #expect(zip(choice.ranked, choice.ranked.dropFirst()).allSatisfy { $0.cost.seconds <= $1.cost.seconds })
    let text = "\(choice)"
    #expect(text.contains("  toy: warps=4") && text.contains("  toy: warps=1: lets most of a multiprocessor sleep"))
    let plan = try KernelPlan(problem, on: gpu, families: families)
    let second = choice.ranked.first { $0.family != plan.family }
    #expect("\(plan)".contains("; second \(second!.family) (\(second!.tiling.changes)), "), "\(plan)")
  }

  @Test func aNewFamilyRefusesInTheSameSentences() throws {
    #expect(
      sentence { _ = try toy(problem(.bf16, mask: .window(left: 3, right: 0))) }
        == "The toy kernels know no windows and chunks; leave the choice of kernels to the plan, or leave out the windows "
        + "and chunks.")
    #expect(
      sentence { _ = try toy(problem(.f16)) }
        == "The GPU has no kernel for f16; it takes bf16. Convert the tensors, or use the CPU.")
    #expect(
      sentence { _ = try toy(problem(.bf16), "warps=3") }
        == "The tiling (warps=3) cannot be read; write any of warps=1|2|4, with commas.")
    #expect(
      sentence { _ = try toy(problem(.bf16), "warps=1") }
        == "The tiling (1 rows, a warp each) lets most of a multiprocessor sleep.")
  }

  @Test(arguments: [AttentionMask.none, .causal], ["warps=2", "warps=4"])
  func aNewFamilyIsRight(mask: AttentionMask, tiling: String) throws {
    let problem = try problem(.bf16, batch: 2, heads: 2, group: 3, queries: 21, keys: 13, mask: mask)
    var attention = try EmulatedAttention(problem, layout: .bnhd, tail: 2, rowGap: 8)
    attention.plan = try toy(problem, tiling)
    #expect(try attention.run().passes)
    let report = PTXAssembler.find()?.assemble(try attention.plan.kernel().text(), for: .sm90)
    #expect(report?.isAccepted ?? true && report?.spilledBytes ?? 0 == 0)
  }

  /// Kernels of one architecture alone stay there.
  @Test func familiesOfOneArchitectureStayThere() throws {
    enum Hopper: KernelFamily {
      static let name = "hopper"
      static let architecture = Architecture.exactly(90)
      static func limitation(for problem: AttentionProblem) -> String? { nil }
      static func check(_ problem: AttentionProblem, on gpu: GPULimits) throws(AttentionError) {}
      static func tilings(for problem: AttentionProblem, on gpu: GPULimits) -> [ToyFamily.Tiling] { [.init()] }
      static func obstacle(to: ToyFamily.Tiling, for: AttentionProblem, on: GPULimits) -> String? { nil }
      static func cost(of: ToyFamily.Tiling, for: AttentionProblem, on: GPULimits) -> KernelCost {
        KernelCost(["all": 1e-9], seconds: 1e-9)
      }
      static func launches(
        _ tiling: ToyFamily.Tiling, for problem: AttentionProblem, on gpu: GPULimits
      ) throws(AttentionError) -> LaunchSequence { try ToyFamily.launches(tiling, for: problem, on: gpu) }
    }
    let problem = try problem(.bf16)
    for gpu in GPULimits.described {
      let plan = try KernelPlan(problem, on: gpu, families: [ForwardFamily.self, Hopper.self])
      #expect((plan.family == "hopper") == (gpu.capability == 90), "\(gpu.name)")
    }
    #expect(
      sentence { _ = try KernelPlan(problem, on: .typical(of: Target(100)), families: [Hopper.self]) }
        == "The GPU cannot be used: the hopper kernels are for GPUs of sm_90 alone; this is sm_100.")
  }

  /// All GPUs that are described: a plan for prefill and one for decoding, and a word where nothing was fitted there.
  @Test(arguments: GPULimits.described) func plansForEveryGPU(gpu: GPULimits) throws {
    let cached = try AttentionProblem(
      batch: 4, queries: 1, queryHeads: 32, keyValueHeads: 8, dimension: 128,
      keys: .contiguous(sequences: 4, capacity: 16384), scalarType: .bf16, mask: .causal)
    for (problem, family) in [
      (try problem(.bf16, batch: 2, heads: 16, queries: 4096, keys: 4096, dimension: 128), "forward"),
      (cached, "decode"),
    ] {
      let plan = try KernelPlan(problem, on: gpu)
      let expected = family == "forward" && gpu.capability == 90 ? "hopper" : family
      #expect(plan.family == expected && plan.cost.seconds > 1e-6 && plan.cost.seconds < 0.1)
      #expect("\(plan)".hasSuffix("its constants were not fitted on such a GPU.") == (gpu.capability != 90))
    }
    // Bytes over bandwidth: no plan promises more.
    let plan = try KernelPlan(cached, on: gpu)
    #expect(plan.cost.seconds > 4 * 8 * 16384 * 256 * 2 / gpu.bandwidth)
  }

  /// A new batch, other lengths, strides and pointers write no text, but for one sequence, up to 32, and more; and a launch's arguments are
  /// those of its kernel's parameters.
  @Test func textsAreWrittenOnce() throws {
    let cache = KernelCache()
    var names: Set<String> = []
    for batch in [1, 3, 4, 7, 32, 33, 140] {
      for capacity in [40000, 41000] {
        let problem = try AttentionProblem(
          batch: batch, queries: 1, queryHeads: 32, keyValueHeads: 8, dimension: 128,
          keys: .paged(pages: 4096, pageSize: 16, pagesPerSequence: capacity / 16), newKeys: .init(1),
          scalarType: .bf16,
          mask: .causal)
        let plan = try KernelPlan(
          problem, on: gpu,
          options: KernelOptions(tiling: TilingChanges("groups=4,keys=16,stages=3,blocks=1,waves=1,combine=behind")))
        #expect(plan.launches.launches.count == 3)
        for launch in plan.launches.launches {
          names.insert(launch.kernel.name)
          _ = try cache.text(of: launch.kernel)
        }
      }
    }
    #expect(cache.textCount == names.count)
    func count(_ start: String) -> Int { names.count { $0.hasPrefix(start) } }
    // How many rows a block puts together follows their number.
    #expect(count("decode_") == 3 && count("combine") >= 3 && names.count == 1 + 3 + count("combine"))
  }

  /// Every parameter that a kernel declares, some instruction reads; and the launch passes one argument for each.
  @Test func nothingIsPassedThatNobodyReads() throws {
    var plans = try [
      EmulatedDecoding(
        lengths: [500, 70], pageSize: 16, capacity: 512, leftPadding: [1, 2], combination: .launchBehind
      ).plan,
      EmulatedDecoding(
        lengths: [50, 7], queryCounts: [3, 1], capacity: 64, new: .init(counts: [2, 1], isPacked: true),
        cacheType: .e4m3,
        hasScales: true
      ).plan,
      EmulatedDecoding(lengths: [50, 7], queryCounts: [3, 1], hasPackedKeys: true, family: ForwardFamily.name).plan,
    ]
    plans.append(try toy(problem(.bf16, mask: .causal)))
    let left = try EmulatedDecoding(lengths: [300, 20], capacity: 512, keysPerSplit: 64, leavesParts: true)
    let turning = try EmulatedDecoding(
      lengths: [50, 7], queries: 2, capacity: 64, mask: .chunks(of: 20, left: 9), softcap: 4,
      new: .init(counts: [2, 1], rotary: RotaryEmbedding(dimension: 16, isInterleaved: false, positions: 70)))
    plans += [left.plan, turning.plan]
    var unread: Set<String> = []
    var read: Set<String> = []
    for plan in plans {
      for launch in plan.launches.launches {
        let kernel = try launch.kernel.kernel()
        #expect(launch.arguments.arguments().count == kernel.parameters.count, "\(kernel.name)")
        let names = kernel.unreadParameters
        unread.formUnion(names)
        read.formUnion(kernel.parameters.map(\.name).filter { !names.contains($0) })
      }
    }
    // One list serves all kernels of a kind; what one of them leaves, another reads.
    #expect(unread.subtracting(read).isEmpty, "\(unread.subtracting(read))")
  }

  /// With splits of a fixed length neither the number of sequences nor how long they can be decides between kernels, and so between
  /// bits.
  @Test(arguments: [(16, 1, 8, 128), (64, 8, 8, 128), (24, 1, 8, 64), (32, 8, 1, 128), (8, 8, 70, 64)])
  func fixedSplitsHaveOneKernel(heads: Int, keyValueHeads: Int, queries: Int, dimension: Int) throws {
    func choice(batch: Int, capacity: Int, isPaged: Bool) throws -> String {
      let plan = try KernelPlan(
        try AttentionProblem(
          batch: batch, queries: queries, queryHeads: heads, keyValueHeads: keyValueHeads, dimension: dimension,
          keys: isPaged
            ? .paged(pages: 9999, pageSize: 64, pagesPerSequence: capacity / 64)
            : .contiguous(sequences: batch, capacity: capacity),
          scalarType: .bf16, mask: .causal, keysPerSplit: 1024), on: .typical(of: .sm90a))
      // Who puts parts together in the same order is nobody's bits.
      return plan.family + plan.tiling.changes.split(separator: ",").filter { !$0.hasPrefix("combine") }.joined()
    }
    for isPaged in [false, true] {
      let first = try choice(batch: 1, capacity: 1024, isPaged: isPaged)
      for (batch, capacity) in [(1, 2048), (7, 3072), (64, 8192), (3000, 1024), (1, 262144)] {
        #expect(try choice(batch: batch, capacity: capacity, isPaged: isPaged) == first)
      }
    }
  }

  /// One part, whatever a sequence's length: the kernels of prefill do as well as those of decoding, and which of them does not
  /// depend on the batch.
  @Test(arguments: [(1, DecodeFamily.name), (2048, HopperForwardFamily.name)])
  func onePartWhateverTheBatch(queries: Int, family: String) throws {
    func plan(batch: Int, keysPerSplit: Int?) throws -> KernelPlan {
      try KernelPlan(
        try AttentionProblem(
          batch: batch, queries: queries, queryHeads: 32, keyValueHeads: 8, dimension: 128,
          keys: .paged(pages: 4096, pageSize: 64, pagesPerSequence: 512), scalarType: .bf16, mask: .causal,
          keysPerSplit: keysPerSplit), on: .typical(of: .sm90a))
    }
    let plans = try [1, 3, 64].map { try plan(batch: $0, keysPerSplit: AttentionProblem.allKeys) }
    for (plan, batch) in zip(plans, [1, 3, 64]) {
      #expect(plan.family == family && plan.tiling.changes == plans[0].tiling.changes)
      #expect(plan.splits(lengths: [Int](repeating: 32768, count: batch)).allSatisfy { $0 == 1 })
    }
    #expect(
      try plan(batch: 1, keysPerSplit: 4096).family == (queries == 1 ? DecodeFamily.name : HopperDecodeFamily.name))
    // Packed, the kernels of prefill on Hopper would let a neighbour's rows decide when maxima follow.
    let packed = try AttentionProblem(
      batch: 3, queries: 2048, packedQueries: 3000, queryHeads: 32, keyValueHeads: 8, dimension: 128,
      keys: .packed(total: 3000, longest: 2048), scalarType: .bf16, mask: .causal,
      keysPerSplit: AttentionProblem.allKeys)
    #expect(try KernelPlan(packed, on: .typical(of: .sm90a)).family != HopperForwardFamily.name)
    #expect(try plan(batch: 1, keysPerSplit: nil).splits(lengths: [32768]) != [1] || queries > 1)
  }
}

extension Kernel {
  /// Parameters whose value no instruction takes but the one that loads it: their register stands where it is declared
  /// and loaded.
  fileprivate var unreadParameters: [String] {
    let text = (try? text()) ?? ""
    var counts: [Substring: Int] = [:]
    for word in text.split(whereSeparator: { !($0.isLetter || $0.isNumber || $0 == "_" || $0 == "%") }) {
      counts[word, default: 0] += 1
    }
    func firstRegister(_ line: Substring?) -> Substring? {
      line?.split(whereSeparator: { " ,;".contains($0) }).first { $0.hasPrefix("%") }
    }
    let lines = text.split(separator: "\n")
    return parameters.enumerated().filter { index, parameter in
      var register = firstRegister(lines.first { $0.contains("[parameter_\(index)]") })
      if parameter.isPointer, let generic = register {
        register = firstRegister(lines.first { $0.contains("cvta.to.global") && $0.contains(", \(generic);") })
      }
      return register.map { counts[$0] ?? 0 } ?? 0 <= 2
    }.map(\.element.name)
  }
}
