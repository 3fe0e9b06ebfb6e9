/// Memory of a GPU seen as a tensor; see `TensorView`. Pointer and strides are multiples of 16 bytes (strides may be 0
/// or negative), and elements lie side by side along the dimension.
public struct DeviceTensorView: Hashable, Sendable {
  /// The address of element (0, 0, 0, 0).
  public var address: UInt64
  /// The type of the elements.
  public var scalarType: ScalarType
  /// The extents.
  public var shape: TensorShape
  /// Distances between neighbours, in elements.
  public var strides: TensorStrides

  /// Memory with strides.
  public init(address: UInt64, scalarType: ScalarType, shape: TensorShape, strides: TensorStrides) {
    self.address = address
    self.scalarType = scalarType
    self.shape = shape
    self.strides = strides
  }

  /// Contiguous memory in the given layout.
  public init(address: UInt64, scalarType: ScalarType, shape: TensorShape, layout: TensorLayout) {
    self.init(address: address, scalarType: scalarType, shape: shape, strides: layout.strides(of: shape))
  }

  /// - Throws: `AttentionError` where the view is not what a plan was made for, or not aligned as the GPU's copies need
  ///   it.
  package func check(
    _ name: StaticString, isFor shape: TensorShape, _ type: ScalarType, isWritten: Bool = false
  ) throws(AttentionError) {
    guard self.shape == shape else { throw .notThePlan(tensor: "\(name)", given: self.shape, planned: shape) }
    guard scalarType == type else {
      throw .mixedTypes(first: "\(name)", firstType: scalarType, second: "the plan", secondType: type)
    }
    if address % 16 != 0 {
      throw .alignment(tensor: "\(name)", what: "address", bytes: Int(truncatingIfNeeded: address))
    }
    try strides.check("\(name)", shape, isWritten: isWritten)
    /// Without elements nothing bounds a stride.
    func aligned(_ axis: StaticString, _ stride: Int, _ extent: Int) throws(AttentionError) {
      let bytes = stride &* type.byteCount
      if extent > 1 && bytes % 16 != 0 { throw .alignment(tensor: "\(name)", what: "\(axis) stride", bytes: bytes) }
    }
    try aligned("batch", strides.batch, shape.batch)
    try aligned("head", strides.heads, shape.heads)
    try aligned("token", strides.length, shape.length)
  }

  /// Whether elements of two tensors share memory, as far as that can be told.
  package func sharesMemory(with other: DeviceTensorView) -> Bool {
    strides.sharesMemory(
      shape, scalarType, with: other.strides, other.shape, other.scalarType,
      distance: Int(truncatingIfNeeded: other.address &- address))
  }

  /// The strides, 0 along an axis of one entry: nobody steps along it, and it may be anything.
  package var steps: TensorStrides {
    TensorStrides(
      batch: shape.batch > 1 ? strides.batch : 0, heads: shape.heads > 1 ? strides.heads : 0,
      length: shape.length > 1 ? strides.length : 0)
  }
}
