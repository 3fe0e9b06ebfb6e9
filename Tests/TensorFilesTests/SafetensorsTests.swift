import Attention
import Foundation
import TensorFiles
import Testing

@Suite struct SafetensorsTests {
  private let folder = TemporaryFolder()

  /// A file with this header text and so many bytes of data.
  static func file(_ header: String, data: Int = 16) -> [UInt8] {
    let json = Array(header.utf8)
    return (0..<8).map { UInt8(truncatingIfNeeded: json.count >> (8 * $0)) } + json
      + (0..<data).map { UInt8($0 & 0xff) }
  }

  @Test(arguments: ScalarType.computed)
  func whatIsWrittenIsRead(type: ScalarType) throws {
    let shape = TensorShape(batch: 2, heads: 1, length: 3, dimension: 8)
    let tensor = try Tensor(shape: shape, scalarType: type, layout: .bnhd) { b, _, n, d in Float(b + n) + Float(d) / 8 }
    let path = folder.path("t.safetensors")
    try SafetensorsFile.write(
      [("a \"quoted\" name", StoredArray(tensor)), ("lse", StoredArray(extents: [3], floats: [1, -.infinity, 3]))],
      metadata: ["note": "x"], to: path)
    let file = try SafetensorsFile(path: path)
    #expect(Set(file.entries.keys) == ["a \"quoted\" name", "lse"])
    let array = try file.array("a \"quoted\" name")
    #expect(array.extents == [2, 3, 1, 8] && array.scalarType == type)
    #expect(try array.tensor(layout: .bnhd)?.floats == tensor.floats)
    #expect(try file.array("lse").floats == [1, -.infinity, 3])
    #expect(try file.array("lse").tensor(layout: .bhnd) == nil)
    #expect(folder.names == ["t.safetensors"])
  }

  @Test func readsWhatTheFormatDescribes() throws {
    let header =
      #"{"x":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"n":{"dtype":"I64","shape":[],"data_offsets":[16,24]}}"#
    let path = folder.write(Self.file(header, data: 24), to: "x.safetensors")
    let file = try SafetensorsFile(path: path)
    #expect(try file.array("x").floats[1] == Float(bitPattern: 0x0706_0504))
    let error = #expect(throws: TensorFileError.self) { try file.array("n") }
    #expect(
      error?.description
        == "Tensor 'n' of \(path) is of type I64; supported are F32, F16, BF16 and, in caches, F8_E4M3. Convert it first."
    )
    let missing = #expect(throws: TensorFileError.self) { try file.array("q") }
    #expect(missing?.description == "\(path) has no tensor 'q'; it holds 'n', 'x'.")
  }

  struct BadFile: Sendable, CustomTestStringConvertible {
    let bytes: [UInt8]
    /// What follows "<path> is damaged or not a tensor file: ".
    let reason: String
    var testDescription: String { reason }

    init(_ header: String, data: Int = 16, _ reason: String) {
      bytes = SafetensorsTests.file(header, data: data)
      self.reason = reason
    }

    init(bytes: [UInt8], _ reason: String) {
      self.bytes = bytes
      self.reason = reason
    }
  }

  @Test(arguments: [
    BadFile(bytes: [1, 2, 3], "it has 3 bytes, too few for a header."),
    BadFile(
      bytes: [0, 0, 0, 0, 0, 0, 0, 0x80], "its header claims 9223372036854775808 bytes; at most 100000000 are believed."
    ),
    BadFile(bytes: [100, 0, 0, 0, 0, 0, 0, 0, 0x7b], "its header claims 100 bytes, but only 1 follow."),
    BadFile("not json", "its header does not begin with '{'."),
    BadFile("[1, 2]", "its header does not begin with '{'."),
    BadFile("{nothing", "its header is not the JSON that safetensors prescribes."),
    BadFile("\u{feff}{}", "its header does not begin with '{'."),
    BadFile(
      #"{"__metadata__":{"step":3}}"#, data: 0,
      "its header is not the JSON that safetensors prescribes ('__metadata__', 'step' has another type)."),
    BadFile(
      #"{"x":{"dtype":"F32","shape":[2]}}"#, data: 0,
      "its header is not the JSON that safetensors prescribes ('x' has no 'data_offsets')."),
    BadFile(
      bytes: Array("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1234567\n".utf8),
      "it looks like a Git LFS pointer in place of the file; run git lfs pull."),
    BadFile(
      bytes: Array("<!DOCTYPE html>\n<html><body>Access denied</body></html>".utf8),
      "it looks like an HTML page, as a download without permission leaves it."),
    BadFile(
      bytes: [0x80, 4, 0x95] + [UInt8](repeating: 7, count: 40), "it looks like a Python pickle; save as safetensors."),
    BadFile(
      bytes: Array("PK\u{3}\u{4}".utf8) + [UInt8](repeating: 7, count: 40),
      "it looks like a zip archive, as torch.save and numpy.savez write; save as safetensors."),
    BadFile(
      bytes: [0x93] + Array("NUMPY".utf8) + [UInt8](repeating: 7, count: 40),
      "it looks like a .npy file; give it that name."),
    BadFile(
      #"{"x":{"dtype":"F32","shape":[1e400],"data_offsets":[0,16]}}"#,
      "its header is not the JSON that safetensors prescribes."),
    BadFile(
      #"{"x":{"dtype":"F32","shape":[4],"data_offsets":[-16,0]}}"#, "tensor 'x' claims the bytes from -16 to 0."),
    BadFile(
      #"{"x":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}"#, "tensor 'x' claims the bytes from 16 to 0."),
    BadFile(
      #"{"x":{"dtype":"F32","shape":[4],"data_offsets":[16]}}"#, "tensor 'x' has 1 data offsets instead of two."),
    BadFile(
      #"{"x":{"dtype":"F32","shape":[8],"data_offsets":[0,32]}}"#,
      "tensor 'x' ends at byte 32 of the data, but the file holds 16."),
    BadFile(
      #"{"x":{"dtype":"F32","shape":[3],"data_offsets":[0,16]}}"#,
      "tensor 'x' of shape [3] and type F32 needs 12 bytes, but has 16."),
    BadFile(
      #"{"x":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}"#, "tensor 'x' has the impossible shape [-4]."),
    BadFile(
      #"{"x":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}}"#,
      "tensor 'x' has the impossible shape [4611686018427387904, 4]."),
    BadFile(
      #"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"y":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
      "tensors 'x' and 'y' overlap."),
    BadFile(
      #"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
      "its tensors take 8 of the 16 bytes of data; the format has no holes."),
    BadFile(
      #"{"x":{"dtype":"F32","shape":[0,4611686018427387904,4611686018427387904,8],"data_offsets":[0,0]}}"#, data: 0,
      "tensor 'x' has the impossible shape [0, 4611686018427387904, 4611686018427387904, 8]."),
  ])
  func refusesALyingHeader(_ bad: BadFile) {
    let path = folder.write(bad.bytes, to: "bad.safetensors")
    let error = #expect(throws: TensorFileError.self) { try SafetensorsFile(path: path) }
    #expect(error?.description == "\(path) is damaged or not a tensor file: \(bad.reason)")
  }

  /// As the format's own reader does.
  @Test func metadataMayBeNull() throws {
    let path = folder.write(
      Self.file(#"{"__metadata__":null,"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#), to: "null.safetensors"
    )
    let file = try SafetensorsFile(path: path)
    #expect(file.metadata.isEmpty && file.names == ["x"])
  }

  @Test func saysWhyAFileCannotBeReadOrWritten() throws {
    let none = folder.path("none.safetensors")
    let missing = #expect(throws: TensorFileError.self) { try SafetensorsFile(path: none) }
    #expect(missing?.description == "\(none) cannot be read: No such file or directory.")
    let aFolder = #expect(throws: TensorFileError.self) { try SafetensorsFile(path: folder.url.path) }
    #expect(aFolder?.description == "\(folder.url.path) cannot be read: it is a folder.")
    let far = folder.path("no/such/folder/x.safetensors")
    let unwritable = #expect(throws: TensorFileError.self) { try SafetensorsFile.write([], to: far) }
    #expect(unwritable?.description == "\(far) cannot be written: No such file or directory. Nothing was written.")
    let device = #expect(throws: TensorFileError.self) { try SafetensorsFile.write([], to: "/dev/null") }
    #expect(device?.description == "/dev/null cannot be written: it is not a regular file. Nothing was written.")
    let pipe = folder.path("pipe.safetensors")
    mkfifo(pipe, 0o600)
    let waiting = #expect(throws: TensorFileError.self) { try SafetensorsFile(path: pipe) }
    #expect(waiting?.description == "\(pipe) cannot be read: it is not a regular file.")
  }

  private static let hasUnnamedFiles: Bool = {
    // O_TMPFILE
    let descriptor = open(FileManager.default.temporaryDirectory.path, O_WRONLY | 0o20000000 | O_DIRECTORY, 0o600)
    return descriptor >= 0 && close(descriptor) == 0
  }()

  /// Whoever is killed while writing leaves nothing behind, because nothing has a name before it is whole: here the
  /// pieces look into the folder while they are written.
  @Test(.enabled(if: hasUnnamedFiles, "the file system has no files without a name"))
  func nothingHasANameBeforeItIsWhole() throws {
    let own = folder.path("growing")
    try FileManager.default.createDirectory(atPath: own, withIntermediateDirectories: false)
    var seen: [[String]] = []
    let pieces = (0..<5).lazy.map { (_: Int) -> [UInt8] in
      seen.append((try? FileManager.default.contentsOfDirectory(atPath: own)) ?? ["?"])
      return [UInt8](repeating: 7, count: 1000)
    }
    try OutputFile.write(pieces, to: "\(own)/x.npy")
    #expect(seen == [[], [], [], [], []])
    #expect(try Data(contentsOf: URL(filePath: "\(own)/x.npy")).count == 5000)
    #expect(try FileManager.default.contentsOfDirectory(atPath: own) == ["x.npy"])
  }

  /// Of several files, none appears where one cannot be written, and the old ones stay.
  @Test func aFailedWriteLeavesTheOldFiles() throws {
    let path = folder.path("kept.npy")
    let one = try StoredArray(extents: [1], floats: [1])
    try NPYFile.write(one, to: path)
    let before = try Data(contentsOf: URL(filePath: path))
    try FileManager.default.createDirectory(atPath: folder.path("taken.npy"), withIntermediateDirectories: false)
    #expect(throws: TensorFileError.self) {
      try OutputFile.write([
        (path, NPYFile.pieces(of: StoredArray(extents: [1], floats: [2]))),
        (folder.path("taken.npy"), NPYFile.pieces(of: one)),
      ])
    }
    #expect(try Data(contentsOf: URL(filePath: path)) == before)
    #expect(folder.names == ["kept.npy", "taken.npy"])
  }
}
