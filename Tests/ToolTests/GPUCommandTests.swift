import Foundation
import Testing

/// What the tool does for GPUs on a machine without one.
@Suite struct GPUCommandTests {
  /// The work of lengths, shared out without a GPU; the parts are those of the kernel (`sharesAsTheRuleSays`).
  @Test func explainsHowDecodingIsSharedOut() throws {
    let result = try CommandLineTool.run(
      "bench decode --batch 3 --context 4096 --kv-heads 1 --query-heads 4 --explain --lengths 4096,0,100 "
        + "--tiling groups=4,keys=16,stages=3,blocks=1")
    #expect(result.code == 0, "\(result.errors)")
    for line in [
      "1 units (key/value heads x blocks of rows) of each sequence; 67 blocks take 1 tiles of 64 keys each",
      "0         4096     64     64", "1            0      1      1", "2          100      2      2",
    ] {
      #expect(result.output.contains(line), "\(result.output)")
    }
    #expect(result.output.contains("cost model, for these lengths: "))
    #expect(
      result.output.contains("ranked by predicted time") && result.output.contains("  decode: row-warps=1,groups=4,"))
  }

  @Test func emitsTheKernelOfAShapeWithItsPlan() throws {
    let result = try CommandLineTool.run(
      "emit --arch sm_80 --dim 128 --query-heads 8 --kv-heads 2 --causal --dtype bf16")
    #expect(result.code == 0)
    #expect(result.output.hasPrefix("//") || result.output.hasPrefix(".version"), "\(result.output.prefix(80))")
    #expect(result.output.contains(".target sm_80\n") && result.output.contains("attention_bf16_d128_group4_right_"))
    for part in [
      "plan ", "A100", "rows x", "stages", "KB of shared memory", "registers ", "MB to move", "GFLOP to compute",
    ] {
      #expect(result.errors.contains(part), "\(part) is not in: \(result.errors)")
    }
  }

  @Test func emitsTheKernelThatDecodes() throws {
    let result = try CommandLineTool.run(
      "emit --cache --batch 4 --queries 4 --query-heads 16 --kv-heads 1 --keys 16384 --dim 128 --dtype bf16 "
        + "--tiling groups=2,keys=32")
    #expect(result.code == 0)
    #expect(result.output.contains("decode_bf16_d128_group16_64x64_groups2"), "\(result.output.prefix(400))")
    for part in ["over a cache of 16384 keys", "H200", "2 groups of 4 warps", "registers "] {
      #expect(result.errors.contains(part), "\(part) is not in: \(result.errors)")
    }
  }

  /// The length is no part of the text.
  @Test func theTextDoesNotDependOnTheLength() throws {
    let texts = try ["512", "8192"].map {
      try CommandLineTool.run("emit --queries \($0) --query-heads 64 --dtype f16").output
    }
    #expect(texts[0] == texts[1] && !texts[0].isEmpty)
  }

  @Test func verifiesOnTheEmulator() throws {
    let result = try CommandLineTool.run("verify --emulate --cases 18 --kernels 9")
    #expect(result.code == 0 && result.output.contains("All passed."), "\(result.output)")
  }

  @Test func verifiesCachesOnTheCPU() throws {
    let result = try CommandLineTool.run("verify --cache --cases 40 --device cpu")
    #expect(result.code == 0 && result.output.contains("40 problems over caches"), "\(result.output)")
  }

  @Test func comparesTheRungsOnTheEmulator() throws {
    let result = try CommandLineTool.run("bench variants --emulate --dim 32 --queries 64 --query-heads 1 --kv-heads 1")
    #expect(result.code == 0, "\(result.errors)")
    let lines = result.output.split(separator: "\n").map(String.init)
    #expect(lines[0].hasPrefix("batch 1, heads 1, 64 queries x 64 keys, dimension 32, f16, no mask, on the emulator"))
    for rung in ["split-kv", "split-q", "split-q-shared-kv", "split-q-shared-qkv"] {
      for stages in ["1 stage ", "2 stages ", "3 stages "] {
        #expect(lines.contains { $0.hasPrefix("\(rung), \(stages)") })
      }
    }
  }

  @Test func explainsTheTiling() throws {
    let result = try CommandLineTool.run("emit --dim 128 --queries 4096 --arch sm_90 --explain")
    #expect(result.code == 0 && result.output.contains("ranked by predicted time"))
    #expect(result.output.contains("  1.00 ") && result.output.contains("refused:"))
  }

  @Test func writesPTXForOlderAndNewerGPUs() throws {
    for target in ["sm_86", "sm_90", "sm_90a", "sm_120", "sm_130"] {
      let result = try CommandLineTool.run("emit --dim 64 --arch \(target)")
      #expect(result.code == 0 && result.output.contains(".target \(target)\n"))
    }
  }
}
