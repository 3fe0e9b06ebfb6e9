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
  /// Traps where their number is not that of the extents.
  public init(extents: [Int], scalarType: ScalarType, bytes: [UInt8]) {
    precondition(
      checkedCount(extents).map { $0 * scalarType.byteCount } == bytes.count,
      "An array of \(extents) \(scalarType) does not have \(bytes.count) bytes.")
    self.extents = extents
    self.scalarType = scalarType
    self.bytes = bytes
  }

  /// An array of f32.
  public init(extents: [Int], floats: [Float]) {
    self.init(extents: extents, scalarType: .f32, bytes: floats.withUnsafeBytes(Array.init))
  }

  /// A tensor, in its layout's order of axes.
  public init(_ tensor: Tensor) {
    self.init(
      extents: tensor.layout.extents(of: tensor.shape), scalarType: tensor.scalarType,
      bytes: tensor.withBytes(Array.init))
  }

  /// The elements as floats.
  public var floats: [Float] {
    bytes.withUnsafeBytes { source in
      (0..<source.count / scalarType.byteCount).map { scalarType.load(from: source.baseAddress!, at: $0) }
    }
  }

  /// The array as a tensor; nil where it has not four axes.
  public func tensor(layout: TensorLayout) -> Tensor? {
    guard let shape = layout.shape(of: extents) else { return nil }
    return Tensor(shape: shape, scalarType: scalarType, layout: layout) { view in
      bytes.withUnsafeBytes { if $0.count > 0 { view.base.copyMemory(from: $0.baseAddress!, byteCount: $0.count) } }
    }
  }
}

/// The number of elements, or nil where memory could not hold 16 bytes of each.
func checkedCount(_ extents: [Int]) -> Int? { checkedProduct([16] + extents).map { $0 / 16 } }
