internal import FlashAttention
internal import FlashAttentionHeader

extension fa_tensor {
  /// The strides of a tensor of a shape, 0 along axes that nobody steps along.
  /// - Throws: where the tensor has elements and no memory.
  private func strides(_ name: String, _ shape: TensorShape) throws(AttentionError) -> TensorStrides {
    if data == nil && shape.checkedElementCount != 0 {
      throw .unsupported("The address of \(name) is NULL, and it has elements; give its memory.")
    }
    func stride(_ value: Int64, _ extent: Int) -> Int { extent <= 1 ? 0 : Int(value) }
    return TensorStrides(
      batch: stride(batch_stride, shape.batch), heads: stride(head_stride, shape.heads),
      length: stride(token_stride, shape.length))
  }

  /// Memory of the host; that of an empty tensor is never read.
  func view(_ name: String, _ shape: TensorShape, _ type: ScalarType) throws(AttentionError) -> MutableTensorView {
    MutableTensorView(
      base: data ?? UnsafeMutableRawPointer(bitPattern: 64)!, scalarType: type, shape: shape,
      strides: try strides(name, shape))
  }

  /// Memory of a GPU.
  func deviceView(_ name: String, _ shape: TensorShape, _ type: ScalarType) throws(AttentionError) -> DeviceTensorView {
    DeviceTensorView(
      address: UInt64(UInt(bitPattern: data)), scalarType: type, shape: shape, strides: try strides(name, shape))
  }
}

extension ScalarType {
  /// - Throws: for a number that is no type.
  init(_ name: String, code: Int32) throws(AttentionError) {
    switch Int(code) {
    case Int(FA_F32): self = .f32
    case Int(FA_F16): self = .f16
    case Int(FA_BF16): self = .bf16
    case Int(FA_E4M3): self = .e4m3
    default: throw .unsupported("The \(name) is \(code); it must be FA_F32, FA_F16, FA_BF16 or FA_E4M3.")
    }
  }
}

extension Device {
  /// - Throws: for a number that is no device.
  init(code: Int32, ordinal: Int32) throws(AttentionError) {
    switch Int(code) {
    case Int(FA_CPU): self = .cpu
    case Int(FA_GPU): self = .gpu(Int(ordinal))
    default: throw .unsupported("The device is \(code); it must be FA_CPU or FA_GPU.")
    }
  }
}

extension fa_scores {
  /// - Throws: for a number that is no mask.
  var attentionMask: AttentionMask {
    get throws(AttentionError) {
      let reach: (left: Int?, right: Int?)
      switch Int(mask) {
      case Int(FA_MASK_NONE): reach = (nil, nil)
      case Int(FA_MASK_CAUSAL): reach = (nil, 0)
      case Int(FA_MASK_WINDOW):
        reach = (window_left < 0 ? nil : Int(window_left), window_right < 0 ? nil : Int(window_right))
      default: throw .unsupported("The mask is \(mask); it must be FA_MASK_NONE, FA_MASK_CAUSAL or FA_MASK_WINDOW.")
      }
      if chunk != 0 { return .chunks(of: Int(chunk), left: reach.left, right: reach.right) }
      switch reach {
      case (nil, nil): return .none
      case (nil, 0): return .causal
      default: return .window(left: reach.left, right: reach.right)
      }
    }
  }

  var attentionScale: Double? { scale_is_given != 0 ? scale : nil }
  var attentionSoftcap: Double? { softcap == 0 ? nil : softcap }
}

/// Numbers from a list of the host.
func numbers(_ list: UnsafePointer<Int32>?, _ count: Int) -> [Int]? {
  list.map { list in (0..<count).map { Int(list[$0]) } }
}

/// Where work is put; the default stream where the caller names none.
func streamHandle(_ pointer: UnsafeMutableRawPointer?) -> OpaquePointer {
  // CU_STREAM_LEGACY
  pointer.map { OpaquePointer($0) } ?? OpaquePointer(bitPattern: 1)!
}

/// Refuses a size without the memory that has it.
func checkMemory(_ memory: UnsafeMutableRawPointer?, size: Int, _ name: String) throws(AttentionError) {
  if memory == nil && size != 0 {
    throw .unsupported(
      "\(name)_size is \(UInt(bitPattern: size)) and \(name) is NULL; give its address, or a size of 0.")
  }
}

/// The address that a pointer holds; nil of NULL.
func address(_ pointer: UnsafeRawPointer?) -> UInt64? { pointer.map { UInt64(UInt(bitPattern: $0)) } }

/// - Throws: where a field that means nothing yet is not zero.
func check(reserved fields: [(name: String, value: Int32)]) throws(AttentionError) {
  for (name, value) in fields where value != 0 { throw .unsupported("\(name) is \(value); it must be 0.") }
}

// MARK: - Sinks

/// Sinks as a caller has them; nil where there are none.
struct Sinks {
  let base: UnsafeRawPointer
  private let type: ScalarType

  /// - Throws: for a type that sinks have not, and one without sinks.
  init?(_ base: UnsafeRawPointer?, type code: Int32) throws(AttentionError) {
    let type = try ScalarType("sink type", code: code)
    guard let base else {
      if code != 0 { throw .unsupported("sink_type is given and sinks is NULL; give both, or neither.") }
      return nil
    }
    if type == .e4m3 { throw .unsupported("Sinks are FA_E4M3; they must be FA_F32, FA_F16 or FA_BF16.") }
    (self.base, self.type) = (base, type)
  }

  /// The type that a problem has: on the CPU they are widened.
  func type(on device: Int32) -> ScalarType { Int(device) == Int(FA_CPU) ? .f32 : type }

  /// Those of so many heads, in the memory of the host.
  func floats(_ count: Int) -> [Float] { (0..<count).map { type.load(from: base, at: $0) } }
}

extension fa_scores {
  /// - Throws: as of `Sinks`.
  var attentionSinks: Sinks? {
    get throws(AttentionError) { try Sinks(sinks, type: sink_type) }
  }

  /// Puts what there is of sinks and ranges into a problem.
  func add(to problem: inout AttentionProblem, on device: Int32) throws(AttentionError) {
    problem.sinkType = try attentionSinks?.type(on: device)
    problem.ranges = try attentionRanges
  }

  /// - Throws: where what is given is not what the kind of ranges needs, or more.
  private var attentionRanges: KeyRanges.Form? {
    get throws(AttentionError) {
      let kind = Int(ranges)
      guard Int(FA_RANGES_NONE)...Int(FA_RANGES_FIRST_KEYS) ~= kind else {
        throw .unsupported(
          "ranges is \(ranges); it must be FA_RANGES_NONE, FA_RANGES_GIVEN, FA_RANGES_PREFIX or FA_RANGES_FIRST_KEYS.")
      }
      let (isGiven, isPrefix) = (kind == Int(FA_RANGES_GIVEN), kind == Int(FA_RANGES_PREFIX))
      if (key_ranges != nil) != (isGiven || isPrefix) {
        throw .unsupported(
          key_ranges == nil
            ? "key_ranges is NULL; FA_RANGES_GIVEN and FA_RANGES_PREFIX need it."
            : "key_ranges is given, and ranges is neither FA_RANGES_GIVEN nor FA_RANGES_PREFIX.")
      }
      if !isGiven && (ranges_of_query != 0 || ranges_are_shared != 0) {
        throw .unsupported("ranges_of_query or ranges_are_shared is given, and ranges is not FA_RANGES_GIVEN.")
      }
      if kind != Int(FA_RANGES_FIRST_KEYS) && first_keys != 0 {
        throw .unsupported("first_keys is given, and ranges is not FA_RANGES_FIRST_KEYS.")
      }
      guard 0...1 ~= ranges_are_shared else {
        throw .unsupported("ranges_are_shared is \(ranges_are_shared); it must be 0 or 1.")
      }
      switch kind {
      case Int(FA_RANGES_GIVEN): return .given(count: Int(ranges_of_query), isShared: ranges_are_shared == 1)
      case Int(FA_RANGES_PREFIX): return .prefix
      case Int(FA_RANGES_FIRST_KEYS): return .firstKeys(Int(first_keys))
      default: return nil
      }
    }
  }

  /// What a call gives of ranges, in the memory of the host.
  func rangeNumbers(_ problem: AttentionProblem) -> [Int]? { numbers(key_ranges, problem.rangeNumberCount) }
}
