import FlashAttention
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

  /// Gradients of a file: those of the library, and sentences for what cannot be.
  @Test func gradientsAreWrittenBeside() throws {
    let (input, output) = (path("input.safetensors"), path("output.safetensors"))
    let shape = "--batch 2 --query-heads 4 --kv-heads 2 --queries 9 --keys 13 --dim 16 --layout bnhd --seed 5"
    #expect(try CommandLineTool.run("generate \(shape) -o \(input)").code == 0)
    let file = try SafetensorsFile(path: input)
    let given = try StoredArray(extents: [2, 9, 4, 16], floats: (0..<2 * 9 * 4 * 16).map { Float($0 % 7) - 3 })
    let ofLogSumExp = try StoredArray(extents: [2, 4, 9], floats: (0..<72).map { Float($0 % 5) - 2 })
    let all = try file.names.map { ($0, try file.array($0)) }
    try SafetensorsFile.write(
      all + [("dout", given), ("dout_lse", ofLogSumExp)], metadata: file.metadata, to: input)
    let result = try CommandLineTool.run("run \(input) --causal --gradients dout -o \(output)")
    #expect(result.code == 0, "\(result.errors)")
    let written = try SafetensorsFile(path: output)
    #expect(Set(written.names) == ["output", "lse", "dq", "dk", "dv"])
    let tensors = try ["q", "k", "v"].map { try #require(try file.array($0).tensor(layout: .bnhd)) }
    let forward = try attentionWithLogSumExp(queries: tensors[0], keys: tensors[1], values: tensors[2], mask: .causal)
    let expected = try attentionGradients(
      of: forward, queries: tensors[0], keys: tensors[1], values: tensors[2],
      outputGradient: try #require(try given.tensor(layout: .bnhd)), logSumExpGradient: ofLogSumExp.floats,
      mask: .causal)
    for (name, gradient) in [("dq", expected.queries), ("dk", expected.keys), ("dv", expected.values)] {
      #expect(try written.array(name).floats == StoredArray(gradient).floats, "\(name)")
    }
    for (options, message) in [
      ("--gradients dout", "--gradients reads a .safetensors FILE and writes one; give both FILE and --output."),
      ("--gradients dout_lse -o \(output)", "the output has [2, 9, 4, 16]"),
      ("--gradients none -o \(output)", "none"),
    ] {
      let refused = try CommandLineTool.run("run \(input) \(options)")
      #expect(refused.code != 0 && refused.errors.contains(message), "\(refused.errors)")
    }
  }

  /// Sinks of a file: in the result, in the comparison, and with a gradient of their own.
  @Test func sinksOfAFileCount() throws {
    let (input, output) = (path("input.safetensors"), path("output.safetensors"))
    let shape = "--batch 1 --query-heads 4 --kv-heads 2 --queries 9 --keys 13 --dim 16 --layout bnhd --seed 5"
    #expect(try CommandLineTool.run("generate \(shape) -o \(input)").code == 0)
    let file = try SafetensorsFile(path: input)
    let all = try file.names.map { ($0, try file.array($0)) }
    let tensors = try ["q", "k", "v"].map { try #require(try file.array($0).tensor(layout: .bnhd)) }
    let sinks: [Float] = [0.5, -2, 3, 1]
    let given = try Tensor(shape: tensors[0].shape, scalarType: .f32, layout: .bnhd) {
      Float(($2 + $3) % 3) - Float($1)
    }
    let forward = try attentionWithLogSumExp(
      queries: tensors[0], keys: tensors[1], values: tensors[2], mask: .causal, sinks: sinks)
    try SafetensorsFile.write(
      all + [
        ("sinks", try StoredArray(extents: [4], floats: sinks)), ("dout", StoredArray(given)),
        ("right", StoredArray(forward.output)),
      ], metadata: file.metadata, to: input)
    let result = try CommandLineTool.run("run \(input) --causal --compare right --gradients dout -o \(output)")
    #expect(result.code == 0 && result.output.contains(", sinks"), "\(result.errors)")
    let expected = try attentionGradients(
      of: forward, queries: tensors[0], keys: tensors[1], values: tensors[2], outputGradient: given, mask: .causal,
      sinks: sinks)
    let written = try SafetensorsFile(path: output)
    #expect(try written.array("output").floats == StoredArray(forward.output).floats)
    #expect(try written.array("dsinks").floats == expected.sinks)
    try SafetensorsFile.write(
      all + [("sinks", try StoredArray(extents: [3], floats: [1, 2, 3]))], metadata: file.metadata, to: input)
    let refused = try CommandLineTool.run("run \(input)")
    #expect(refused.code != 0 && refused.errors.contains("one number for each of 4 query heads"), "\(refused.errors)")
  }

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

  /// Bytes of a safetensors file, whose tensors may be integers.
  private func file(_ tensors: [(name: String, type: String, extents: [Int], bytes: [UInt8])]) -> Data {
    var (header, data) = ("{\"__metadata__\":{\"layout\":\"bnhd\"}", Data())
    for tensor in tensors {
      header += ",\"\(tensor.name)\":{\"dtype\":\"\(tensor.type)\",\"shape\":\(tensor.extents),"
      header += "\"data_offsets\":[\(data.count),\(data.count + tensor.bytes.count)]}"
      data += tensor.bytes
    }
    header += "}"
    return withUnsafeBytes(of: UInt64(header.utf8.count).littleEndian) { Data($0) } + Data(header.utf8) + data
  }

  /// Ranges of keys of a file: in the result, beside a cache too, in the comparison, and in the gradients.
  @Test func rangesOfAFileAreSeen() throws {
    func floats(_ values: [Float]) -> [UInt8] { values.withUnsafeBytes(Array.init) }
    func integers(_ values: [Int32]) -> [UInt8] { values.withUnsafeBytes(Array.init) }
    func tensor(_ heads: Int, _ length: Int, _ shift: Int) throws -> Tensor {
      try Tensor(
        shape: TensorShape(batch: 1, heads: heads, length: length, dimension: 8), scalarType: .f32, layout: .bnhd
      ) { _, h, n, d in Float((h * 5 + n * 7 + d * 3 + shift) % 11) / 5 - 1 }
    }
    let (q, k, v, given) = (try tensor(4, 3, 0), try tensor(2, 7, 1), try tensor(2, 7, 4), try tensor(4, 3, 2))
    let ranges = KeyRanges.given([[0..<2, 5..<7], [1..<6], []])
    let forward = try attentionWithLogSumExp(queries: q, keys: k, values: v, ranges: ranges)
    let gradients = try attentionGradients(
      of: forward, queries: q, keys: k, values: v, outputGradient: given, ranges: ranges)
    func write(_ name: String, _ more: [(name: String, type: String, extents: [Int], bytes: [UInt8])]) throws -> String
    {
      let all = [
        ("q", q), ("k", k), ("v", v), ("dout", given), ("right", forward.output),
      ].map { ($0, "F32", $1.layout.extents(of: $1.shape), floats(StoredArray($1).floats)) }
      try file(all + more).write(to: URL(filePath: path(name)))
      return path(name)
    }
    let numbers = integers(ranges.numbers!.map { Int32($0) })
    let (input, output) = (
      try write("ranges.safetensors", [("key_ranges", "I32", [1, 3, 2, 2], numbers)]), path("o.safetensors")
    )
    let result = try CommandLineTool.run("run \(input) --device cpu --compare right --gradients dout -o \(output)")
    #expect(result.code == 0 && result.output.contains(", 2 ranges of keys for each query"), "\(result.errors)")
    let written = try SafetensorsFile(path: output)
    #expect(try written.array("output").floats == StoredArray(forward.output).floats)
    #expect(try written.array("dk").floats == StoredArray(gradients.keys).floats)
    let cached = try write(
      "cached.safetensors",
      [("key_ranges", "I32", [1, 3, 2, 2], numbers), ("cache_lengths", "I32", [1], integers([7]))])
    #expect(try CommandLineTool.run("run \(cached) --device cpu --compare right").code == 0)
    let bad = try CommandLineTool.run(
      "run \(try write("bad.safetensors", [("key_ranges", "I32", [1, 6, 1, 2], numbers)])) --device cpu")
    #expect(
      bad.code == 2 && bad.errors.contains("[1 or 1, 3, 1 or 2, 2] is needed: the first key of a range"),
      "\(bad.errors)")
  }

  /// Lengths, places and pages as tensors of the file: the same result as over the keys alone.
  @Test func cachesInAFile() throws {
    func number(_ i: Int) -> Float { Float(i * 2_654_435_761 % 1009) / 504 - 1 }
    func floats(_ values: [Float]) -> [UInt8] { values.withUnsafeBytes(Array.init) }
    func integers(_ values: [Int32]) -> [UInt8] { values.withUnsafeBytes(Array.init) }
    // Two sequences of 5 and 3 keys, [tokens, 2 heads, 8].
    let q = (0..<2 * 2 * 4 * 8).map(number)
    let (k, v) = ((0..<2 * 5 * 16).map { number($0 + 5) }, (0..<2 * 5 * 16).map { number($0 + 9) })
    func rows(_ values: [Float], _ b: Int, _ n: Int) -> [Float] {
      Array(values[(b * 5 + n) * 16..<(b * 5 + n + 1) * 16])
    }
    var expected: [Float] = []
    for (b, length) in [(0, 5), (1, 3)] {
      let name = path("one\(b).safetensors")
      try file([
        ("q", "F32", [1, 2, 4, 8], floats(Array(q[b * 64..<(b + 1) * 64]))),
        ("k", "F32", [1, length, 2, 8], floats((0..<length).flatMap { rows(k, b, $0) })),
        ("v", "F32", [1, length, 2, 8], floats((0..<length).flatMap { rows(v, b, $0) })),
      ]).write(to: URL(filePath: name))
      #expect(try CommandLineTool.run("run \(name) --causal --device cpu -o \(path("o\(b).safetensors"))").code == 0)
      expected += try SafetensorsFile(path: path("o\(b).safetensors")).array("output").floats
    }
    // The second sequence is in place 0, the first in place 2; NaN elsewhere.
    func cache(_ values: [Float]) -> [Float] {
      (0..<3).flatMap { place in
        (0..<5).flatMap { n in
          place == 2
            ? rows(values, 0, n) : place == 0 && n < 3 ? rows(values, 1, n) : [Float](repeating: .nan, count: 16)
        }
      }
    }
    func pages(_ values: [Float]) -> [Float] {
      // Pages of 2: the first sequence has 4, 0 and 2, the second 1 and 5.
      let owners = [(0, 2), (1, 0), (0, 4), (9, 0), (0, 0), (1, 2)]
      return owners.flatMap { b, first in
        (0..<2).flatMap { i in
          b < 2 && first + i < (b == 0 ? 5 : 3) ? rows(values, b, first + i) : [Float](repeating: .nan, count: 16)
        }
      }
    }
    let common = [
      ("q", "F32", [2, 2, 4, 8], floats(q)), ("expected", "F32", [2, 2, 4, 8], floats(expected)),
      ("cache_lengths", "I32", [2], integers([5, 3])),
    ]
    for (name, tensors) in [
      (
        "contiguous",
        [
          ("k", "F32", [3, 5, 2, 8], floats(cache(k))), ("v", "F32", [3, 5, 2, 8], floats(cache(v))),
          ("batch_index", "I32", [2], integers([2, 0])),
        ]
      ),
      (
        "pages",
        [
          ("k", "F32", [6, 2, 2, 8], floats(pages(k))), ("v", "F32", [6, 2, 2, 8], floats(pages(v))),
          ("page_table", "I32", [2, 3], integers([4, 0, 2, 1, 5, 0])),
        ]
      ),
    ] {
      try file(common + tensors).write(to: URL(filePath: path("\(name).safetensors")))
      let result = try CommandLineTool.run(
        "run \(path("\(name).safetensors")) --causal --device cpu --compare expected -o \(path("out.safetensors"))")
      #expect(result.code == 0 && result.output.contains("expected: passes"), "\(result.output)\(result.errors)")
      #expect(try SafetensorsFile(path: path("out.safetensors")).array("lse").extents == [2, 4, 2])
    }
    try file(
      common + [
        ("k", "F32", [1, 5, 2, 8], floats([Float](repeating: 0, count: 80))),
        ("v", "F32", [1, 5, 2, 8], floats([Float](repeating: 0, count: 80))),
      ]
    ).write(to: URL(filePath: path("bad.safetensors")))
    let bad = try CommandLineTool.run("run \(path("bad.safetensors")) --device cpu")
    #expect(
      bad.code == 2 && bad.errors.contains("There are 1 sequences in the cache for 2 sequences; give one for each."))
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

  /// Standard output that cannot be written is an error of the machine.
  @Test(arguments: [
    "emit", "run Examples/minilm-layer3.safetensors", "--help", "bench decode --explain --batch 2 --context 64",
  ])
  func fullStandardOutputIsAnError(line: String) throws {
    let process = Process()
    process.executableURL = URL(filePath: "/bin/bash")
    process.currentDirectoryURL = CommandLineTool.root
    process.arguments = ["-c", "exec \"$0\" \(line) > /dev/full", CommandLineTool.url.path]
    let errors = Pipe()
    process.standardError = errors
    try process.run()
    let text = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    #expect(process.terminationStatus == 2 && text.contains("Error: Standard output cannot be written"), "\(text)")
  }

  /// What is read is not replaced.
  @Test func theOutputIsNoInput() throws {
    let input = path("x.safetensors")
    #expect(try CommandLineTool.run("generate --queries 8 --dim 16 -o \(input)").code == 0)
    let before = try Data(contentsOf: URL(filePath: input))
    try FileManager.default.createSymbolicLink(atPath: path("link.safetensors"), withDestinationPath: input)
    try FileManager.default.createSymbolicLink(atPath: path("o-lse.npy"), withDestinationPath: input)
    for (output, given) in [(input, input), (path("link.safetensors"), input), (path("o.npy"), input)] {
      let result = try CommandLineTool.run("run \(given) -o \(output)")
      #expect(
        result.code == 64 && result.errors.contains("is the input '\(given)'; write to another file."),
        "\(result.errors)")
    }
    #expect(try Data(contentsOf: URL(filePath: input)) == before)
  }

  /// Numbers below 0 need no equals sign, and -1 is unlimited, as in FlashAttention's own functions.
  @Test func numbersBelowZeroAreValues() throws {
    let input = path("x.safetensors")
    #expect(try CommandLineTool.run("generate --queries 8 --dim 16 -o \(input)").code == 0)
    let result = try CommandLineTool.run("run \(input) --scale -1 --window -1,0")
    #expect(
      result.code == 0 && result.output.contains("window of all left, 0 right"), "\(result.output)\(result.errors)")
  }

  /// What belongs to a cache means nothing without its lengths.
  @Test(arguments: ["page_table", "left_padding", "batch_index"]) func listsWithoutLengthsAreRefused(
    name: String
  ) throws {
    let numbers = [Float](repeating: 0.5, count: 16).withUnsafeBytes(Array.init)
    let input = path("x.safetensors")
    try file(["q", "k", "v"].map { ($0, "F32", [1, 1, 2, 8], numbers) } + [(name, "I32", [1], [0, 0, 0, 0])])
      .write(to: URL(filePath: input))
    let result = try CommandLineTool.run("run \(input)")
    #expect(
      result.code == 2
        && result.errors
          == "Error: \(input) has a tensor '\(name)', which belongs to a cache, but no 'cache_lengths'; give the lengths too, or "
          + "leave it out.\n",
      "\(result.errors)")
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
