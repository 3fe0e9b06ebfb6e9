/// What the copy engine must know of a tensor in global memory (section 5.5, tensors): where it is, and the box that a
/// copy moves. The driver makes 128 bytes of it, which a kernel gets as a parameter.
public struct TensorMap: Hashable, Sendable {
  /// Bytes of a map in a kernel's parameters.
  public static let byteCount = 128

  /// The type of the elements.
  public enum Element: Hashable, Sendable, CaseIterable {
    case u8, f16, bf16, f32

    /// Bytes of an element.
    public var byteCount: Int {
      switch self {
      case .u8: 1
      case .f16, .bf16: 2
      case .f32: 4
      }
    }
  }

  /// How 16-byte pieces change places within the rows of a box in shared memory, so that columns of it lie in different
  /// banks: bits 4 and up of an address are exchanged with bits 7 and up.
  public enum Swizzle: Int, Hashable, Sendable, CaseIterable {
    case none = 0
    case bytes32 = 32
    case bytes64 = 64
    case bytes128 = 128

    /// The bytes after which the pattern repeats, and at whose multiples it begins.
    public var period: Int { max(rawValue * 8, 128) }

    /// Where a byte lies that would be at `address` without.
    @inlinable
    public func callAsFunction(_ address: Int) -> Int { address ^ (address >> 3 & (max(rawValue, 16) - 16)) }
  }

  /// What L2 fetches at once. With 256 bytes, boxes whose rows have 128 read memory a tenth more slowly than without (4.12
  /// TB/s against 4.62, whatever the boxes and however many are under way: NVIDIA H200, 2026-11-29, Documentation/GPULog.md).
  public enum Promotion: Int, Hashable, Sendable, CaseIterable {
    case none = 0
    case bytes64 = 64
    case bytes128 = 128
    case bytes256 = 256
  }

  /// The type of the elements.
  public let element: Element
  /// The address of the first.
  public var address: UInt64
  /// Elements along each dimension, innermost first.
  public let extents: [Int]
  /// Bytes from one element to the next along each dimension but the innermost; with 0, all are the same.
  public let strides: [Int]
  /// Elements of the box along each dimension.
  public let box: [Int]
  /// How the box lies in shared memory.
  public let swizzle: Swizzle
  /// What L2 fetches.
  public let promotion: Promotion

  /// A tensor's map.
  public init(
    _ element: Element, address: UInt64, extents: [Int], strides: [Int], box: [Int], swizzle: Swizzle = .none,
    promotion: Promotion = .bytes128
  ) {
    (self.element, self.address, self.extents, self.strides) = (element, address, extents, strides)
    (self.box, self.swizzle, self.promotion) = (box, swizzle, promotion)
  }

  /// Bytes that a copy of a box takes in shared memory, and counts at its barrier, wherever the box lies.
  public var boxByteCount: Int { box.reduce(element.byteCount, *) }

  /// Why the copy engine takes no such map, as a sentence; nil where it does. Source: CUDA Driver API,
  /// cuTensorMapEncodeTiled.
  public var obstacle: String? {
    let rank = extents.count
    if !(1...5).contains(rank) || strides.count != rank - 1 || box.count != rank {
      return "A tensor map has 1 to 5 dimensions, a stride for each but the innermost, and a box of all; this one has "
        + "\(rank), \(strides.count) and \(box.count)."
    }
    if address % 16 != 0 { return "The address of a tensor map is a multiple of 16 bytes; \(address) is none." }
    if let extent = extents.first(where: { !(1...1 << 32).contains($0) }) {
      return "A dimension of a tensor map has 1 to 2^32 elements; \(extent) were given."
    }
    if let stride = strides.first(where: { $0 % 16 != 0 || !(0..<1 << 40).contains($0) }) {
      return "A stride of a tensor map is a multiple of 16 bytes from 0 up to 2^40; \(stride) is none."
    }
    if let side = box.first(where: { !(1...256).contains($0) }) {
      return "A box of a tensor map has 1 to 256 elements along a dimension; \(side) were given."
    }
    let row = box[0] * element.byteCount
    if row % 16 != 0 { return "The rows of a tensor map's box are multiples of 16 bytes; \(row) is none." }
    if swizzle != .none && row > swizzle.rawValue {
      return
        "The rows of a tensor map's box have \(row) bytes; with a swizzle of \(swizzle.rawValue) they have as many at "
        + "most."
    }
    return nil
  }
}
