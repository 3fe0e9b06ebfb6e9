/// The extents of a tensor of queries, keys, values or outputs, by role and not by position.
public struct TensorShape: Hashable, Sendable {
  /// B: independent sequences.
  public var batch: Int
  /// H: heads.
  public var heads: Int
  /// N: tokens of each sequence.
  public var length: Int
  /// D (or Dv): elements of one token of one head.
  public var dimension: Int

  /// Extents or distances by role.
  public init(batch: Int, heads: Int, length: Int, dimension: Int) {
    self.batch = batch
    self.heads = heads
    self.length = length
    self.dimension = dimension
  }

  /// B*H*N*D, or nil where it does not fit an `Int` or an extent is negative.
  public var checkedElementCount: Int? { checkedProduct(of: 1) }

  /// Whether a count of its bytes, of up to 8 an element, fits an `Int`, and what an empty axis hides too.
  var isCountable: Bool { checkedProduct(of: 8) != nil }

  /// Without a list: this is a part of what every call costs the host.
  private func checkedProduct(of factor: Int) -> Int? {
    if batch | heads | length | dimension < 0 { return nil }
    let (a, first) = (factor &* max(batch, 1)).multipliedReportingOverflow(by: max(heads, 1))
    let (b, second) = a.multipliedReportingOverflow(by: max(length, 1))
    let (c, third) = b.multipliedReportingOverflow(by: max(dimension, 1))
    if first || second || third || batch > Int.max / 8 { return nil }
    return batch == 0 || heads == 0 || length == 0 || dimension == 0 ? 0 : c
  }

  /// B*H*N*D.
  /// - Throws: `AttentionError.extent` or `.tooLarge` for a shape that no tensor can have.
  func elements(of tensor: String) throws(AttentionError) -> Int {
    for (axis, value) in [("batch", batch), ("heads", heads), ("length", length), ("dimension", dimension)]
    where value < 0 {
      throw .extent(tensor: tensor, axis: axis, value: value)
    }
    guard let count = checkedElementCount else { throw .tooLarge(tensor: tensor, shape: self) }
    return count
  }

  /// B*H*N*D. Traps where it does not fit an `Int`; a shape accepted by `AttentionProblem` fits.
  public var elementCount: Int { checkedElementCount! }
}

extension TensorShape: CustomStringConvertible {
  /// All extents, by name.
  public var description: String { "batch \(batch), heads \(heads), length \(length), dimension \(dimension)" }
}

/// An axis of a tensor, by role.
public enum TensorAxis: String, Hashable, Sendable, CaseIterable {
  /// B: independent sequences.
  case batch
  /// H: heads.
  case heads
  /// N: tokens of each sequence.
  case length
  /// D (or Dv): elements of one token of one head.
  case dimension
}

extension TensorShape {
  /// The extent along an axis.
  public subscript(_ axis: TensorAxis) -> Int {
    get {
      switch axis {
      case .batch: batch
      case .heads: heads
      case .length: length
      case .dimension: dimension
      }
    }
    set {
      switch axis {
      case .batch: batch = newValue
      case .heads: heads = newValue
      case .length: length = newValue
      case .dimension: dimension = newValue
      }
    }
  }
}

/// The product of extents, or nil where one is negative or the product of the others than 0 does not fit: then the
/// strides would not fit either, though there may be no element at all.
public func checkedProduct(_ extents: [Int]) -> Int? {
  var product = 1
  for extent in extents {
    let (next, overflow) = product.multipliedReportingOverflow(by: max(extent, 1))
    if extent < 0 || overflow { return nil }
    product = next
  }
  return extents.contains(0) ? 0 : product
}

/// The order of the axes of a contiguous tensor in memory, slowest first.
public enum TensorLayout: String, Hashable, Sendable, CaseIterable {
  /// `[batch, heads, length, dimension]`, as in PyTorch's `scaled_dot_product_attention`.
  case bhnd
  /// `[batch, length, heads, dimension]`, as in FlashAttention.
  case bnhd

  /// The extents of `shape` in this order.
  public func extents(of shape: TensorShape) -> [Int] {
    switch self {
    case .bhnd: [shape.batch, shape.heads, shape.length, shape.dimension]
    case .bnhd: [shape.batch, shape.length, shape.heads, shape.dimension]
    }
  }

  /// The shape that four extents in this order mean.
  public func shape(of extents: [Int]) -> TensorShape? {
    guard extents.count == 4 else { return nil }
    return switch self {
    case .bhnd:
      TensorShape(batch: extents[0], heads: extents[1], length: extents[2], dimension: extents[3])
    case .bnhd:
      TensorShape(batch: extents[0], heads: extents[2], length: extents[1], dimension: extents[3])
    }
  }

  /// The strides of a contiguous tensor of this shape; of no meaning where there can be no such tensor.
  public func strides(of shape: TensorShape) -> TensorStrides {
    let (heads, length, dimension) = (shape.heads, shape.length, shape.dimension)
    return switch self {
    case .bhnd:
      TensorStrides(batch: heads &* length &* dimension, heads: length &* dimension, length: dimension)
    case .bnhd:
      TensorStrides(batch: length &* heads &* dimension, heads: dimension, length: heads &* dimension)
    }
  }
}

/// Distances between neighbours along each axis, in elements; along the dimension it is always 1. Inputs may have any,
/// zero and negative ones included.
public struct TensorStrides: Hashable, Sendable {
  /// From one sequence to the next.
  public var batch: Int
  /// From one head to the next.
  public var heads: Int
  /// From one token to the next.
  public var length: Int

  /// Extents or distances by role.
  public init(batch: Int, heads: Int, length: Int) {
    self.batch = batch
    self.heads = heads
    self.length = length
  }

  /// The distance of element (b, h, n, 0) from element (0, 0, 0, 0).
  public func offset(batch b: Int, head h: Int, token n: Int) -> Int {
    // Strides of a tensor without elements may be anything.
    b &* batch &+ h &* heads &+ n &* length
  }
}
