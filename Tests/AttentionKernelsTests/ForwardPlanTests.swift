import Attention
import AttentionKernels
import PTX
import Testing
import flash_attention

/// What a plan chooses, and what it refuses.
@Suite struct ForwardPlanTests {
  private let h200 = GPULimits.typical(of: .sm90)

  private func sentence(_ body: () throws -> Void) -> String {
    do {
      try body()
      return "nothing was thrown"
    } catch { return "\(error)" }
  }

  /// No length, stride or pointer reaches the text of a kernel: decoding from 1 to 4096 keys takes one, and so do
  /// prompts of all lengths but the shortest.
  @Test func fewKernelsServeAllLengths() throws {
    func kernels(_ lengths: StrideThrough<Int>, _ make: (Int) throws -> AttentionProblem) rethrows -> Int {
      try Set(lengths.map { try ForwardPlan(make($0), on: h200).specialization }).count
    }
    #expect(
      try kernels(stride(from: 1, through: 4096, by: 1)) {
        try problem(.bf16, heads: 8, group: 4, queries: 1, keys: $0, dimension: 128, mask: .causal)
      } == 1)
    #expect(
      try kernels(stride(from: 1, through: 4096, by: 37)) {
        try problem(.bf16, heads: 8, queries: $0, keys: $0, dimension: 128, mask: .causal)
      } <= 3)
    let (short, long) = (try problem(batch: 2, keys: 100, scale: 0.3), try problem(batch: 7, keys: 10000, scale: 0.4))
    let texts = try [short, long].map { try ForwardPlan($0, on: h200).kernel().text() }
    #expect(texts[0] == texts[1])
  }

  @Test func fitsTheSharedMemoryOfEachGPU() throws {
    for target in ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "sm_130"].compactMap({ Target($0) }) {
      let gpu = GPULimits.typical(of: target)
      for dimension in stride(from: 8, through: 1024, by: 24) {
        for valueDimension in [8, dimension, 1024] {
          for queries in [1, 100, 4096] {
            let plan = try #require(
              try? ForwardPlan(
                problem(queries: queries, keys: 4096, dimension: dimension, valueDimension: valueDimension), on: gpu),
              "\(target) \(dimension) \(valueDimension) \(queries)")
            #expect(plan.launch.sharedByteCount <= gpu.sharedBytesPerBlock)
            let tiling = plan.specialization.tiling
            #expect(
              tiling.blocksPerMultiprocessor * (plan.launch.sharedByteCount + 1024) <= gpu.sharedBytesPerMultiprocessor)
          }
        }
      }
    }
  }

  @Test func saysWhatItChose() throws {
    let plan = try ForwardPlan(problem(.bf16, heads: 8, queries: 8192, keys: 8192, mask: .causal), on: h200)
    #expect(
      "\(plan)" == """
        GPU, H200 or the like: attention_bf16_d64_right_128x96_warps4_stages2_q
        split-q, 2 stages: tiles of 128 rows x 96 keys, 4 warps, Q in registers; 512 blocks, 64 KB of shared memory each
        """)
  }

  @Test func refusesInSentences() throws {
    #expect(
      sentence { _ = try ForwardPlan(problem(.f32), on: h200) }
        == "The GPU has no kernel for f32; it takes f16 and bf16. Convert the tensors, or use the CPU.")
    #expect(
      sentence { _ = try ForwardPlan(problem(dimension: 1032), on: h200) }
        == "The head dimension of queries and keys is 1032; the GPU path takes multiples of 8 from 8 to 1024. Pad the "
        + "dimension with zeros up to the next multiple (and keep the scale).")
    #expect(
      sentence { _ = try ForwardPlan(problem(keys: 1 << 31, dimension: 8), on: h200) }
        == "keys is 2147483648; the GPU's kernels count to 1073741824. Split the batch, or use the CPU.")
    #expect(
      sentence {
        _ = try ForwardPlan(
          problem(dimension: 256), on: h200,
          changes: "rung=split-q,warps=16,row-tiles=1,keys=128,stages=2,queries=shared")
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
      let other = try ForwardPlan(problem(dimension: 576 - dimension), on: h200).specialization.tiling
      for rung in Rung.allCases {
        let choice = TilingChoice(try problem(queries: 512, dimension: dimension), inputs: .f16, on: h200, rung: rung)
        for candidate in choice.ranked { #expect(other.changed(by: candidate.tiling.changes) == candidate.tiling) }
      }
    }
  }

  /// The ranking is explained: the plan's own tiling first, the costs in order, refusals with their reasons.
  @Test func explainsItsChoice() throws {
    let problem = try problem(queries: 8192, keys: 8192, dimension: 128)
    let plan = try ForwardPlan(problem, on: h200)
    let choice = TilingChoice(problem, inputs: .f16, on: h200)
    #expect(choice.ranked[0].tiling == plan.specialization.tiling && choice.ranked.count > 10)
    #expect(zip(choice.ranked, choice.ranked.dropFirst()).allSatisfy { $0.cycles <= $1.cycles })
    let lines = plan.explanation.split(separator: "\n")
    #expect(lines.contains { $0.hasPrefix("  1.00 ") && $0.hasSuffix(plan.specialization.tiling.changes) })
    #expect(
      lines.contains {
        $0.contains("needs about ")
          && $0.hasSuffix("registers a thread for O (128), S (64), Q (64) and the rest; there are 255")
      })
    #expect(choice.ranked.count + choice.rejected.count == lines.count - 2)
  }

  @Test func tilingsAreReadFromText() {
    let tiling = ForwardTiling().changed(by: "warps=8,row-tiles=1,keys=128,stages=3,queries=shared,blocks=1")
    #expect(
      tiling
        == ForwardTiling(
          warps: 8, rowTilesPerWarp: 1, tileKeys: 128, stages: 3, keepsQueries: false, blocksPerMultiprocessor: 1))
    for text in ["", "warps=3", "keys=20", "warps", "stages=0", "rung=split", "queries=here", "warps=8,,keys=64"] {
      let changed: ForwardTiling? = ForwardTiling().changed(by: text)
      #expect(changed == nil, "\(text)")
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
