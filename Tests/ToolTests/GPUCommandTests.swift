import Foundation
import Testing

/// What the tool does for GPUs on a machine without one.
@Suite struct GPUCommandTests {
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

  @Test func writesPTXForOlderAndNewerGPUs() throws {
    for target in ["sm_86", "sm_90", "sm_90a", "sm_120", "sm_130"] {
      let result = try CommandLineTool.run("emit --dim 64 --arch \(target)")
      #expect(result.code == 0 && result.output.contains(".target \(target)\n"))
    }
  }
}
