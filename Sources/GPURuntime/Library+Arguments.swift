package import CUDADriver
package import PTX

extension Library {
  /// Puts a launch into a stream, with arguments one by one: for probes and tests.
  package func launch(
    _ shape: LaunchShape, arguments: [Kernel.Argument], in stream: StreamHandle
  ) throws(CUDAError) {
    // Each argument has 128 bytes of its own, of which most use few.
    let size = EncodedTensorMap.byteCount
    try withUnsafeTemporaryAllocation(byteCount: max(arguments.count, 1) * size, alignment: 64) {
      (buffer) throws(CUDAError) in
      var pointers: [UnsafeMutableRawPointer?] = []
      for (index, argument) in arguments.enumerated() {
        let place = UnsafeMutableRawBufferPointer(rebasing: buffer[index * size..<(index + 1) * size])
        switch argument {
        case .u32(let value): place.storeBytes(of: value, as: UInt32.self)
        case .s32(let value): place.storeBytes(of: value, as: Int32.self)
        case .u64(let value), .pointer(let value): place.storeBytes(of: value, as: UInt64.self)
        case .f32(let value): place.storeBytes(of: value, as: Float.self)
        case .tensorMap(let map):
          try encode(map, to: place)
        }
        pointers.append(place.baseAddress)
      }
      pointers.append(nil)
      var failure: CUDAError?
      pointers.withUnsafeMutableBufferPointer { pointers in
        do throws(CUDAError) { try launch(shape, pointers: pointers.baseAddress!, in: stream) } catch {
          failure = error
        }
      }
      if let failure { throw failure }
    }
  }
}

extension Library {
  /// Writes a tensor map to 128 bytes among a launch's arguments. A context must be current.
  package func encode(_ map: TensorMap, to place: UnsafeMutableRawBufferPointer) throws(CUDAError) {
    if let obstacle = map.obstacle { throw .impossibleTensorMap(kernel: name, reason: obstacle) }
    try encode(EncodedTensorMap.Description(map), to: place)
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
