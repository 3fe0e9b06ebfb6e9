import Foundation
import TensorFiles
import Testing

@Suite struct RunCommandTests {
  private let folder: URL

  init() throws {
    folder = FileManager.default.temporaryDirectory.appending(path: "flash-attention-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
  }

  private func path(_ name: String) -> String { folder.appending(path: name).path }

  /// The main job, on real activations, in every type.
  @Test(arguments: ["f32", "f16", "bf16"], ["", "--causal"])
  func theExamplePasses(type: String, mask: String) throws {
    let expected = mask.isEmpty ? "expected" : "expected_causal"
    let result = try CommandLineTool.run(
      "run Examples/minilm-layer3.safetensors --dtype \(type) --compare \(expected) \(mask)")
    #expect(result.code == 0, "\(result.errors)")
    #expect(result.output.contains("compare  \(expected): passes\n"))
    for field in [
      "problem  batch 1, heads 12, 256 queries x 256 keys, dimension 32, \(type)", "plan     CPU, ", "GFLOPS",
    ] {
      #expect(result.output.contains(field))
    }
  }

  @Test func theLogSumExpPassesToo() throws {
    let result = try CommandLineTool.run("run Examples/minilm-layer3.safetensors --compare expected_lse")
    #expect(result.code == 0 && result.output.contains("expected_lse: passes"))
  }

  @Test func aWrongExpectationFailsWithExitCode1() throws {
    let result = try CommandLineTool.run("run Examples/minilm-layer3.safetensors --causal --compare expected")
    #expect(result.code == 1)
    #expect(result.output.contains("compare  expected: FAILS\n"))
  }

  @Test func whatIsWrittenCanBeComparedWith() throws {
    let input = path("input.safetensors")
    let output = path("output.safetensors")
    let generate = try CommandLineTool.run(
      "generate --batch 2 --query-heads 4 --kv-heads 2 --queries 33 --keys 65 --dim 24 --dtype bf16 --layout bnhd --seed 5 -o \(input)"
    )
    #expect(generate.code == 0, "\(generate.errors)")
    // The layout is written in the file.
    let options = "--window 20, --softcap 20 --scale 0.3"
    #expect(try CommandLineTool.run("run \(input) \(options) -o \(output)").code == 0)
    for name in ["output", "lse"] {
      let again = try CommandLineTool.run("run \(input) \(options) --compare \(name) --compare-file \(output)")
      #expect(again.code == 0, "\(again.output)\(again.errors)")
    }
    let file = try SafetensorsFile(path: output)
    #expect(try file.array("output").extents == [2, 33, 4, 24])
    #expect(try file.array("lse").extents == [2, 4, 33])
    #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path).count == 2)
  }

  /// A disk that is full in the middle of a write: one sentence, and nothing left behind.
  @Test func aFullDiskLeavesNothing() throws {
    let process = Process()
    process.executableURL = URL(filePath: "/bin/bash")
    process.arguments = [
      "-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" generate --queries 512 -o \"$1\"", CommandLineTool.url.path,
      path("full.safetensors"),
    ]
    let errors = Pipe()
    process.standardError = errors
    try process.run()
    let text = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    #expect(process.terminationStatus == 2)
    #expect(text == "Error: \(path("full.safetensors")) cannot be written: File too large. Nothing was written.\n")
    #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path).isEmpty)
  }

  @Test func generateRepeatsBySeed() throws {
    let files = try ["1", "1", "2"].enumerated().map { index, seed in
      #expect(
        try CommandLineTool.run("generate --queries 8 --seed \(seed) -o \(path("\(index).safetensors"))").code == 0)
      return try SafetensorsFile(path: path("\(index).safetensors")).array("k").floats
    }
    #expect(files[0] == files[1] && files[0] != files[2])
    let mean = files[0].reduce(0, +) / Float(files[0].count)
    let variance = files[0].map { ($0 - mean) * ($0 - mean) }.reduce(0, +) / Float(files[0].count)
    #expect(abs(mean) < 0.05 && abs(variance - 1) < 0.1)
  }

  @Test func npyInAndOut() throws {
    let example = try SafetensorsFile(path: CommandLineTool.root.path + "/Examples/minilm-layer3.safetensors")
    for name in ["q", "k", "v", "expected"] { try NPYFile.write(example.array(name), to: path("\(name).npy")) }
    let result = try CommandLineTool.run(
      "run --query q.npy --key k.npy --value v.npy -o o.npy --compare-file expected.npy", in: folder)
    #expect(result.code == 0, "\(result.output)\(result.errors)")
    #expect(try NPYFile.read(path: path("o.npy")).extents == [1, 12, 256, 32])
    #expect(try NPYFile.read(path: path("o-lse.npy")).extents == [1, 12, 256])
  }

  /// An N x N buffer of f32 would take 4295 MB; the whole process stays below 150, of which the tensors are 34.
  @Test func memoryStaysFarBelowNxN() throws {
    let input = path("long.safetensors")
    #expect(try CommandLineTool.run("generate --query-heads 1 --queries 32768 --keys 32768 -o \(input)").code == 0)
    let result = try CommandLineTool.run("run \(input)")
    let match = try #require(result.output.firstMatch(of: /memory +([0-9.]+) MB at most in use/))
    #expect(try #require(Double(match.1)) < 150, "\(result.output)")
  }
}
