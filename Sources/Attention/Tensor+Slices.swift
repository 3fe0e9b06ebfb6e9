extension Tensor {
  /// A slice of the tensor, as a tensor of its own in the same layout: what is left out of the arguments is taken whole.
  ///
  ///     let lastToken = try output.slice(length: n - 1..<n)
  ///
  /// - Parameters:
  ///   - batch: which sequences.
  ///   - heads: which heads.
  ///   - length: which tokens of each.
  ///   - dimension: which elements of each token.
  /// - Throws: `AttentionError.slice` where a range leads out of the tensor; `.memory` where there is not enough.
  public func slice(
    batch: Range<Int>? = nil, heads: Range<Int>? = nil, length: Range<Int>? = nil, dimension: Range<Int>? = nil
  ) throws(AttentionError) -> Tensor {
    func checked(_ range: Range<Int>?, _ axis: TensorAxis) throws(AttentionError) -> Range<Int> {
      let all = 0..<self.shape[axis]
      guard let range else { return all }
      if range.lowerBound < 0 || range.upperBound > all.upperBound {
        throw .slice(axis: "\(axis)", range: range, extent: all.upperBound)
      }
      return range
    }
    let (b, h) = (try checked(batch, .batch), try checked(heads, .heads))
    let (n, d) = (try checked(length, .length), try checked(dimension, .dimension))
    let shape = TensorShape(batch: b.count, heads: h.count, length: n.count, dimension: d.count)
    return try Tensor(shape: shape, scalarType: scalarType, layout: layout) { target in
      withView { view in
        target.fill(
          shape,
          from: TensorView(
            base: view.row(batch: b.lowerBound, head: h.lowerBound, token: n.lowerBound)
              + d.lowerBound * scalarType.byteCount,
            scalarType: scalarType, shape: shape, strides: view.strides))
      }
    }
  }

  /// Tensors one behind the other along an axis, in the layout of the first.
  ///
  ///     let grown = try Tensor(concatenating: [cached, new], along: .length)
  ///
  /// - Throws: `AttentionError.mismatch` where they differ in another axis, `.mixedTypes` where in type; `.unsupported` of none;
  ///   `.tooLarge` or `.memory`.
  public init(concatenating tensors: [Tensor], along axis: TensorAxis) throws(AttentionError) {
    guard let first = tensors.first else {
      throw .unsupported("There are no tensors to concatenate; give one at least.")
    }
    var shape = first.shape
    for (number, tensor) in tensors.enumerated().dropFirst() {
      let name = "tensor \(number + 1) of those to concatenate"
      if tensor.scalarType != first.scalarType {
        throw .mixedTypes(
          first: name, firstType: tensor.scalarType, second: "the first", secondType: first.scalarType)
      }
      for other in TensorAxis.allCases where other != axis && tensor.shape[other] != shape[other] {
        throw .mismatch(
          axis: "\(other)", first: name, firstExtent: tensor.shape[other], second: "the first",
          secondExtent: shape[other])
      }
      let (sum, overflow) = shape[axis].addingReportingOverflow(tensor.shape[axis])
      if overflow { throw .tooLarge(tensor: "The concatenated tensor", shape: shape) }
      shape[axis] = sum
    }
    try self.init(shape: shape, scalarType: first.scalarType, layout: first.layout) { target in
      var at = 0
      for tensor in tensors {
        let (part, start) = (tensor.shape, at)
        at += part[axis]
        if part.elementCount == 0 { continue }
        let base =
          axis == .dimension
          ? target.base + start * target.scalarType.byteCount
          : target.row(
            batch: axis == .batch ? start : 0, head: axis == .heads ? start : 0, token: axis == .length ? start : 0)
        tensor.withView {
          MutableTensorView(base: base, scalarType: target.scalarType, shape: part, strides: target.strides)
            .fill(part, from: $0)
        }
      }
    }
  }
}

extension MutableTensorView {
  /// Copies the elements of a view of the same type and shape, row by row.
  fileprivate func fill(_ shape: TensorShape, from source: TensorView) {
    let byteCount = shape.dimension * scalarType.byteCount
    if byteCount == 0 { return }
    for b in 0..<shape.batch {
      for h in 0..<shape.heads {
        for n in 0..<shape.length {
          row(batch: b, head: h, token: n).copyMemory(
            from: source.row(batch: b, head: h, token: n), byteCount: byteCount)
        }
      }
    }
  }
}
