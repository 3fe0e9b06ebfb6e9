/// The 128 bytes that the copy engine reads of a tensor (CUDA Driver API, Tensor Map Object Management).
package enum EncodedTensorMap {
  /// Bytes of a map, which lie at a multiple of 64.
  package static let byteCount = 128

  /// What a map says, in the driver's numbers.
  package struct Description: Sendable {
    /// `CUtensorMapDataType`.
    package var type: Int32
    /// The address of the first element.
    package var address: UInt64
    /// Elements along each dimension, innermost first, and bytes from one to the next of all but the innermost.
    package var extents, strides: [UInt64]
    /// Elements of a box.
    package var box: [UInt32]
    /// `CUtensorMapSwizzle` and `CUtensorMapL2promotion`.
    package var swizzle, promotion: Int32

    /// All of it.
    package init(
      type: Int32, address: UInt64, extents: [UInt64], strides: [UInt64], box: [UInt32], swizzle: Int32,
      promotion: Int32
    ) {
      (self.type, self.address, self.extents, self.strides) = (type, address, extents, strides)
      (self.box, self.swizzle, self.promotion) = (box, swizzle, promotion)
    }
  }

  static func encode(
    _ map: Description, to place: UnsafeMutableRawBufferPointer, _ functions: DriverFunctions
  ) throws(CUDAError) {
    // The driver takes 128 bytes at a multiple of 64, which a place among parameters need not be.
    let status = withUnsafeTemporaryAllocation(byteCount: byteCount, alignment: 64) { buffer in
      let ones = [UInt32](repeating: 1, count: map.extents.count)
      // Where there is one dimension there is no stride, but an address.
      let strides = map.strides.isEmpty ? [0] : map.strides
      let status = functions.encodeTensorMap(
        buffer.baseAddress!, map.type, UInt32(map.extents.count),
        UnsafeMutableRawPointer(bitPattern: UInt(map.address)), map.extents, strides, map.box, ones, 0, map.swizzle,
        map.promotion, 0)
      place.copyMemory(from: UnsafeRawBufferPointer(buffer))
      return status
    }
    try functions.check(status, "cuTensorMapEncodeTiled")
  }
}

extension Library {
  /// Writes a tensor map to 128 bytes among a launch's arguments. A context must be current.
  package func encode(
    _ map: EncodedTensorMap.Description, to place: UnsafeMutableRawBufferPointer
  ) throws(CUDAError) { try EncodedTensorMap.encode(map, to: place, functions) }
}
