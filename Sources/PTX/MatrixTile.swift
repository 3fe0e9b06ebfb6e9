/// A tile of a matrix in shared memory as the copy engine writes it and `wgmma` reads it: the one place where addresses,
/// swizzle and descriptors of such tiles are made.
///
/// The columns are cut into slabs as wide as the swizzle's pattern, each of which lies by itself, row after row; a box
/// of a `TensorMap` fills one. A tile begins at a multiple of the swizzle's period.
public struct MatrixTile: Hashable, Sendable {
  /// Rows, and elements of each.
  public let rows, columns: Int
  /// Bytes of an element.
  public let elementByteCount: Int
  /// Not `none`.
  public let swizzle: TensorMap.Swizzle

  /// A tile; its rows are a multiple of 8.
  public init(rows: Int, columns: Int, elementByteCount: Int = 2, swizzle: TensorMap.Swizzle = .bytes128) {
    precondition(
      swizzle != .none && rows % 8 == 0 && [1, 2].contains(elementByteCount),
      "A tile for wgmma has a swizzle, a multiple of 8 rows, and elements of 1 or 2 bytes.")
    (self.rows, self.columns, self.elementByteCount, self.swizzle) = (rows, columns, elementByteCount, swizzle)
  }

  /// Elements of a slab's row.
  public var slabColumns: Int { swizzle.rawValue / elementByteCount }
  /// How many slabs there are.
  public var slabs: Int { (columns + slabColumns - 1) / slabColumns }
  /// Bytes of a slab.
  public var slabByteCount: Int { rows * swizzle.rawValue }
  /// Bytes of the tile.
  public var byteCount: Int { slabs * slabByteCount }

  /// Where an element lies in the tile.
  public func offset(row: Int, column: Int) -> Int {
    let slab = column / slabColumns
    return slab * slabByteCount + swizzle(row * swizzle.rawValue + column % slabColumns * elementByteCount)
  }

  /// Bytes of k that one product takes.
  static let depth = 32

  /// Bytes from the tile's beginning to that of the operand of step `step` along k.
  ///
  /// - Parameters:
  ///   - step: the number of the product along k.
  ///   - isTransposed: whether the tile's rows are those of k; otherwise its columns are.
  public func offset(ofStep step: Int, isTransposed: Bool) -> Int {
    if isTransposed { return step * Self.depth / elementByteCount * swizzle.rawValue }
    let perSlab = swizzle.rawValue / Self.depth
    return step / perSlab * slabByteCount + step % perSlab * Self.depth
  }

  /// The bits of a descriptor but for the address (section 9.7.15.5.1, matrix descriptor format).
  public func descriptorBits(isTransposed: Bool) -> UInt64 {
    // Between slabs, where the tile's rows are k; not looked at otherwise.
    let leading = isTransposed ? slabByteCount >> 4 : 1
    let stride = 8 * swizzle.rawValue >> 4
    let pattern: UInt64 =
      switch swizzle {
      case .none: 0
      case .bytes128: 1
      case .bytes64: 2
      case .bytes32: 3
      }
    return UInt64(leading & 0x3fff) << 16 | UInt64(stride & 0x3fff) << 32 | pattern << 62
  }
}
