import Attention
import Foundation
import TensorFiles
import Testing

/// What a user reads when something is wrong: one sentence, the exit code, and no file left behind.
@Suite struct ErrorMessageTests {
  struct Mistake: Sendable, CustomTestStringConvertible {
    let line: String
    let code: Int32
    let message: String
    var testDescription: String { line }

    init(_ line: String, _ code: Int32, _ message: String) {
      self.line = line
      self.code = code
      self.message = message
    }
  }

  private static let example = "run Examples/minilm-layer3.safetensors"

  @Test(arguments: [
    // 64: the command line itself.
    Mistake("run", 64, "Error: Give a .safetensors FILE, or .npy files by --query, --key and --value."),
    Mistake(
      "\(example) --window 12", 64,
      "Error: The value '12' is invalid for '--window <LEFT,RIGHT>': a window is LEFT,RIGHT with one comma, such as 128,0; an empty side is unlimited."
    ),
    Mistake(
      "\(example) --window left,0", 64,
      "Error: The value 'left,0' is invalid for '--window <LEFT,RIGHT>': 'left' is not a number of keys, 0 or more."),
    Mistake(
      "\(example) --window 3,-2", 64,
      "Error: The value '3,-2' is invalid for '--window <LEFT,RIGHT>': '-2' is not a number of keys, 0 or more."),
    Mistake("\(example) --scale -1e40", 64, "Error: The scale is -1e+40; it must be a number that f32 can hold."),
    Mistake(
      "generate --dim 7 -o o.safetensors", 64, "Error: The head dimension of queries and keys is 7; the CPU path takes"),
    Mistake("generate --batch -1 -o o.safetensors", 64, "Error: The batch of queries is -1; it must be 0 or more."),
    Mistake("verify --variants --cases 2", 2, "Error: The GPU cannot be used: no NVIDIA driver was found"),
    Mistake("verify --family hopper --cases 2", 2, "Error: The GPU cannot be used: no NVIDIA driver was found"),
    Mistake("verify --cache --family hopper --cases 2", 2, "Error: The GPU cannot be used: no NVIDIA driver was found"),
    Mistake(
      "bench decode --explain --batch 2 --context 8 --json x.json", 64,
      "Error: --explain measures nothing; leave out --json."),
    Mistake(
      "bench decode --explain --batch 1000000000 --kv-heads 1 --query-heads 1 --context 8", 64,
      "Error: --explain prints a line for each of 1000000000 sequences; give a --batch of 65536 at most."),
    Mistake(
      "bench decode --explain --batch 1 --context 9223372036854775807", 64, "Error: keys (batch 1, heads 8, length"),
    Mistake(
      "bench decode --explain --batch 1 --context 8 --page-size 9223372036854775807", 64,
      "Error: keys (batch 1, heads 8, length"),
    Mistake(
      "emit --cache --queries 1099511627776 --keys 1099511627776 --dim 64", 64,
      "Error: queries x group is 1099511627776; the GPU's kernels count to 1073741824. Split the batch, or use the CPU."
    ),
    Mistake(
      "\(example) --scale inf", 64,
      "Error: The scale is inf; it must be a number that f32 can hold. Leave it out for 1/sqrt(dimension)."),
    Mistake(
      "\(example) --softcap 0", 64,
      "Error: The softcap is 0.0; it must be a number above 0 that f32 can hold. Leave it out for no cap."),
    Mistake("\(example) -o out.txt", 64, "Error: The output 'out.txt' must end in .safetensors or .npy."),
    Mistake(
      "\(example) --compare-file x.safetensors", 64,
      "Error: --compare-file also needs --compare, the name of the tensor in it."),
    Mistake(
      "emit --dtype f32", 64,
      "Error: The GPU has no kernel for f32; it takes f16 and bf16. Convert the tensors, or use the CPU."),
    Mistake("emit --example gemm --dim 64", 64, "Error: An example has no shape; leave out --example or the shape."),
    Mistake(
      "emit --dim 64 --prefix --first-keys 4", 64,
      "Error: --key-ranges, --prefix and --first-keys are three ways of the same; give one."),
    Mistake(
      "emit --dim 64 --key-ranges 3", 64, "Error: There are 3 ranges of keys for a query; give 1 or 2."),
    Mistake("tune --queries 512", 2, "Error: The GPU cannot be used: no NVIDIA driver was found"),
    Mistake("tune --queries 512 --candidates 0", 64, "Error: --candidates is 0; it must be at least 1."),
    Mistake("tune --rung split-v", 64, "Error: The value 'split-v' is invalid for '--rung <rung>'."),
    Mistake("bench decode", 2, "Error: The GPU cannot be used: no NVIDIA driver was found"),
    Mistake(
      "bench decode --batch 2", 64, "Error: A shape has both --batch and --context; give both, or none for the grid."),
    Mistake(
      "bench decode --queries 4", 64,
      "Error: --queries, --query-heads and --kv-heads belong to a shape; give --batch and --context too."),
    Mistake("run x.safetensors --chunk 0", 64, "Error: The chunk size of the mask is 0; it must be at least 1."),
    Mistake("bench decode --explain", 64, "Error: --explain is for a shape; give --batch and --context too."),
    Mistake(
      "bench decode --batch 2 --context 8 --lengths 3", 64, "Error: --lengths belongs to --explain; give both."),
    Mistake(
      "bench decode --batch 2 --context 8 --explain --lengths 3,9", 64,
      "Error: --lengths '3,9' is not understood; write 2 numbers from 0 to 8, with commas."),
    Mistake("bench decode --new-keys=-1", 64, "Error: --new-keys is -1; it must be 0 or more."),
    Mistake(
      "bench decode --peers nowhere.jsonl", 2,
      "Error: nowhere.jsonl cannot be read: no such file, or no right to read it."),
    Mistake("bench decode --batch 0 --context 8", 64, "Error: --batch is 0; it must be at least 1."),
    Mistake(
      "bench --queries 64 --tiling keys=64", 64,
      "Error: The tiling (keys=64) is for the kernels of GPUs; leave it out on the CPU."),
    Mistake(
      "verify --cache --emulate", 64,
      "Error: --cache goes with --cases, --seed, --only, --device, --kernels and --family alone."),
    Mistake("bench variants --iterations 0", 64, "Error: --iterations is 0; it must be at least 1."),
    Mistake(
      "verify --device cpu --variants", 64, "Error: --variants belongs to --device gpu; the CPU has no tilings."),
    Mistake("emit --example gemm --explain", 64, "Error: --explain is for attention; an example has one tiling."),
    Mistake(
      "emit --dim 64 --tiling rung=split-q-shared-qkv,queries=shared", 64,
      "Error: The tiling (split-q-shared-qkv, 2 stages:"),
    Mistake(
      "emit --cache --tiling warps=2", 64,
      "Error: --tiling 'warps=2' is not understood; with --cache, write any of row-warps=1|2|4, groups=1...8"),
    Mistake(
      "emit --cache --tiling groups=halves", 64,
      "Error: --tiling 'groups=halves' is for Hopper's own kernels; add --arch sm_90a."),
    Mistake(
      "emit --cache --arch sm_90a --kv-heads 1 --queries 16 --dtype bf16 --tiling groups=halves,keys=48", 64,
      "Error: The tiling (64 packed query rows and 48 keys a tile, 2 groups of four warps that divide these keys beside those that "
        + "bring keys, 2 stages, maxima only where weights outgrow them) divides 48 keys between 2 groups, which have a multiple of "
        + "16 each."),
    Mistake(
      "tune decode --query-heads 5 --queries 9", 64,
      "Error: The grid has no case of 5 query heads and 9 queries; it has 16, 32, 64 query heads, and 1, 4, 8 queries."),
    Mistake("emit --cache --example gemm", 64, "Error: --cache is for attention; leave out --example."),
    Mistake(
      "bench decode --explain --batch 1 --context 64 --kernels fast", 64,
      "Error: There are no fast kernels; there are forward, decode, hopper and hopper-decode ones."),
    Mistake(
      "bench decode --explain --batch 1 --context 64 --page-size 16 --kernels forward", 64,
      "Error: The forward kernels know no pages; leave the choice of kernels to the plan, or leave out the pages."),
    Mistake(
      "emit --arch sm_90 --tiling groups=2,query-stages=1", 64,
      "Error: --tiling 'groups=2,query-stages=1' is for Hopper's own kernels; add --arch sm_90a."),
    Mistake("emit --tiling warps=5", 64, "Error: --tiling 'warps=5' is not understood; write any of rung=split-kv|"),
    Mistake("verify --kernels 0", 64, "Error: --kernels is 0; it must be at least 1."),
    Mistake(
      "verify --emulate --device cpu", 64, "Error: --emulate belongs to --device gpu; the CPU runs no PTX."),
    Mistake("verify --cases 0", 64, "Error: --cases is 0; it must be at least 1."),
    Mistake("bench --iterations 0", 64, "Error: --iterations is 0; it must be at least 1."),
    Mistake("bench --threads 0", 64, "Error: --threads is 0; it must be from 1 to "),
    Mistake("bench --vectors mmx --device cpu", 64, "Error: --vectors: This machine has no vectors \"mmx\"; it has "),
    Mistake(
      "verify --vectors portable", 64,
      "Error: --vectors is for the CPU; give --device cpu with it, or leave it out."),
    Mistake("info --probe-megabytes 0", 64, "Error: --probe-megabytes is 0; it must be from 1 to "),
    Mistake(
      "generate --query-heads 9 --kv-heads 2 -o unwritten.safetensors", 64,
      "Error: 9 query heads cannot share 2 key/value heads evenly; the query heads must be a multiple of the key/value heads."
    ),
    Mistake(
      "generate --dim 0 -o unwritten.safetensors", 64,
      "Error: The dimension of queries is 0; it must be at least 1."),
    Mistake(
      "generate --batch=-1 -o unwritten.safetensors", 64,
      "Error: The batch of queries is -1; it must be 0 or more."),
    Mistake(
      "generate --queries 9000000000000000000 -o unwritten.safetensors", 64,
      "Error: queries (batch 1, heads 8, length 9000000000000000000, dimension 64) has more elements than memory can hold; check its extents."
    ),
    Mistake(
      "bench --dim 2048", 64,
      "Error: The head dimension of queries and keys is 2048; the CPU path takes multiples of 8 from 8 to 1024. Pad the dimension with zeros up to the next multiple (and keep the scale)."
    ),
    Mistake("generate -o x.npy", 64, "Error: The output 'x.npy' must end in .safetensors."),
    Mistake("bench --dim 32,x", 64, "Error: The value '32,x' is invalid for '--dim <dim>'"),
    Mistake("bench --dim 32,,64", 64, "Error: The value '32,,64' is invalid for '--dim <dim>'"),
    Mistake("bench --dtype f32,f8", 64, "Error: The value 'f32,f8' is invalid for '--dtype <dtype>'"),
    Mistake(
      "bench --queries 8 --and-unmasked", 64,
      "Error: --and-unmasked is for a mask; give --causal, --window or --chunk too."),
    Mistake("bench --causal", 64, "Error: Masks, scale and softcap belong to a shape; give --queries or others too."),
    Mistake(
      "run q.npy", 64, "Error: 'q.npy' holds one array; give three by --query, --key and --value instead."),
    Mistake(
      "emit --example gemm --arch volta", 64, "Error: 'volta' is no GPU architecture; write sm_80, sm_90a and the like."
    ),
    // 2: a file or the machine.
    Mistake(
      "bench --json no/such/x.json", 2,
      "Error: no/such/x.json cannot be written: No such file or directory. Nothing was written."),
    Mistake(
      "generate --queries 100000000000 -o x.safetensors", 2,
      "Error: The tensors need 819200.0 GB together; this machine has "),
    Mistake("run missing.safetensors", 2, "Error: missing.safetensors cannot be read: No such file or directory."),
    Mistake("run README.md", 2, "Error: README.md is neither a .safetensors nor a .npy file by its name."),
    Mistake(
      "\(example) --query nothing", 2,
      "Error: Examples/minilm-layer3.safetensors has no tensor 'nothing'; it holds 'expected', 'expected_causal', 'expected_lse', 'k', 'q', 'v'. Give the name of the tensor by --query."
    ),
    Mistake(
      "\(example) --query expected_lse", 2,
      "Error: Tensor 'expected_lse' of Examples/minilm-layer3.safetensors has the shape [1, 12, 256]; four axes are needed: batch, heads, tokens, dimension."
    ),
    Mistake(
      "\(example) --compare nothing", 2,
      "Error: Examples/minilm-layer3.safetensors has no tensor 'nothing'; it holds 'expected', 'expected_causal', 'expected_lse', 'k', 'q', 'v'."
    ),
    Mistake(
      "\(example) -o no/such/folder.safetensors", 2,
      "Error: no/such/folder.safetensors cannot be written: No such file or directory. Nothing was written."),
    Mistake(
      "\(example) -o README.md/x.npy", 2,
      "Error: README.md/x.npy cannot be written: Not a directory. Nothing was written."),
  ])
  func isOneSentence(_ mistake: Mistake) throws {
    let before = try FileManager.default.contentsOfDirectory(atPath: CommandLineTool.root.path)
    let result = try CommandLineTool.run(mistake.line)
    #expect(result.code == mistake.code)
    #expect(result.errors.contains(mistake.message), "\(result.errors)")
    // A wrong command line is followed by how the command at hand is called.
    let command = mistake.line.prefix { $0 != " " }
    if mistake.code == 64 {
      #expect(result.errors.contains("\nUsage: flash-attention \(command) "), "\(result.errors)")
      #expect(result.errors.contains("See 'flash-attention \(command) "), "\(result.errors)")
    }
    #expect(try FileManager.default.contentsOfDirectory(atPath: CommandLineTool.root.path) == before)
  }

  /// Files made to be wrong; the shapes that they hold do not fit each other.
  @Test func shapesInAFileThatDoNotFit() throws {
    let folder = FileManager.default.temporaryDirectory.appending(path: "flash-attention-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    func array(_ extents: [Int]) -> StoredArray {
      try! StoredArray(extents: extents, floats: .init(repeating: 0, count: extents.reduce(1, *)))
    }
    let good = array([1, 4, 6, 8])
    // Truncated, lying, and of another type: refused before anything is computed.
    for (header, data, message) in [
      ("", 0, "is damaged or not a tensor file: it has 3 bytes, too few for a header."),
      (
        #"{"q":{"dtype":"F32","shape":[1,1,1,8],"data_offsets":[0,32]}}"#, 8,
        "is damaged or not a tensor file: tensor 'q' ends at byte 32 of the data, but the file holds 8."
      ),
      (#"{"q":{"dtype":"I64","shape":[1,1,1,8],"data_offsets":[0,64]}}"#, 64, "Tensor 'q' of "),
      (
        #"{"q":{"dtype":"F32","shape":[0,4611686018427387904,4611686018427387904,8],"data_offsets":[0,0]}}"#, 0,
        "has the impossible shape"
      ),
    ] {
      let path = folder.appending(path: "x.safetensors").path
      let json = Array(header.utf8)
      let length = (0..<8).map { UInt8(truncatingIfNeeded: json.count >> (8 * $0)) }
      let bytes = header.isEmpty ? [1, 2, 3] : length + json + [UInt8](repeating: 0, count: data)
      try Data(bytes).write(to: URL(filePath: path))
      let result = try CommandLineTool.run(["run", path])
      #expect(
        result.code == 2 && result.errors.hasPrefix("Error: ") && result.errors.contains(message), "\(result.errors)")
    }

    for (q, k, v, message) in [
      (good, array([1, 3, 6, 8]), array([1, 3, 6, 8]), "4 query heads cannot share 3 key/value heads evenly"),
      (
        good, array([1, 4, 6, 8]), array([1, 4, 7, 8]),
        "keys has length 6, but values has length 7; they must be the same."
      ),
      (array([1, 4, 6, 0]), array([1, 4, 6, 0]), good, "The dimension of queries is 0; it must be at least 1."),
      (
        array([1, 1, 1, 1032]), array([1, 1, 1, 1032]), array([1, 1, 1, 8]),
        "The head dimension of queries and keys is 1032; the CPU path takes multiples of 8 from 8 to 1024."
      ),
      (
        good, StoredArray(try #require(try good.tensor(layout: .bhnd)).converted(to: .f16)), good,
        "queries is f32, but keys is f16; convert them to one type."
      ),
    ] {
      let path = folder.appending(path: "x.safetensors").path
      try SafetensorsFile.write([("q", q), ("k", k), ("v", v)], to: path)
      let result = try CommandLineTool.run(["run", path, "-o", folder.appending(path: "o.safetensors").path])
      #expect(result.code == 2)
      #expect(result.errors.hasPrefix("Error: \(message)"), "\(result.errors)")
      #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path) == ["x.safetensors"])
    }
  }

  @Test(.enabled(if: !FileManager.default.fileExists(atPath: "/dev/nvidiactl"), "this machine has a GPU"))
  func aGPUThatIsNotThere() throws {
    let result = try CommandLineTool.run("run Examples/minilm-layer3.safetensors --device gpu")
    #expect(result.code == 2)
    #expect(
      result.errors
        == "Error: The GPU cannot be used: no NVIDIA driver was found (libcuda.so.1 could not be opened).\n")
  }

  @Test func helpNamesEveryCommand() throws {
    let help = try CommandLineTool.run("--help")
    #expect(help.code == 0)
    for command in ["run", "generate", "verify", "bench", "info"] {
      #expect(help.output.contains("\n  \(command) "))
      #expect(try CommandLineTool.run("\(command) --help").code == 0)
    }
  }

  @Test func infoSaysWhatThereIs() throws {
    let info = try CommandLineTool.run("info --probe-megabytes 8")
    for field in ["vectors", "threads", "GFLOPS of f32 multiply-adds, measured", "GB/s reading 8 MB, measured", "GPU"] {
      #expect(info.output.contains(field))
    }
  }

  @Test func benchMeasuresAShapeAndWritesJSON() throws {
    let path = FileManager.default.temporaryDirectory.appending(path: "bench-\(UUID().uuidString).json").path
    defer { try? FileManager.default.removeItem(atPath: path) }
    let result = try CommandLineTool.run("bench --queries 64 --dim 32 --causal --iterations 3 --json \(path)")
    #expect(result.code == 0 && result.output.contains("of reading"))
    let json = try JSONSerialization.jsonObject(with: Data(contentsOf: URL(filePath: path))) as? [String: Any]
    let cases = try #require(json?["cases"] as? [[String: Any]])
    #expect((cases[0]["seconds"] as? [Double])?.count == 3)
    #expect(cases[0]["mask"] as? String == "causal")
  }

  @Test func benchSweepsLists() throws {
    let sweep = "bench --device cpu --queries 8,24 --dim 16,32 --dtype f32,f16 --causal --and-unmasked --iterations 1"
    let result = try CommandLineTool.run(sweep)
    let lines = result.output.split(separator: "\n")
    #expect(result.code == 0 && lines.count == 1 + 16)
    #expect(lines[1].hasPrefix("batch 1, heads 8, 8 queries x 8 keys, dimension 16, f32, no mask "))
    #expect(lines[16].hasPrefix("batch 1, heads 8, 24 queries x 24 keys, dimension 32, f16, causal "))
    // Nothing but JSON; the other commands that write it do as this one.
    let output = try CommandLineTool.run(sweep + " --json -").output
    let json = try JSONSerialization.jsonObject(with: Data(output.utf8)) as? [String: Any]
    #expect((json?["cases"] as? [[String: Any]])?.count == 16)
    let shape = "--queries 16 --dim 16 --query-heads 1 --json -"
    for command in ["bench variants --emulate", "bench backward --device cpu --iterations 1"] {
      let output = try CommandLineTool.run("\(command) \(shape)").output
      #expect(try JSONSerialization.jsonObject(with: Data(output.utf8)) is [Any], "\(command)")
    }
    #expect(!FileManager.default.fileExists(atPath: "-"))
  }

  /// What commands say to people they say to programs, too.
  @Test func commandsReportAsJSON() throws {
    func report(_ line: String, code: Int32 = 0) throws -> [String: Any] {
      let result = try CommandLineTool.run(line + " --json -")
      #expect(result.code == code, "\(result.errors)")
      return try #require(try JSONSerialization.jsonObject(with: Data(result.output.utf8)) as? [String: Any])
    }
    let info = try report("info --probe-megabytes 8")
    #expect((info["vectors"] as? [String])?.contains("portable") == true && info["threads"] is Int)

    let folder = FileManager.default.temporaryDirectory.appending(path: "flash-attention-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    let output = folder.appending(path: "out.safetensors").path
    let run = try report("\(Self.example) --compare expected -o \(output)")
    #expect((run["comparison"] as? [String: Any])?["passes"] as? Bool == true)
    #expect(run["written"] as? [String: [String]] == [output: ["output", "lse"]])
    let other = try report("\(Self.example) --compare expected_causal", code: 1)
    #expect((other["comparison"] as? [String: Any])?["passes"] as? Bool == false)
    #expect(try CommandLineTool.run("\(Self.example) -o \(output)").output.contains("written  \(output): output, lse"))

    for (options, kind) in [
      ("", "problems"), ("--cache", "caches"), ("--backward", "gradients"), ("--concurrent", "threads at once"),
    ] {
      let verify = try report("verify --device cpu --cases 2 \(options)")
      #expect(verify["kind"] as? String == kind && verify["cases"] as? Int == 2)
      #expect((verify["failures"] as? [Any])?.isEmpty == true)
    }
    let kernels = try report("verify --emulate --cases 1")
    #expect(kernels["kind"] as? String == "problems" && kernels["cases"] as? Int == 1)
    #expect((kernels["failures"] as? [Any])?.isEmpty == true && (kernels["families"] as? [Any])?.count == 1)
    // A report takes nobody's place.
    let input = folder.appending(path: "in.safetensors").path
    #expect(try CommandLineTool.run("generate --queries 4 --keys 4 --dim 8 -o \(input)").code == 0)
    for taken in [input, output] {
      let refused = try CommandLineTool.run("run \(input) -o \(output) --json \(taken)")
      #expect(refused.code == 64 && refused.errors.contains("The report '\(taken)' would take the place of '\(taken)'"))
    }
  }
}
