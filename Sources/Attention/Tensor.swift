#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// A contiguous tensor that owns its memory and never changes after it is made: safe to share between tasks.
public struct Tensor: Sendable {
  /// The extents.
  public let shape: TensorShape
  /// The type of the elements.
  public let scalarType: ScalarType
  /// The order of the axes in memory.
  public let layout: TensorLayout
  private let storage: ZeroedMemory

  /// Makes a tensor whose memory, at first zero, is filled by `initialize`.
  /// - Throws: `AttentionError.extent` or `.tooLarge` for a shape that cannot be, `.memory` where there is not enough;
  ///   or what `initialize` throws.
  public init(
    shape: TensorShape, scalarType: ScalarType, layout: TensorLayout = .bhnd,
    initialize: (MutableTensorView) throws(AttentionError) -> Void
  ) throws(AttentionError) {
    let count = try shape.elements(of: "a tensor")
    let (byteCount, overflow) = count.multipliedReportingOverflow(by: scalarType.byteCount)
    if overflow { throw .tooLarge(tensor: "A tensor", shape: shape) }
    self.shape = shape
    self.scalarType = scalarType
    self.layout = layout
    storage = try ZeroedMemory("A tensor of \(shape)", byteCount: byteCount)
    try initialize(
      MutableTensorView(base: storage.base, scalarType: scalarType, shape: shape, layout: layout))
  }

  /// The same where `initialize` throws errors of other kinds.
  public init(
    shape: TensorShape, scalarType: ScalarType, layout: TensorLayout = .bhnd,
    initialize: (MutableTensorView) throws -> Void
  ) throws {
    var failure: (any Error)?
    try self.init(shape: shape, scalarType: scalarType, layout: layout) { (view) throws(AttentionError) in
      do { try initialize(view) } catch { failure = error }
    }
    if let failure { throw failure }
  }

  /// Makes a tensor of elements in the order of `layout`.
  /// - Throws: `AttentionError.elementCount` where their number is not that of the shape, and as the others.
  public init<Scalar: AttentionScalar>(
    shape: TensorShape, layout: TensorLayout = .bhnd, scalars: [Scalar]
  ) throws(AttentionError) {
    let count = try shape.elements(of: "a tensor")
    if count != scalars.count {
      throw .elementCount(tensor: "A tensor of \(shape)", needed: "\(count) elements", given: scalars.count)
    }
    try self.init(shape: shape, scalarType: Scalar.scalarType, layout: layout) { view in
      scalars.withUnsafeBytes {
        view.base.copyMemory(from: $0.baseAddress ?? UnsafeRawPointer(view.base), byteCount: $0.count)
      }
    }
  }

  /// Makes a tensor of the given type, element (b, h, n, d) from `value`.
  /// - Throws: as the others.
  public init(
    shape: TensorShape, scalarType: ScalarType, layout: TensorLayout = .bhnd,
    value: (_ batch: Int, _ head: Int, _ token: Int, _ d: Int) -> Float
  ) throws(AttentionError) {
    try self.init(shape: shape, scalarType: scalarType, layout: layout) { view in
      for b in 0..<shape.batch {
        for h in 0..<shape.heads {
          for n in 0..<shape.length {
            let row = view.row(batch: b, head: h, token: n)
            for d in 0..<shape.dimension { scalarType.store(value(b, h, n, d), to: row, at: d) }
          }
        }
      }
    }
  }

  /// The memory as a view, for as long as `body` runs.
  public func withView<Result, E: Error>(_ body: (TensorView) throws(E) -> Result) throws(E) -> Result {
    defer { withExtendedLifetime(storage) {} }
    return try body(TensorView(base: storage.base, scalarType: scalarType, shape: shape, layout: layout))
  }

  /// All bytes in the order of `layout`, for as long as `body` runs.
  public func withBytes<Result, E: Error>(_ body: (UnsafeRawBufferPointer) throws(E) -> Result) throws(E) -> Result {
    defer { withExtendedLifetime(storage) {} }
    return try body(UnsafeRawBufferPointer(start: storage.base, count: shape.elementCount * scalarType.byteCount))
  }

  /// All elements as floats, in the order of `layout`.
  public var floats: [Float] {
    withBytes { bytes in
      func read<Scalar: AttentionScalar>(_: Scalar.Type) -> [Float] {
        bytes.bindMemory(to: Scalar.self).map(\.asFloat)
      }
      return switch scalarType {
      case .f32: read(Float.self)
      case .f16: read(Float16.self)
      case .bf16: read(BFloat16.self)
      case .e4m3: read(Float8E4M3.self)
      }
    }
  }

  /// Element (b, h, n, d).
  public subscript(_ b: Int, _ h: Int, _ n: Int, _ d: Int) -> Float {
    withView { view in
      precondition(
        (0..<shape.batch).contains(b) && (0..<shape.heads).contains(h) && (0..<shape.length).contains(n)
          && (0..<shape.dimension).contains(d),
        "Element (\(b), \(h), \(n), \(d)) is outside a tensor of \(shape).")
      return scalarType.load(from: view.row(batch: b, head: h, token: n), at: d)
    }
  }

  /// The same values rounded to another type; the tensor itself where it has that type already.
  /// - Throws: `AttentionError.memory` where there is not enough.
  public func converted(to type: ScalarType) throws(AttentionError) -> Tensor {
    if type == scalarType { return self }
    return try withBytes { (source) throws(AttentionError) in
      try Tensor(shape: shape, scalarType: type, layout: layout) { view in
        for i in 0..<shape.elementCount {
          type.store(scalarType.load(from: source.baseAddress!, at: i), to: view.base, at: i)
        }
      }
    }
  }
}

/// Memory of the host that is zero at first. A tensor writes it only before it is handed out, hence `Sendable`.
package final class ZeroedMemory: @unchecked Sendable {
  /// A multiple of 64.
  package let base: UnsafeMutableRawPointer
  private let allocation: UnsafeMutableRawPointer

  /// - Parameter what: for the error, as a sentence begins.
  /// - Throws: `AttentionError.memory` where there is not enough.
  package init(_ what: @autoclosure () -> String, byteCount: Int) throws(AttentionError) {
    // An empty tensor has an address too. Pages of zeros are made when they are touched.
    guard byteCount <= Int.max - 64, let allocation = calloc(1, byteCount + 64) else {
      throw .memory(what: what(), byteCount: byteCount)
    }
    self.allocation = allocation
    base = allocation.alignedUp(toMultipleOf: 64)
  }

  deinit { free(allocation) }
}

extension ScalarType {
  /// Element `index` of memory of this type, as a float.
  @inline(__always)
  public func load(from base: UnsafeRawPointer, at index: Int) -> Float {
    switch self {
    case .f32: base.loadUnaligned(fromByteOffset: index * 4, as: Float.self)
    case .f16: Float(base.loadUnaligned(fromByteOffset: index * 2, as: Float16.self))
    case .bf16: Float(base.loadUnaligned(fromByteOffset: index * 2, as: BFloat16.self))
    case .e4m3: Float(base.loadUnaligned(fromByteOffset: index, as: Float8E4M3.self))
    }
  }

  /// Rounds a float to this type into element `index`.
  @inline(__always)
  public func store(_ value: Float, to base: UnsafeMutableRawPointer, at index: Int) {
    switch self {
    case .f32: base.storeBytes(of: value, toByteOffset: index * 4, as: Float.self)
    case .f16: base.storeBytes(of: Float16(value), toByteOffset: index * 2, as: Float16.self)
    case .bf16: base.storeBytes(of: BFloat16(value), toByteOffset: index * 2, as: BFloat16.self)
    case .e4m3: base.storeBytes(of: Float8E4M3(value), toByteOffset: index, as: Float8E4M3.self)
    }
  }
}
