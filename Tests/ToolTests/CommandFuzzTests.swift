import Foundation
import Testing

/// Random options with random values: whatever stands on the command line, the tool ends soon, with an exit code that
/// it promises, and with a sentence where that is not 0.
@Suite struct CommandFuzzTests {
  private static let runs = 5000
  private static let parts = 20

  private struct Numbers {
    var state: UInt64

    mutating func draw(_ limit: Int) -> Int {
      state ^= state << 13
      state ^= state >> 7
      state ^= state << 17
      return Int(state >> 33) % limit
    }

    mutating func pick(_ choices: [String]) -> String { choices[draw(choices.count)] }

    /// Mostly a small number; otherwise one that nothing can be made of, or only a sentence. What lies between would
    /// take long.
    mutating func value() -> String {
      if draw(3) > 0 { return pick(["1", "2", "3", "8", "16", "24", "33", "64"]) }
      return pick([
        "0", "-1", "-7", "-9223372036854775808", "9223372036854775807", "9223372036854775808", "4611686018427387904",
        "1099511627776", "1e9", "1.5", "-0.5", "nan", "inf", "", "abc", "--causal", "0x10", " 3", "1,2", "-1,-1", ",",
        "9223372036854775807,9223372036854775807",
      ])
    }
  }

  private static let shape = [
    "--batch", "--query-heads", "--kv-heads", "--queries", "--keys", "--dim", "--value-dim", "--window", "--chunk",
    "--scale",
    "--softcap",
  ]
  private static let types = ["f32", "f16", "bf16", "e4m3", "f64", ""]

  /// A command of small work, with options of it and now and then of others.
  private static func line(_ n: inout Numbers, _ folder: String) -> [String] {
    var line: [String]
    var options = shape
    switch n.draw(10) {
    case 0:
      line = ["run", n.pick(["\(folder)/small.safetensors", "\(folder)/none.safetensors", folder, "x.npy", ""])]
      options = ["--window", "--chunk", "--scale", "--softcap", "--query", "--compare", "--layout", "--device"]
    case 1:
      line = ["generate", "-o", "\(folder)/\(n.draw(4)).safetensors", "--queries", "8"]
      options += ["--seed", "--layout"]
    case 2...3:
      line = ["emit"] + (n.draw(2) == 0 ? ["--cache"] : [])
      options += ["--tiling", "--arch", "--example"]
    case 4...6:
      line = ["bench", "decode", "--explain", "--batch", n.value(), "--context", n.value()]
      options = [
        "--queries", "--query-heads", "--kv-heads", "--dim", "--page-size", "--new-keys", "--keys-per-split",
        "--lengths",
        "--cache-dtype", "--tiling", "--packing", "--iterations",
      ]
    case 7:
      line = ["verify", "--cases", "1", "--device", "cpu"]
      options = ["--seed", "--only", "--kernels", "--tiling"]
    case 8:
      line = ["tune"] + (n.draw(2) == 0 ? ["decode"] : ["--queries", "8"])
      options += ["--candidates", "--rung", "--iterations"]
    default:
      line = ["bench", "--queries", "8", "--iterations", "1", "--device", n.pick(["cpu", "gpu"])]
      options += ["--threads", "--repeats"]
    }
    for _ in 0..<n.draw(6) {
      let option = n.pick(n.draw(12) == 0 ? shape + ["--json", "--lines", "--cache", "--nothing", "-x"] : options)
      if n.draw(3) == 0 {
        line.append("\(option)=\(n.value())")
      } else {
        line += [option] + (n.draw(10) == 0 ? [] : [n.value()])
      }
    }
    if n.draw(4) == 0 { line += ["--dtype", n.pick(types)] }
    if n.draw(5) == 0 {
      line.append(n.pick(["--causal", "--explain", "--emulate", "--variants", "--help", "--version", "--lines"]))
    }
    return line
  }

  @Test(arguments: 0..<parts) func onlyPromisedExitCodes(part: Int) throws {
    let folder = FileManager.default.temporaryDirectory.appending(path: "flash-attention-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    let small = try CommandLineTool.run("generate --queries 8 -o \(folder.path)/small.safetensors")
    #expect(small.code == 0)
    var numbers = Numbers(state: (UInt64(part) + 1) &* 0x9e37_79b9_7f4a_7c15)
    var codes: [Int32: Int] = [:]
    for _ in 0..<Self.runs / Self.parts {
      let line = Self.line(&numbers, folder.path)
      let result = try CommandLineTool.run(line, in: folder)
      codes[result.code, default: 0] += 1
      let isPromised = [0, 1, 2, 64].contains(result.code) && !result.wasKilled
      #expect(isPromised, "\(line.joined(separator: " ")): \(result.code) \(result.errors.suffix(300))")
      if result.code == 2 || result.code == 64 {
        #expect(result.errors.contains("Error: "), "\(line.joined(separator: " ")): \(result.errors.prefix(300))")
      }
    }
    #expect(codes[0, default: 0] > 10 && codes[64, default: 0] > 10, "\(codes)")
  }
}
