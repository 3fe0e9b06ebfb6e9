import Attention
import AttentionKernels
import AttentionVerification
import PTX
import Testing

/// What a plan chooses, and what it refuses.
@Suite struct ForwardPlanTests {
  private let h200 = GPULimits.typical(of: .sm90)

  private func sentence(_ body: () throws -> Void) -> String {
    do {
      try body()
      return "nothing was thrown"
    } catch { return "\(error)" }
  }

  /// No length, stride or pointer reaches the text of a kernel: decoding from 1 to 4096 keys takes three (prefill's for
  /// the shortest, and two of decoding), prompts of all lengths one or two of each family and size.
  @Test func fewKernelsServeAllLengths() throws {
    func kernels(_ lengths: StrideThrough<Int>, _ make: (Int) throws -> AttentionProblem) throws -> Int {
      try Set(lengths.map { try KernelPlan(make($0), on: h200).launches.attention.kernel.name }).count
    }
    #expect(
      try kernels(stride(from: 1, through: 4096, by: 1)) {
        try problem(.bf16, heads: 8, group: 4, queries: 1, keys: $0, dimension: 128, mask: .causal)
      } <= 3)
    #expect(
      try kernels(stride(from: 1, through: 4096, by: 37)) {
        try problem(.bf16, heads: 8, queries: $0, keys: $0, dimension: 128, mask: .causal)
      } <= 8)
    let (short, long) = (try problem(batch: 2, keys: 100, scale: 0.3), try problem(batch: 7, keys: 10000, scale: 0.4))
    for (family, tiling) in [(ForwardFamily.name, "keys=64"), (HopperForwardFamily.name, "groups=2,keys=64")] {
      let texts = try [short, long].map {
        try KernelPlan($0, on: h200, options: KernelOptions(family: family, tiling: TilingChanges(tiling))).kernel()
          .text()
      }
      #expect(texts[0] == texts[1])
    }
  }

  @Test func fitsTheSharedMemoryOfEachGPU() throws {
    for target in ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "sm_130"].compactMap({ Target($0) }) {
      let gpu = GPULimits.typical(of: target)
      for dimension in stride(from: 8, through: 1024, by: 24) {
        for valueDimension in [8, dimension, 1024] {
          for queries in [1, 100, 4096] {
            let plan = try #require(
              try? KernelPlan(
                problem(queries: queries, keys: 4096, dimension: dimension, valueDimension: valueDimension), on: gpu),
              "\(target) \(dimension) \(valueDimension) \(queries)")
            #expect(plan.launches.attention.sharedByteCount <= gpu.sharedBytesPerBlock)
            // Hopper's own take a multiprocessor each.
            let blocks = (plan.tiling as? ForwardTiling)?.blocksPerMultiprocessor ?? 1
            #expect(
              blocks * (plan.launches.attention.sharedByteCount + 1024)
                <= gpu.sharedBytesPerMultiprocessor)
          }
        }
      }
    }
  }

  @Test func saysWhatItChose() throws {
    let problem = try problem(.bf16, heads: 8, queries: 8192, keys: 8192, mask: .causal)
    #expect(
      "\(try KernelPlan(problem, on: h200))" == """
        GPU, H200 or the like: attention_hopper_bf16_d64_right_192x128_q2_kv4
        192 query rows and 128 keys a tile, 3 groups of four warps that multiply beside those that bring keys, 2 stages of Q and 4 of K \
        and of V, maxima only where weights outgrow them; 132 blocks, 176 KB of shared memory each
        The hopper kernels, at 140.8 us by the cost model; second forward (rung=split-q,warps=4,row-tiles=2,keys=96,stages=2,\
        queries=registers,blocks=2), 1.7 times as long.
        """)
    #expect(
      "\(try KernelPlan(problem, on: h200, options: KernelOptions(family: "forward")))" == """
        GPU, H200 or the like: attention_bf16_d64_right_128x96_warps4_stages2_q
        split-q, 2 stages: tiles of 128 rows x 96 keys, 4 warps, Q in registers; 512 blocks, 64 KB of shared memory each
        The forward kernels, at 243.5 us by the cost model; second forward (rung=split-q,warps=4,row-tiles=2,keys=96,stages=3,\
        queries=registers,blocks=2), 1.0 times as long.
        """)
  }

  @Test func refusesInSentences() throws {
    #expect(
      sentence { _ = try KernelPlan(problem(.f32), on: h200) }
        == "The GPU has no kernel for f32; it takes f16 and bf16. Convert the tensors, or use the CPU.")
    #expect(
      sentence { _ = try KernelPlan(problem(dimension: 1032), on: h200) }
        == "The head dimension of queries and keys is 1032; the GPU path takes multiples of 8 from 8 to 1024. Pad the "
        + "dimension with zeros up to the next multiple (and keep the scale).")
    #expect(
      sentence { _ = try KernelPlan(problem(keys: 1 << 31, dimension: 8), on: h200) }
        == "keys is 2147483648; the GPU's kernels count to 1073741824. Split the batch, or use the CPU.")
    #expect(
      sentence {
        _ = try KernelPlan(
          problem(dimension: 256), on: h200,
          options: KernelOptions(
            tiling: try TilingChanges("rung=split-q,warps=16,row-tiles=1,keys=128,stages=2,queries=shared")))
      }
        == "The tiling (split-q, 2 stages: tiles of 256 rows x 128 keys, 16 warps, Q in shared memory) needs 393216 bytes of "
        + "shared memory; a block of this GPU has 232448.")
    #expect(
      "\(AttentionError.alignment(tensor: "keys", what: "token stride", bytes: 72))"
        == "The token stride of keys is 72 bytes; on the GPU it must be a multiple of 16. Copy the tensor into memory that "
        + "is.")
  }

  /// Every candidate can be had again from its text, whatever the plan would have chosen.
  @Test func tilingsAreWrittenAsText() throws {
    for dimension in [64, 512] {
      let plan = try KernelPlan(
        problem(dimension: 576 - dimension), on: h200, options: KernelOptions(family: ForwardFamily.name))
      let other = try #require(plan.tiling as? ForwardTiling)
      for rung in Rung.allCases {
        let choice = Choice(
          try problem(queries: 512, dimension: dimension), on: h200, among: ForwardFamily.tilings(of: rung),
          of: ForwardFamily.self)
        for candidate in choice.ranked {
          let tiling = try #require(candidate.tiling as? ForwardTiling)
          #expect(try other.changed(by: TilingChanges(tiling.changes)) == tiling)
        }
      }
    }
  }

  /// The ranking is explained: the plan's own tiling first, the costs in order, refusals with their reasons.
  @Test func explainsItsChoice() throws {
    let problem = try problem(heads: 2, queries: 8192, keys: 8192, dimension: 128)
    let plan = try KernelPlan(problem, on: h200)
    let choice = try Choice(problem, on: h200)
    #expect(choice.ranked[0].tiling.changes == plan.tiling.changes && choice.ranked.count > 10)
    #expect(zip(choice.ranked, choice.ranked.dropFirst()).allSatisfy { $0.cost.seconds <= $1.cost.seconds })
    let lines = "\(choice)".split(separator: "\n")
    #expect(lines.contains { $0.hasPrefix("  1.00 ") && $0.hasSuffix(plan.tiling.changes) })
    #expect(
      lines.contains {
        $0.contains("needs about ")
          && $0.hasSuffix("registers a thread for O (128), S (64), Q (64) and the rest; there are 255")
      })
    #expect(
      lines.contains {
        $0.contains("divides no keys: there are ") && $0.hasSuffix(" units of rows for 132 multiprocessors")
      })
    #expect(choice.ranked.count + choice.refused.count == lines.count - 2)
  }

  @Test func tilingsAreReadFromText() {
    func changed(_ text: String) -> ForwardTiling? {
      (try? TilingChanges(text)).flatMap { ForwardTiling().changed(by: $0) }
    }
    let tiling = changed("warps=8,row-tiles=1,keys=128,stages=3,queries=shared,blocks=1")
    #expect(
      tiling
        == ForwardTiling(
          warps: 8, rowTilesPerWarp: 1, tileKeys: 128, stages: 3, keepsQueries: false, blocksPerMultiprocessor: 1))
    for text in ["", "warps=3", "keys=20", "warps", "stages=0", "rung=split", "queries=here", "warps=8,,keys=64"] {
      #expect(changed(text) == nil, "\(text)")
    }
  }

  /// The check of the emulator against a GPU sees a wrong bit, and allows what it should.
  @Test func theInstructionCheckNoticesDifferences() throws {
    let check = try InstructionCheck()
    let results = try check.emulate()
    #expect(results.count == check.names.count * InstructionCheck.threads && check.names.count > 40)
    #expect(check.differences(results, results).isEmpty)
    var changed = results
    for (number, bound) in check.bounds.enumerated() {
      let lane =
        number * InstructionCheck.threads + (0..<InstructionCheck.threads).first {
          Float(bitPattern: results[number * InstructionCheck.threads + $0]).isNormal
        }!
      changed[lane] ^= bound == .exact ? 1 : 1 << 16
    }
    #expect(check.differences(results, changed).count == check.names.count)
  }
}
