public import Attention

/// An array as a file holds it: any number of axes, row-major, in one of the types of attention.
public struct StoredArray: Sendable {
  /// Extents, slowest axis first.
  public let extents: [Int]
  /// The type of the elements.
  public let scalarType: ScalarType
  /// Little-endian elements; `extents` product times the type's size.
  public let bytes: [UInt8]

  /// An array of bytes that are already in the form of a file.
  /// - Throws: `AttentionError.elementCount` where their number is not that of the extents.
  public init(extents: [Int], scalarType: ScalarType, bytes: [UInt8]) throws(AttentionError) {
    let needed = checkedCount(extents).map { $0 * scalarType.byteCount }
    if needed != bytes.count {
      throw .elementCount(
        tensor: "An array of \(extents) \(scalarType)", needed: needed.map { "\($0) bytes" } ?? "an impossible shape",
        given: bytes.count)
    }
    self.init(checked: extents, scalarType, bytes)
  }

  /// An array whose bytes are as many as its extents ask for.
  init(checked extents: [Int], _ scalarType: ScalarType, _ bytes: [UInt8]) {
    (self.extents, self.scalarType, self.bytes) = (extents, scalarType, bytes)
  }

  /// An array of f32.
  /// - Throws: as the other.
  public init(extents: [Int], floats: [Float]) throws(AttentionError) {
    try self.init(extents: extents, scalarType: .f32, bytes: floats.withUnsafeBytes(Array.init))
  }

  /// A tensor, in its layout's order of axes.
  public init(_ tensor: Tensor) {
    self.init(checked: tensor.layout.extents(of: tensor.shape), tensor.scalarType, tensor.withBytes(Array.init))
  }

  /// The elements as floats.
  public var floats: [Float] {
    bytes.withUnsafeBytes { source in
      (0..<source.count / scalarType.byteCount).map { scalarType.load(from: source.baseAddress!, at: $0) }
    }
  }

  /// The same in f32.
  var widened: StoredArray { StoredArray(checked: extents, .f32, floats.withUnsafeBytes(Array.init)) }

  /// The array as a tensor; nil where it has not four axes.
  /// - Throws: `AttentionError.memory` where there is not enough.
  public func tensor(layout: TensorLayout) throws(AttentionError) -> Tensor? {
    guard let shape = layout.shape(of: extents) else { return nil }
    return try Tensor(shape: shape, scalarType: scalarType, layout: layout) { view in
      bytes.withUnsafeBytes { if $0.count > 0 { view.base.copyMemory(from: $0.baseAddress!, byteCount: $0.count) } }
    }
  }
}

extension StoredArray {
  /// The array whose elements lie as those of this one would with the first axis fastest ("Fortran order").
  func fromFirstAxisFastest() -> StoredArray {
    let (size, count) = (scalarType.byteCount, bytes.count / scalarType.byteCount)
    // The distance, in the file, between neighbours along each axis.
    let strides = extents.indices.map { extents[..<$0].reduce(1, *) }
    let sorted = [UInt8](unsafeUninitializedCapacity: bytes.count) { buffer, initialized in
      var (index, place) = ([Int](repeating: 0, count: extents.count), 0)
      for element in 0..<count {
        for byte in 0..<size { buffer[element * size + byte] = bytes[place * size + byte] }
        // The next element, the last axis first.
        for axis in extents.indices.reversed() {
          index[axis] += 1
          place += strides[axis]
          if index[axis] < extents[axis] { break }
          place -= strides[axis] * extents[axis]
          index[axis] = 0
        }
      }
      initialized = bytes.count
    }
    return StoredArray(checked: extents, scalarType, sorted)
  }
}

/// The number of elements, or nil where memory could not hold 16 bytes of each.
func checkedCount(_ extents: [Int]) -> Int? { checkedProduct([16] + extents).map { $0 / 16 } }
