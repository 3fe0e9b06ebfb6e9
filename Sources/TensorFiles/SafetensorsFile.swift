internal import Attention
internal import FoundationEssentials

/// A safetensors file: 8 bytes of header length, a JSON header of names, types, shapes and byte ranges, the data.
///
/// The header is checked whole when the file is opened (lengths, ranges, overlaps), so that a lying file is refused
/// before any of its data is believed. Source: the format description of the safetensors project.
public struct SafetensorsFile: Sendable {
  /// What the header says of one tensor.
  public struct Entry: Hashable, Sendable {
    /// The name of the tensor.
    public let name: String
    /// "F32", "BF16", "I64", ...
    public let type: String
    /// Extents, slowest axis first.
    public let extents: [Int]
    /// Bytes from the start of the data.
    let bytes: Range<Int>
  }

  /// Where the file is.
  public let path: String
  /// Tensors by name.
  public let entries: [String: Entry]
  /// What the writer said of the whole file.
  public let metadata: [String: String]
  private let file: InputFile
  private let dataStart: Int

  /// The largest header that is believed, as in the safetensors library.
  static let headerLimit = 100_000_000

  /// Opens a file and checks its header.
  public init(path: String) throws(TensorFileError) {
    self.path = path
    let file = try InputFile(path: path)
    self.file = file
    func malformed(_ reason: String) -> TensorFileError { .malformed(path: path, reason: reason) }
    /// Of a header that is none, what the file may be instead.
    func noHeader(_ reason: String) -> TensorFileError {
      malformed(file.looks(besides: ".safetensors").map { "it looks like \($0)." } ?? reason)
    }

    guard file.byteCount >= 8 else { throw malformed("it has \(file.byteCount) bytes, too few for a header.") }
    let length = try file.read(8, at: 0).reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
    guard length <= UInt64(Self.headerLimit) else {
      throw noHeader("its header claims \(length) bytes; at most \(Self.headerLimit) are believed.")
    }
    guard Int(length) <= file.byteCount - 8 else {
      throw noHeader("its header claims \(length) bytes, but only \(file.byteCount - 8) follow.")
    }
    dataStart = 8 + Int(length)
    let text = try file.read(Int(length), at: 8)
    guard text.first == UInt8(ascii: "{") else { throw noHeader("its header does not begin with '{'.") }
    let header: Header
    do {
      header = try JSONDecoder().decode(Header.self, from: Data(text))
    } catch {
      throw noHeader("its header is not the JSON that safetensors prescribes\(Header.place(of: error)).")
    }
    metadata = header.metadata
    entries = try Self.check(header, dataByteCount: file.byteCount - dataStart, malformed)
  }

  private static func check(
    _ header: Header, dataByteCount: Int, _ malformed: (String) -> TensorFileError
  ) throws(TensorFileError) -> [String: Entry] {
    var entries: [String: Entry] = [:]
    for (name, tensor) in header.tensors {
      guard tensor.data_offsets.count == 2 else {
        throw malformed("tensor '\(name)' has \(tensor.data_offsets.count) data offsets instead of two.")
      }
      let (begin, end) = (tensor.data_offsets[0], tensor.data_offsets[1])
      guard begin >= 0, begin <= end else {
        throw malformed("tensor '\(name)' claims the bytes from \(begin) to \(end).")
      }
      guard end <= dataByteCount else {
        throw malformed("tensor '\(name)' ends at byte \(end) of the data, but the file holds \(dataByteCount).")
      }
      guard let count = checkedCount(tensor.shape) else {
        throw malformed("tensor '\(name)' has the impossible shape \(tensor.shape).")
      }
      if let size = elementSizes[tensor.dtype], count * size != end - begin {
        throw malformed(
          "tensor '\(name)' of shape \(tensor.shape) and type \(tensor.dtype) needs \(count * size) bytes, but has "
            + "\(end - begin).")
      }
      entries[name] = Entry(name: name, type: tensor.dtype, extents: tensor.shape, bytes: begin..<end)
    }
    let ordered = entries.values.filter { !$0.bytes.isEmpty }.sorted { $0.bytes.lowerBound < $1.bytes.lowerBound }
    for (first, second) in zip(ordered, ordered.dropFirst()) where first.bytes.upperBound > second.bytes.lowerBound {
      throw malformed("tensors '\(first.name)' and '\(second.name)' overlap.")
    }
    // The format has no holes; one would hide a header that lost a tensor.
    let covered = ordered.reduce(0) { $0 + $1.bytes.count }
    guard covered == dataByteCount else {
      throw malformed("its tensors take \(covered) of the \(dataByteCount) bytes of data; the format has no holes.")
    }
    return entries
  }

  /// Bytes of an element, of the types whose sizes are whole bytes.
  private static let elementSizes = [
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4,
    "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
  ]

  /// Reads one tensor.
  /// - Throws: `.missing` or `.unsupportedType`, with what there is.
  public func array(_ name: String) throws(TensorFileError) -> StoredArray {
    guard let entry = entries[name] else {
      throw .missing(path: path, name: name, available: entries.keys.sorted())
    }
    guard let type = ScalarType(safetensorsName: entry.type) else {
      throw .unsupportedType(path: path, name: name, type: entry.type)
    }
    let bytes = try file.read(entry.bytes.count, at: dataStart + entry.bytes.lowerBound)
    return StoredArray(checked: entry.extents, type, bytes)
  }

  /// The names of all tensors.
  public var names: Set<String> { Set(entries.keys) }

  /// Reads a tensor of 32-bit integers: lengths, tables of pages.
  /// - Throws: `.missing`, or `.unsupportedType` for any other type.
  public func integers(_ name: String) throws(TensorFileError) -> (extents: [Int], values: [Int]) {
    guard let entry = entries[name] else {
      throw .missing(path: path, name: name, available: entries.keys.sorted())
    }
    guard entry.type == "I32" else {
      throw .notIntegers(path: path, name: name, type: entry.type)
    }
    let bytes = try file.read(entry.bytes.count, at: dataStart + entry.bytes.lowerBound)
    let values = bytes.withUnsafeBytes { source in
      (0..<source.count / 4).map {
        Int(Int32(littleEndian: source.loadUnaligned(fromByteOffset: $0 * 4, as: Int32.self)))
      }
    }
    return (entry.extents, values)
  }

  /// Writes tensors, in the order given; the file appears whole or not at all.
  public static func write(
    _ tensors: [(name: String, array: StoredArray)], metadata: [String: String] = [:], to path: String
  ) throws(TensorFileError) {
    var offset = 0
    var header = Header()
    header.metadata = metadata
    for (name, array) in tensors {
      header.tensors[name] = .init(
        dtype: array.scalarType.safetensorsName, shape: array.extents,
        data_offsets: [offset, offset + array.bytes.count])
      offset += array.bytes.count
    }
    let encoder = JSONEncoder()
    encoder.outputFormatting = .sortedKeys
    var json: [UInt8]
    do {
      json = [UInt8](try encoder.encode(header))
    } catch {
      throw .unwritable(path: path, reason: "its header cannot be written as JSON")
    }
    // The data starts at a multiple of 8 bytes; the format pads with spaces.
    json += [UInt8](repeating: 0x20, count: (8 - json.count % 8) % 8)
    let length = (0..<8).map { UInt8(truncatingIfNeeded: json.count >> (8 * $0)) }
    try OutputFile.write([length, json] + tensors.map(\.array.bytes), to: path)
  }
}

/// The JSON header.
private struct Header: Codable {
  struct Tensor: Codable {
    let dtype: String
    let shape: [Int]
    // The format's own name.
    let data_offsets: [Int]
  }

  struct Name: CodingKey {
    let stringValue: String
    var intValue: Int? { nil }
    init(stringValue: String) { self.stringValue = stringValue }
    init?(intValue: Int) { nil }
    static let metadata = Name(stringValue: "__metadata__")
  }

  var metadata: [String: String] = [:]
  var tensors: [String: Tensor] = [:]

  init() {}

  /// Where the JSON is not what it should be, behind a sentence; nothing where it is no JSON.
  static func place(of error: any Error) -> String {
    let (path, what): ([any CodingKey], String)
    switch error as? DecodingError {
    case .typeMismatch(_, let context), .valueNotFound(_, let context):
      (path, what) = (context.codingPath, "another type")
    case .keyNotFound(let key, let context): (path, what) = (context.codingPath, "no '\(key.stringValue)'")
    case .dataCorrupted, nil: return ""
    @unknown default: return ""
    }
    if path.isEmpty { return "" }
    return " (" + path.map { $0.intValue.map { "number \($0)" } ?? "'\($0.stringValue)'" }.joined(separator: ", ")
      + " has \(what))"
  }

  init(from decoder: any Decoder) throws {
    let container = try decoder.container(keyedBy: Name.self)
    for key in container.allKeys {
      if key.stringValue == Name.metadata.stringValue {
        // null, as the format's own reader takes it.
        metadata = try container.decode([String: String]?.self, forKey: key) ?? [:]
      } else {
        tensors[key.stringValue] = try container.decode(Tensor.self, forKey: key)
      }
    }
  }

  func encode(to encoder: any Encoder) throws {
    var container = encoder.container(keyedBy: Name.self)
    if !metadata.isEmpty { try container.encode(metadata, forKey: .metadata) }
    for (name, tensor) in tensors { try container.encode(tensor, forKey: Name(stringValue: name)) }
  }
}

extension ScalarType {
  init?(safetensorsName name: String) {
    switch name {
    case "F32": self = .f32
    case "F16": self = .f16
    case "BF16": self = .bf16
    case "F8_E4M3": self = .e4m3
    default: return nil
    }
  }

  var safetensorsName: String { self == .e4m3 ? "F8_E4M3" : rawValue.uppercased() }
}
