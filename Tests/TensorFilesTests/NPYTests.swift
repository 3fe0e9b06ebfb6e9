import Attention
import Foundation
import TensorFiles
import Testing

@Suite struct NPYTests {
  private let folder = TemporaryFolder()

  static func file(_ header: String, version: UInt8 = 1, data: Int = 16) -> [UInt8] {
    let text = Array(header.utf8)
    let length = (0..<(version == 1 ? 2 : 4)).map { UInt8(truncatingIfNeeded: text.count >> (8 * $0)) }
    return [0x93] + Array("NUMPY".utf8) + [version, 0] + length + text + (0..<data).map { UInt8($0 & 0xff) }
  }

  @Test(arguments: ScalarType.computed)
  func whatIsWrittenIsRead(type: ScalarType) throws {
    let tensor = try Tensor(shape: .init(batch: 1, heads: 2, length: 3, dimension: 8), scalarType: type) { _, h, n, d in
      Float(h * 24 + n * 8 + d) / 4
    }
    let path = folder.path("t.npy")
    try NPYFile.write(StoredArray(tensor), to: path)
    let array = try NPYFile.read(path: path)
    #expect(array.extents == [1, 2, 3, 8])
    #expect(array.scalarType == (type == .f16 ? .f16 : .f32))
    #expect(array.floats == tensor.floats)
  }

  /// The bytes that `numpy.save` of NumPy 2.4 writes for `numpy.array([1.5], dtype="<f2")`.
  @Test func writesAsNumPyDoes() throws {
    let path = folder.path("one.npy")
    try NPYFile.write(StoredArray(extents: [1], scalarType: .f16, bytes: [0x00, 0x3e]), to: path)
    let text = "{'descr': '<f2', 'fortran_order': False, 'shape': (1,), }"
    let padding = String(repeating: " ", count: 128 - 10 - text.count - 1) + "\n"
    let bytes = try [UInt8](contentsOf: path)
    #expect(bytes == Self.file(text + padding, data: 0) + [0x00, 0x3e])
  }

  /// The first axis fastest: a value of the format, whatever NumPy's own arrays are.
  @Test func readsFortranOrder() throws {
    let numbers = (0..<24).map { Float($0) }
    let data = numbers.withUnsafeBytes(Array.init)
    for extents in [[2, 3, 4, 1], [24], [1, 4, 6, 1], [3, 0, 2]] {
      let shape = "(" + extents.map { "\($0)," }.joined(separator: " ") + ")"
      let count = extents.reduce(1, *)
      let bytes =
        Self.file("{'descr': '<f4', 'fortran_order': True, 'shape': \(shape), }", data: 0) + data.prefix(count * 4)
      let array = try NPYFile.read(path: folder.write(bytes, to: "fortran.npy"))
      #expect(array.extents == extents && array.floats.count == count)
      // Element (i, j, ...) is number i + j * n_0 + ... of the file.
      for (place, value) in array.floats.enumerated() {
        var (rest, number) = (place, 0)
        for axis in extents.indices.reversed() {
          number += rest % extents[axis] * extents[..<axis].reduce(1, *)
          rest /= extents[axis]
        }
        #expect(value == numbers[number])
      }
    }
  }

  @Test(arguments: [
    ("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }", UInt8(1), [2, 2]),
    ("{ \"shape\" : (4L,) , \"fortran_order\":False,\"descr\":\"<f4\" }  \n", 2, [4]),
    ("{'descr': '<f4', 'fortran_order': False, 'shape': ()}", 3, []),
  ])
  func readsWhatTheFormatAllows(header: String, version: UInt8, extents: [Int]) throws {
    let path = folder.write(Self.file(header, version: version), to: "x.npy")
    #expect(try NPYFile.read(path: path).extents == extents)
  }

  @Test(arguments: [
    (Array("hello, world".utf8), "it does not begin as a .npy file does."),
    ([0x93], "it has 1 bytes, too few for a header."),
    (file("{}", version: 9), "it has the unknown format version 9."),
    (file("{'descr': '<f4'}"), "its header is not the dictionary that NumPy writes."),
    (
      file("{'descr': '<f4', 'fortran_order': False, 'shape': (2, -2), }"),
      "its header is not the dictionary that NumPy writes."
    ),
    (
      Array("<html><head></head></html>".utf8),
      "it looks like an HTML page, as a download without permission leaves it."
    ),
    (SafetensorsTests.file("{}", data: 16), "it looks like a .safetensors file; give it that name."),
    (
      file("{'descr': '<f4', 'fortran_order': False, 'shape': (5,), }"),
      "its shape [5] needs 20 bytes, but 16 follow."
    ),
    (
      file("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 8), }"),
      "it has the impossible shape [4611686018427387904, 8]."
    ),
    (
      [0x93] + Array("NUMPY".utf8) + [2, 0, 0xff, 0xff, 0xff, 0x7f, 0x20],
      "its header claims 2147483647 bytes; the file has 13."
    ),
  ])
  func refusesADamagedFile(bytes: [UInt8], reason: String) {
    let path = folder.write(bytes, to: "bad.npy")
    let error = #expect(throws: TensorFileError.self) { try NPYFile.read(path: path) }
    #expect(error?.description == "\(path) is damaged or not a tensor file: \(reason)")
  }

  @Test(arguments: ["<f8", ">f4", "<i4", "|V2"])
  func refusesOtherTypes(type: String) {
    let header = "{'descr': '\(type)', 'fortran_order': False, 'shape': (2,), }"
    let path = folder.write(Self.file(header), to: "typed.npy")
    let error = #expect(throws: TensorFileError.self) { try NPYFile.read(path: path) }
    #expect(
      error?.description
        == "\(path) is of type \(type); supported are <f4 (float32) and <f2 (float16). Convert it first."
    )
  }
}

extension [UInt8] {
  init(contentsOf path: String) throws {
    self = try Array(Data(contentsOf: URL(filePath: path)))
  }
}
