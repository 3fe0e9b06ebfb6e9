package import Attention
package import PTX

/// Where the value of a kernel's parameter comes from.
package enum ParameterSource: Hashable, Sendable {
  /// The plan knows it: a whole number in the parameter's type.
  case number(Int)
  case float(Float)
  /// The call knows it: an address, and so many bytes more.
  case address(CallValue, plus: Int = 0)
  /// A stride of the call, times the bytes of an element.
  case stride(CallValue, times: Int)
  /// The copy engine's map of a tensor of the call.
  case tensorMap(CallValue, TensorBox)
  /// How many rows of a tensor of the call lie between a batch and the next, where it has a ragged map.
  case rowsOfBatch(CallValue, TensorShape)
}

/// The parameters of a kernel in their order, each said once: its name, its type, and where its value comes from. A
/// kernel declares and reads them here while it is emitted; a plan makes a template of the same list, and a call fills
/// it in.
///
/// `Launch` is what a plan knows: everything but addresses and strides.
package final class ParameterList<Launch> {
  /// A parameter.
  package struct Entry: Sendable {
    let name: String
    let kind: RegisterKind
    let isPointer: Bool
    let source: @Sendable (Launch) -> ParameterSource
    var isMap = false
  }

  private let k: KernelBuilder
  private(set) var entries: [Entry] = []

  package init(_ k: KernelBuilder) { self.k = k }

  /// The list that a kernel declares.
  package static func declared(_ declare: (ParameterList) -> Void) -> [Entry] {
    var entries: [Entry] = []
    // Nothing but parameters, of types that there are.
    _ = try! Kernel.build("parameters", threadsPerBlock: 32) { k in
      let list = ParameterList(k)
      declare(list)
      entries = list.entries
    }
    return entries
  }

  /// The address of global memory.
  package func pointer(_ name: String, _ value: CallValue) -> Register<U64> { pointer(name) { _ in .address(value) } }

  /// The address of global memory, as the plan decides.
  package func pointer(_ name: String, _ source: @escaping @Sendable (Launch) -> ParameterSource) -> Register<U64> {
    entries.append(Entry(name: name, kind: .u64, isPointer: true, source: source))
    return k.pointer(name)
  }

  /// The copy engine's map of a tensor of the call.
  package func tensorMap(
    _ name: String, _ tensor: CallValue, _ box: @escaping @Sendable (Launch) -> TensorBox
  ) -> TensorMapParameter {
    entries.append(
      Entry(name: name, kind: .u64, isPointer: false, source: { .tensorMap(tensor, box($0)) }, isMap: true))
    return k.tensorMap(name)
  }

  /// A whole number that the plan knows.
  package func number<T: IntegerType>(
    _ name: String, _: T.Type, _ value: @escaping @Sendable (Launch) -> Int
  ) -> Register<T> {
    entries.append(Entry(name: name, kind: T.kind, isPointer: false) { .number(value($0)) })
    return k.parameter(name, T.self)
  }

  /// How many rows of a tensor of the call lie between a batch and the next, where it has a ragged map.
  package func number<T: IntegerType>(
    _ name: String, _: T.Type, _ tensor: CallValue, _ shape: @escaping @Sendable (Launch) -> TensorShape
  ) -> Register<T> {
    entries.append(Entry(name: name, kind: T.kind, isPointer: false) { .rowsOfBatch(tensor, shape($0)) })
    return k.parameter(name, T.self)
  }

  /// A number that the plan knows.
  package func float(_ name: String, _ value: @escaping @Sendable (Launch) -> Float) -> Register<F32> {
    entries.append(Entry(name: name, kind: .f32, isPointer: false) { .float(value($0)) })
    return k.parameter(name, F32.self)
  }

  /// The strides of a tensor in bytes.
  ///
  /// - Parameter strides: what kind of a tensor it is.
  package func strides(
    _ tensor: String, _ strides: @escaping @Sendable (Launch) -> TensorSteps
  ) -> StrideParameters {
    func one(_ axis: String, _ source: @escaping @Sendable (TensorSteps) -> ParameterSource) -> Register<U64> {
      let name = "\(tensor)_\(axis)_stride"
      entries.append(Entry(name: name, kind: .u64, isPointer: false) { source(strides($0)) })
      return k.parameter(name, U64.self)
    }
    return StrideParameters(batch: one("batch") { $0.batch }, head: one("head") { $0.head }, row: one("row") { $0.row })
  }
}

/// Where a launch has the strides of a tensor from.
package struct TensorSteps: Sendable {
  package let batch, head, row: ParameterSource

  /// Those of a tensor of the call. Sequences that are packed are one batch: where one begins is counted in rows.
  package init(_ tensor: CallValue, _ type: ScalarType, isPacked: Bool = false) {
    func stride(_ axis: Int) -> ParameterSource {
      .stride(CallValue(rawValue: tensor.rawValue + axis)!, times: type.byteCount)
    }
    (batch, head, row) = (isPacked ? .number(0) : stride(1), stride(2), stride(3))
  }

  /// Those that the plan knows, in elements.
  package init(_ strides: TensorStrides, _ type: ScalarType, isPacked: Bool = false) {
    func bytes(_ stride: Int) -> ParameterSource { .number(stride &* type.byteCount) }
    (batch, head, row) = (isPacked ? .number(0) : bytes(strides.batch), bytes(strides.heads), bytes(strides.length))
  }
}

/// The arguments of a launch, as the kernel's parameters lie: each at a multiple of its size. What the plan knows is in
/// its place; what a call knows is filled in.
package struct ArgumentTemplate: Sendable {
  private enum Source: Sendable {
    case word(Int, times: Int, plus: Int)
    case rowsOfBatch(Int, TensorShape)

    /// What it is in a call, of which there is the table of all.
    func word(_ table: UnsafePointer<UInt64>) -> UInt64 {
      switch self {
      // A stride of an empty tensor may be anything.
      case .word(let value, let times, let plus): return table[value] &* UInt64(times) &+ UInt64(plus)
      case .rowsOfBatch(let first, let shape):
        let (batch, row) = (Int(Int64(bitPattern: table[first + 1])), Int(Int64(bitPattern: table[first + 3])))
        // Without a map, there is no call.
        return UInt64(RaggedRows.Strides(shape, batch: batch, row: row)?.rowsOfBatch ?? 0)
      }
    }
  }

  private struct Place: Sendable {
    let offset: Int
    let kind: RegisterKind
    let isPointer: Bool
    /// nil where the bytes have it.
    let source: Source?
    /// Where it is a map: of which tensor, and how.
    let map: (value: Int, box: TensorBox)?
  }

  private let bytes: [UInt8]
  private let places, filled, maps: [Place]

  package init<Launch>(_ entries: [ParameterList<Launch>.Entry], for launch: Launch) {
    var (bytes, places) = ([UInt8](), [Place]())
    for entry in entries {
      let size = entry.isMap ? TensorMap.byteCount : entry.kind.byteCount
      while bytes.count % min(size, 64) != 0 { bytes.append(0) }
      var source: Source?
      var map: (value: Int, box: TensorBox)?
      var word: UInt64 = 0
      switch entry.source(launch) {
      // Traps where a number has no room: plans have counted before.
      case .number(let value):
        word =
          switch entry.kind {
          case .s32: UInt64(UInt32(bitPattern: Int32(value)))
          case .u32: UInt64(UInt32(value))
          default: UInt64(bitPattern: Int64(value))
          }
      case .float(let value): word = UInt64(value.bitPattern)
      case .address(let value, let plus): source = .word(value.rawValue, times: 1, plus: plus)
      case .stride(let value, let times): source = .word(value.rawValue, times: times, plus: 0)
      case .tensorMap(let value, let box): map = (value.rawValue, box)
      case .rowsOfBatch(let value, let shape): source = .rowsOfBatch(value.rawValue, shape)
      }
      places.append(
        Place(offset: bytes.count, kind: entry.kind, isPointer: entry.isPointer, source: source, map: map))
      withUnsafeBytes(of: word) { bytes += $0.prefix(size) }
      if map != nil { bytes += [UInt8](repeating: 0, count: size - 8) }
    }
    (self.bytes, self.places) = (bytes, places)
    (filled, maps) = (places.filter { $0.source != nil }, places.filter { $0.map != nil })
  }

  /// Where each parameter begins: launches with maps hand the driver a pointer to each. Empty where there are none.
  package var offsets: [Int] { maps.isEmpty ? [] : places.map(\.offset) }

  /// A tensor of a call, with strides in elements, and where among the arguments its map belongs.
  package struct MappedTensor: Hashable, Sendable {
    package let offset: Int
    fileprivate let address: UInt64
    fileprivate let batch, head, row: Int
  }

  /// The tensors of a call that have maps, which begin at multiples of 64 bytes.
  package func mappedTensors(_ call: borrowing KernelCall) -> [MappedTensor] {
    if maps.isEmpty { return [] }
    return call.withTable { table in
      maps.map { place in
        let first = place.map!.value
        func stride(_ axis: Int) -> Int { Int(Int64(bitPattern: table[first + axis])) }
        return MappedTensor(
          offset: place.offset, address: table[first], batch: stride(1), head: stride(2), row: stride(3))
      }
    }
  }

  /// The map of one of them; nil where its strides have none.
  package func map(of tensor: MappedTensor) -> TensorMap? {
    let box = maps.first { $0.offset == tensor.offset }!.map!.box
    return box.map(address: tensor.address, batch: tensor.batch, head: tensor.head, row: tensor.row)
  }

  /// Bytes of all parameters.
  package var byteCount: Int { bytes.count }

  /// Writes what the plan knows into memory that has room for it: all, where a call knows nothing more.
  package func write(to buffer: UnsafeMutableRawBufferPointer) {
    bytes.withUnsafeBytes { buffer.baseAddress!.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
  }

  /// Writes the arguments of a call into memory that has room for them.
  package func write(_ call: borrowing KernelCall, to buffer: UnsafeMutableRawBufferPointer) {
    write(to: buffer)
    call.withTable { table in
      for place in filled {
        let word = place.source!.word(table)
        switch place.kind.byteCount {
        case 4: buffer.storeBytes(of: UInt32(truncatingIfNeeded: word), toByteOffset: place.offset, as: UInt32.self)
        default: buffer.storeBytes(of: word, toByteOffset: place.offset, as: UInt64.self)
        }
      }
    }
  }

  /// The arguments one by one; of a call, where it knows some of them: one whose tensors have maps.
  package func arguments(_ call: KernelCall? = nil) -> [Kernel.Argument] {
    var bytes = bytes
    if let call { bytes.withUnsafeMutableBytes { write(call, to: $0) } }
    let maps = Dictionary(
      uniqueKeysWithValues: (call.map { mappedTensors($0) } ?? []).map { ($0.offset, map(of: $0)!) })
    return bytes.withUnsafeBytes { bytes in
      places.map { place in
        if let map = maps[place.offset] { return .tensorMap(map) }
        switch place.kind {
        case .u32: return .u32(bytes.load(fromByteOffset: place.offset, as: UInt32.self))
        case .s32: return .s32(bytes.load(fromByteOffset: place.offset, as: Int32.self))
        case .f32: return .f32(bytes.load(fromByteOffset: place.offset, as: Float.self))
        default:
          return place.isPointer
            ? .pointer(bytes.load(fromByteOffset: place.offset, as: UInt64.self))
            : .u64(bytes.load(fromByteOffset: place.offset, as: UInt64.self))
        }
      }
    }
  }
}
