extension TensorStrides {
  /// Checks the strides of a tensor: the distances can be counted, and where the tensor is written, no two elements
  /// share memory.
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

  /// The bytes from element (0, 0, 0, 0) to the first that a tensor has, and to the end of the last; nil where it has
  /// none. The strides have been checked.
  package func reach(_ shape: TensorShape, _ type: ScalarType) -> Range<Int>? {
    if shape.checkedElementCount == 0 { return nil }
    var (first, end) = (0, shape.dimension)
    for (stride, extent) in [(batch, shape.batch), (heads, shape.heads), (length, shape.length)] where extent > 1 {
      if stride < 0 { first += stride * (extent - 1) } else { end += stride * (extent - 1) }
    }
    return first * type.byteCount..<end * type.byteCount
  }

  /// Whether elements of two tensors share memory, as far as that can be told: those of the same strides, however they
  /// lie between each other, and those without gaps. Of others it is not said.
  ///
  /// - Parameter distance: bytes from element (0, 0, 0, 0) of this to that of the other.
  package func sharesMemory(
    _ shape: TensorShape, _ type: ScalarType, with other: TensorStrides, _ otherShape: TensorShape,
    _ otherType: ScalarType, distance: Int
  ) -> Bool {
    guard let own = reach(shape, type), let others = other.reach(otherShape, otherType) else { return false }
    let (start, overflow) = others.lowerBound.addingReportingOverflow(distance)
    let (end, overflowOfEnd) = others.upperBound.addingReportingOverflow(distance)
    if overflow || overflowOfEnd || start >= own.upperBound || end <= own.lowerBound { return false }
    // Along an axis of one entry, any stride is that of the other.
    let axes = [
      (batch, shape.batch, other.batch, otherShape.batch), (heads, shape.heads, other.heads, otherShape.heads),
      (length, shape.length, other.length, otherShape.length),
    ].map { own, extent, others, otherExtent in
      (own: extent > 1 ? own : others, other: otherExtent > 1 ? others : own, extent: extent, otherExtent: otherExtent)
    }
    let size = type.byteCount
    guard type == otherType && axes.allSatisfy({ $0.own == $0.other && $0.own >= 0 }) else {
      return own.count == shape.elementCount * size && others.count == otherShape.elementCount * otherType.byteCount
    }
    /// Whether some element is as far from one of the other's, by the steps of the axes that are left.
    func meets(_ distance: Int, _ axes: ArraySlice<(own: Int, other: Int, extent: Int, otherExtent: Int)>) -> Bool {
      guard let axis = axes.first else {
        return distance < shape.dimension * size && -distance < otherShape.dimension * size
      }
      if axis.own == 0 { return meets(distance, axes.dropFirst()) }
      let step = axis.own * size
      // What the shorter steps reach is less than this one.
      let steps = distance / step
      return (steps - 1...steps + 1).contains { steps in
        (1 - axis.otherExtent...axis.extent - 1).contains(steps) && meets(distance - steps * step, axes.dropFirst())
      }
    }
    return meets(distance, axes.sorted { $0.own > $1.own }[...])
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
