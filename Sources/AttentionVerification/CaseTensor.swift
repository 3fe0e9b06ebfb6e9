package import FlashAttention

/// A tensor of a case in memory of its own, with everything around it that must not matter. It is handed from thread to
/// thread, and written by one at a time.
package final class CaseTensor: @unchecked Sendable {
  /// How the axes lie in memory.
  package struct Placement: Hashable, Sendable {
    package var layout = TensorLayout.bhnd
    /// Elements between the end of a row and the next row.
    package var rowGap = 0
    /// Tokens behind the last one of each sequence.
    package var tail = 0
    /// Axes with stride 0: all their entries are one.
    package var isBatchBroadcast = false
    package var isHeadsBroadcast = false
    /// The tokens lie backward in memory.
    package var isBackward = false

    /// Contiguous.
    package init(layout: TensorLayout = .bhnd) { self.layout = layout }
  }

  package let view: MutableTensorView
  private let memory: UnsafeMutableRawPointer
  private let elementCount: Int
  /// Bytes from the start of the memory to element (0, 0, 0, 0).
  package let byteOffset: Int

  /// - Parameters:
  ///   - surroundings: the value of all memory that is not an element.
  package init(_ shape: TensorShape, _ type: ScalarType, _ placement: Placement, surroundings: Float) {
    let pitch = shape.dimension + placement.rowGap
    let tokens = shape.length + placement.tail
    var strides: TensorStrides =
      placement.layout == .bhnd
      ? TensorStrides(batch: shape.heads * tokens * pitch, heads: tokens * pitch, length: pitch)
      : TensorStrides(batch: tokens * shape.heads * pitch, heads: pitch, length: shape.heads * pitch)
    elementCount = max(shape.batch * shape.heads * tokens * pitch, 1)
    memory = .allocate(byteCount: elementCount * type.byteCount, alignment: 64)
    for i in 0..<elementCount { type.store(surroundings, to: memory, at: i) }
    if placement.isBatchBroadcast { strides.batch = 0 }
    if placement.isHeadsBroadcast { strides.heads = 0 }
    var base = memory
    if placement.isBackward && shape.length > 0 {
      base += (shape.length - 1) * strides.length * type.byteCount
      strides.length.negate()
    }
    byteOffset = base - memory
    view = MutableTensorView(base: base, scalarType: type, shape: shape, strides: strides)
  }

  deinit { memory.deallocate() }

  /// All of the memory, gaps included.
  package func withBytes<Result, E: Error>(
    _ body: (UnsafeMutableRawBufferPointer) throws(E) -> Result
  ) throws(E) -> Result {
    defer { withExtendedLifetime(self) {} }
    return try body(UnsafeMutableRawBufferPointer(start: memory, count: elementCount * view.scalarType.byteCount))
  }

  /// Sets every element.
  package func fill(_ value: (_ b: Int, _ h: Int, _ n: Int, _ d: Int) -> Float) {
    let shape = view.shape
    for b in 0..<shape.batch {
      for h in 0..<shape.heads {
        for n in 0..<shape.length {
          let row = view.row(batch: b, head: h, token: n)
          for d in 0..<shape.dimension { view.scalarType.store(value(b, h, n, d), to: row, at: d) }
        }
      }
    }
  }

  /// All elements in the order batch, head, token, dimension.
  package var values: [Double] {
    var result: [Double] = []
    let shape = view.shape
    for b in 0..<shape.batch {
      for h in 0..<shape.heads {
        for n in 0..<shape.length {
          let row = view.row(batch: b, head: h, token: n)
          for d in 0..<shape.dimension { result.append(Double(view.scalarType.load(from: row, at: d))) }
        }
      }
    }
    return result
  }

  /// How many elements of memory hold this value; with a value that no result takes, the memory never written.
  package func count(of value: Float) -> Int {
    (0..<elementCount).reduce(0) { $0 + (view.scalarType.load(from: memory, at: $1) == value ? 1 : 0) }
  }

  /// Elements of memory that do not belong to the tensor.
  package var gapCount: Int { elementCount - view.shape.elementCount }
}
