extension TensorStrides {
  /// Checks the strides of a tensor: the distances can be counted, and where the tensor is written, no two elements share memory.
  ///
  /// Rows that lie among each other's elements count as sharing it: no layout of tensors has them.
  ///
  /// - Throws: `AttentionError.stride` or `.overlappingOutput`.
  package func check(
    _ tensor: @autoclosure () -> String, _ shape: TensorShape, isWritten: Bool = false
  ) throws(AttentionError) {
    // Where nothing is, nobody steps.
    if shape.batch == 0 || shape.heads == 0 || shape.length == 0 { return }
    if !Self.canBeCounted(batch, shape.batch) { throw .stride(tensor: tensor(), axis: "batch", elements: batch) }
    if !Self.canBeCounted(heads, shape.heads) { throw .stride(tensor: tensor(), axis: "head", elements: heads) }
    if !Self.canBeCounted(length, shape.length) { throw .stride(tensor: tensor(), axis: "token", elements: length) }
    if isWritten && isOverlapping(shape) { throw .overlappingOutput(tensor: tensor(), strides: self) }
  }

  /// Whether the distance along an axis, in bytes of any type, has room in 64 bits beside those of two others.
  private static func canBeCounted(_ stride: Int, _ extent: Int) -> Bool {
    if extent <= 1 { return true }
    let (reach, overflow) = stride.magnitude.multipliedReportingOverflow(by: UInt(extent))
    return !overflow && reach <= 1 << 58
  }

  /// The bytes from element (0, 0, 0, 0) to the first that a tensor has, and to the end of the last; nil where it has none. The strides
  /// have been checked.
  package func reach(_ shape: TensorShape, _ type: ScalarType) -> Range<Int>? {
    if shape.checkedElementCount == 0 { return nil }
    var (first, end) = (0, shape.dimension)
    for (stride, extent) in [(batch, shape.batch), (heads, shape.heads), (length, shape.length)] where extent > 1 {
      if stride < 0 { first += stride * (extent - 1) } else { end += stride * (extent - 1) }
    }
    return first * type.byteCount..<end * type.byteCount
  }

  /// Whether a step does not lead out of all that the shorter ones reach.
  private func isOverlapping(_ shape: TensorShape) -> Bool {
    // Sorted by hand: this is part of what every call costs the host.
    var (a, b, c) = ((batch.magnitude, shape.batch), (heads.magnitude, shape.heads), (length.magnitude, shape.length))
    if a.0 > b.0 { swap(&a, &b) }
    if b.0 > c.0 { swap(&b, &c) }
    if a.0 > b.0 { swap(&a, &b) }
    var reach = UInt(shape.dimension)
    for (stride, extent) in [a, b, c] where extent > 1 {
      if stride < reach { return true }
      reach += stride * UInt(extent - 1)
    }
    return false
  }
}
