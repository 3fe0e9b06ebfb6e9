/// Borrowed memory seen as a tensor: how engines hand in what they own, without a copy.
///
/// The memory must stay alive and unchanged while a computation uses the view; that is the caller's promise, and why
/// the view can be `Sendable` although it holds a pointer.
public struct TensorView: @unchecked Sendable {
  /// Element (0, 0, 0, 0).
  public let base: UnsafeRawPointer
  /// The type of the elements.
  public let scalarType: ScalarType
  /// The extents.
  public let shape: TensorShape
  /// Distances between neighbours, in elements.
  public let strides: TensorStrides

  /// Memory with strides of any kind.
  public init(base: UnsafeRawPointer, scalarType: ScalarType, shape: TensorShape, strides: TensorStrides) {
    self.base = base
    self.scalarType = scalarType
    self.shape = shape
    self.strides = strides
  }

  /// Contiguous memory in the given layout.
  public init(base: UnsafeRawPointer, scalarType: ScalarType, shape: TensorShape, layout: TensorLayout) {
    self.init(base: base, scalarType: scalarType, shape: shape, strides: layout.strides(of: shape))
  }

  /// The first element of a token of a head.
  public func row(batch b: Int, head h: Int, token n: Int) -> UnsafeRawPointer {
    base + strides.offset(batch: b, head: h, token: n) &* scalarType.byteCount
  }

  /// Reads `shape.dimension` elements of a token of a head as floats.
  public func readRow(batch b: Int, head h: Int, token n: Int, into destination: UnsafeMutablePointer<Float>) {
    let source = row(batch: b, head: h, token: n)
    func read<Scalar: AttentionScalar>(_: Scalar.Type) {
      for d in 0..<shape.dimension {
        destination[d] = source.loadUnaligned(fromByteOffset: d * MemoryLayout<Scalar>.size, as: Scalar.self).asFloat
      }
    }
    switch scalarType {
    case .f32: read(Float.self)
    case .f16: read(Float16.self)
    case .bf16: read(BFloat16.self)
    case .e4m3: read(Float8E4M3.self)
    }
  }
}

extension TensorView {
  /// - Parameter isWritten: whether this is what a computation writes.
  /// - Throws: `AttentionError` where the view is not what a plan was made for, or its strides cannot be.
  package func check(
    _ name: @autoclosure () -> String, isFor shape: TensorShape, _ type: ScalarType, isWritten: Bool = false
  ) throws(AttentionError) {
    if self.shape != shape { throw .notThePlan(tensor: name(), given: self.shape, planned: shape) }
    if scalarType != type {
      throw .mixedTypes(first: name(), firstType: scalarType, second: "the plan", secondType: type)
    }
    try strides.check(name(), shape, isWritten: isWritten)
  }
}

extension TensorView {
  /// Whether elements of two tensors share memory, as far as that can be told.
  package func sharesMemory(with other: TensorView) -> Bool {
    strides.sharesMemory(
      shape, scalarType, with: other.strides, other.shape, other.scalarType, distance: other.base - base)
  }
}

/// Borrowed memory that a computation writes. See `TensorView`; no two elements may share memory.
public struct MutableTensorView: @unchecked Sendable {
  /// Element (0, 0, 0, 0).
  public let base: UnsafeMutableRawPointer
  /// The type of the elements.
  public let scalarType: ScalarType
  /// The extents.
  public let shape: TensorShape
  /// Distances between neighbours, in elements.
  public let strides: TensorStrides

  /// Memory with strides of any kind.
  public init(base: UnsafeMutableRawPointer, scalarType: ScalarType, shape: TensorShape, strides: TensorStrides) {
    self.base = base
    self.scalarType = scalarType
    self.shape = shape
    self.strides = strides
  }

  /// Contiguous memory in the given layout.
  public init(base: UnsafeMutableRawPointer, scalarType: ScalarType, shape: TensorShape, layout: TensorLayout) {
    self.init(base: base, scalarType: scalarType, shape: shape, strides: layout.strides(of: shape))
  }

  /// The first element of a token of a head.
  public func row(batch b: Int, head h: Int, token n: Int) -> UnsafeMutableRawPointer {
    base + strides.offset(batch: b, head: h, token: n) &* scalarType.byteCount
  }

  /// The same memory, for reading.
  public var readOnly: TensorView {
    TensorView(base: base, scalarType: scalarType, shape: shape, strides: strides)
  }
}

extension MutableTensorView {
  /// The memory of a view whose owner may write it.
  package init(mutating view: TensorView) {
    self.init(
      base: UnsafeMutableRawPointer(mutating: view.base), scalarType: view.scalarType, shape: view.shape,
      strides: view.strides)
  }
}
