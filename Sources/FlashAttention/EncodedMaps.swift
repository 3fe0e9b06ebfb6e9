package import AttentionKernels

/// The maps of a plan's calls, as the driver made them: callers give the same memory again and again, a model the same for
/// each of its layers, and each map costs the host a microsecond.
package struct EncodedMaps {
  /// What the copy engine reads.
  package typealias Bytes = SIMD16<UInt64>
  /// Those of 170 layers; beyond, all are forgotten.
  package static let limit = 512
  private var known: [ArgumentTemplate.MappedTensor: Bytes] = [:]

  /// None.
  package init() {}

  /// How many there are.
  package var count: Int { known.count }

  /// That of a tensor; nil where it was not remembered, or not since.
  package subscript(tensor: ArgumentTemplate.MappedTensor) -> Bytes? { known[tensor] }

  /// Keeps that of a tensor.
  package mutating func remember(_ bytes: Bytes, of tensor: ArgumentTemplate.MappedTensor) {
    if known.count >= Self.limit && known[tensor] == nil { known.removeAll(keepingCapacity: true) }
    known[tensor] = bytes
  }
}
