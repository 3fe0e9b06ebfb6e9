internal import Attention

/// A NumPy .npy file: one array. Types `<f4` and `<f2` are read and written; bf16 has no name in this format.
///
/// Source: the format description in NumPy's documentation (`numpy.lib.format`), versions 1 to 3.
public enum NPYFile {
  private static let magic: [UInt8] = [0x93] + Array("NUMPY".utf8)

  /// The largest header that is believed; NumPy itself trusts 10000 bytes.
  static let headerLimit = 65536

  /// Reads the array.
  public static func read(path: String) throws(TensorFileError) -> StoredArray {
    let file = try InputFile(path: path)
    func malformed(_ reason: String) -> TensorFileError { .malformed(path: path, reason: reason) }

    guard file.byteCount >= 10 else { throw malformed("it has \(file.byteCount) bytes, too few for a header.") }
    let start = try file.read(10, at: 0)
    guard Array(start.prefix(6)) == magic else {
      throw malformed(
        file.looks(besides: ".npy").map { "it looks like \($0)." } ?? "it does not begin as a .npy file does.")
    }
    guard (1...3).contains(start[6]) else { throw malformed("it has the unknown format version \(start[6]).") }
    let lengthBytes = start[6] == 1 ? 2 : 4
    guard file.byteCount >= 8 + lengthBytes else { throw malformed("it ends within the header.") }
    let length = try file.read(lengthBytes, at: 8).reversed().reduce(0) { $0 << 8 | Int($1) }
    let dataStart = 8 + lengthBytes + length
    guard length <= headerLimit, dataStart <= file.byteCount else {
      throw malformed("its header claims \(length) bytes; the file has \(file.byteCount).")
    }
    let header = String(decoding: try file.read(length, at: 8 + lengthBytes), as: UTF8.self)
    guard let fields = PythonLiteral.dictionary(header), case .string(let type)? = fields["descr"],
      case .boolean(let isFortran)? = fields["fortran_order"], case .tuple(let extents)? = fields["shape"]
    else { throw malformed("its header is not the dictionary that NumPy writes.") }
    let scalarType: ScalarType
    switch type {
    case "<f4": scalarType = .f32
    case "<f2": scalarType = .f16
    default: throw .unsupportedType(path: path, name: nil, type: type)
    }
    guard let count = checkedCount(extents) else { throw malformed("it has the impossible shape \(extents).") }
    let byteCount = count * scalarType.byteCount
    guard byteCount <= file.byteCount - dataStart else {
      throw malformed("its shape \(extents) needs \(byteCount) bytes, but \(file.byteCount - dataStart) follow.")
    }
    let array = StoredArray(checked: extents, scalarType, try file.read(byteCount, at: dataStart))
    return isFortran ? array.fromFirstAxisFastest() : array
  }

  /// Writes the array; the file appears whole or not at all. bf16 is widened to f32, which is exact.
  public static func write(_ array: StoredArray, to path: String) throws(TensorFileError) {
    try OutputFile.write(pieces(of: array), to: path)
  }

  /// The file's bytes, for `OutputFile`.
  public static func pieces(of array: StoredArray) -> [[UInt8]] {
    let array =
      ![.f32, .f16].contains(array.scalarType) ? array.widened : array
    let type = array.scalarType == .f32 ? "<f4" : "<f2"
    // A tuple of one needs its comma.
    let shape = array.extents.map(String.init).joined(separator: ", ") + (array.extents.count == 1 ? "," : "")
    var header = Array("{'descr': '\(type)', 'fortran_order': False, 'shape': (\(shape)), }".utf8)
    // The data starts at a multiple of 64 bytes; the header ends with a newline.
    header += [UInt8](repeating: 0x20, count: (64 - (header.count + 11) % 64) % 64) + [0x0a]
    let start = magic + [1, 0, UInt8(header.count & 0xff), UInt8(header.count >> 8)]
    return [start, header, array.bytes]
  }
}

/// The few Python literals that occur in a .npy header.
enum PythonLiteral: Hashable {
  case string(String)
  case boolean(Bool)
  case tuple([Int])

  /// Parses `{'key': value, ...}`; nil where the text is anything else.
  static func dictionary(_ text: String) -> [String: PythonLiteral]? {
    var scanner = Scanner(rest: text[...])
    guard scanner.take("{") else { return nil }
    var result: [String: PythonLiteral] = [:]
    while !scanner.take("}") {
      guard let key = scanner.string(), scanner.take(":"), let value = scanner.value() else { return nil }
      result[key] = value
      if !scanner.take(",") {
        guard scanner.take("}") else { return nil }
        break
      }
    }
    scanner.skipSpace()
    return scanner.rest.isEmpty ? result : nil
  }

  private struct Scanner {
    var rest: Substring

    mutating func skipSpace() { rest = rest.drop { $0.isWhitespace } }

    mutating func take(_ token: String) -> Bool {
      skipSpace()
      guard rest.hasPrefix(token) else { return false }
      rest = rest.dropFirst(token.count)
      return true
    }

    mutating func string() -> String? {
      skipSpace()
      guard let quote = rest.first, quote == "'" || quote == "\"" else { return nil }
      rest = rest.dropFirst()
      guard let end = rest.firstIndex(of: quote) else { return nil }
      let result = String(rest[..<end])
      rest = rest[rest.index(after: end)...]
      return result
    }

    mutating func value() -> PythonLiteral? {
      if take("True") { return .boolean(true) }
      if take("False") { return .boolean(false) }
      guard take("(") else { return string().map { .string($0) } }
      var extents: [Int] = []
      while !take(")") {
        skipSpace()
        let digits = rest.prefix { $0.isASCII && $0.isNumber }
        guard let extent = Int(digits) else { return nil }
        rest = rest.dropFirst(digits.count)
        _ = take("L")  // Python 2 wrote long integers so
        extents.append(extent)
        if !take(",") {
          guard take(")") else { return nil }
          break
        }
      }
      return .tuple(extents)
    }
  }
}
