internal import Attention
internal import GPURuntime

/// Moves tensors between the host's memory and a GPU's. Views that are not contiguous are packed on the way, so that
/// host tensors may have strides of any kind.
enum HostCopy {
  /// A tensor on the GPU, alive as long as this is.
  struct Uploaded {
    let buffer: GPUBuffer
    let view: DeviceTensorView
  }

  /// The layout in which a view is contiguous, if any.
  static func layout(of view: TensorView) -> TensorLayout? {
    TensorLayout.allCases.first { $0.strides(of: view.shape) == view.strides }
  }

  static func upload(_ view: TensorView, to gpu: GPU) throws(AttentionError) -> Uploaded {
    let byteCount = view.shape.elementCount * view.scalarType.byteCount
    let buffer = try GPUBuffer(byteCount: byteCount, on: gpu)
    let layout = layout(of: view)
    if layout != nil {
      try buffer.copy(from: UnsafeRawBufferPointer(start: view.base, count: byteCount))
    } else {
      let packed = try Tensor(shape: view.shape, scalarType: view.scalarType) { copyRows(of: view, to: $0) }
      try packed.withBytes { (bytes) throws(AttentionError) in try buffer.copy(from: bytes) }
    }
    return Uploaded(
      buffer: buffer,
      view: DeviceTensorView(
        address: buffer.address, scalarType: view.scalarType, shape: view.shape, layout: layout ?? .bhnd))
  }

  /// Copies back and waits.
  static func download(_ buffer: GPUBuffer, _ layout: TensorLayout, to view: MutableTensorView) throws(AttentionError) {
    if Self.layout(of: view.readOnly) == layout {
      try buffer.copy(to: UnsafeMutableRawBufferPointer(start: view.base, count: buffer.byteCount))
    } else {
      let packed = try Tensor(shape: view.shape, scalarType: view.scalarType, layout: layout) {
        (destination) throws(AttentionError) in
        try buffer.copy(to: UnsafeMutableRawBufferPointer(start: destination.base, count: buffer.byteCount))
      }
      packed.withView { copyRows(of: $0, to: view) }
    }
  }

  private static func copyRows(of source: TensorView, to destination: MutableTensorView) {
    let shape = source.shape
    for b in 0..<shape.batch {
      for h in 0..<shape.heads {
        for n in 0..<shape.length {
          destination.row(batch: b, head: h, token: n).copyMemory(
            from: source.row(batch: b, head: h, token: n), byteCount: shape.dimension * source.scalarType.byteCount)
        }
      }
    }
  }
}
