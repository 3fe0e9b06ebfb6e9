package import CUDADriver
package import PTX

extension Library {
  /// Puts a launch into a stream, with arguments one by one: for probes and tests.
  package func launch(
    _ shape: LaunchShape, arguments: [Kernel.Argument], in stream: StreamHandle
  ) throws(CUDAError) {
    let capacity = arguments.reduce(0) { sum, argument in
      if case .tensorMap = argument { sum + 192 } else { sum + 8 }
    }
    try withUnsafeTemporaryAllocation(byteCount: max(capacity, 8), alignment: 64) { (buffer) throws(CUDAError) in
      var offset = 0
      func align(to size: Int) { offset = (offset + size - 1) & ~(size - 1) }
      func put<T: BitwiseCopyable>(_ value: T) {
        align(to: MemoryLayout<T>.size)
        buffer.storeBytes(of: value, toByteOffset: offset, as: T.self)
        offset += MemoryLayout<T>.size
      }
      for argument in arguments {
        switch argument {
        case .u32(let value): put(value)
        case .s32(let value): put(value)
        case .u64(let value), .pointer(let value): put(value)
        case .f32(let value): put(value)
        case .tensorMap(let map):
          align(to: 64)
          let place = UnsafeMutableRawBufferPointer(rebasing: buffer[offset..<offset + EncodedTensorMap.byteCount])
          try encode(EncodedTensorMap.Description(map), to: place)
          offset += EncodedTensorMap.byteCount
        }
      }
      try launch(shape, arguments: UnsafeMutableRawBufferPointer(rebasing: buffer[..<offset]), in: stream)
    }
  }
}

extension EncodedTensorMap.Description {
  /// In the driver's numbers.
  init(_ map: TensorMap) {
    let type: Int32 =
      switch map.element {
      case .u8: 0
      case .f16: 6
      case .f32: 7
      case .bf16: 9
      }
    let swizzle: Int32 =
      switch map.swizzle {
      case .none: 0
      case .bytes32: 1
      case .bytes64: 2
      case .bytes128: 3
      }
    let promotion: Int32 =
      switch map.promotion {
      case .none: 0
      case .bytes64: 1
      case .bytes128: 2
      case .bytes256: 3
      }
    self.init(
      type: type, address: map.address, extents: map.extents.map(UInt64.init), strides: map.strides.map(UInt64.init),
      box: map.box.map(UInt32.init), swizzle: swizzle, promotion: promotion)
  }
}
