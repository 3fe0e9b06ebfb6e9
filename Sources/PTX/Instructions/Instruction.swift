/// Every instruction that the language has. The enumeration is closed and its families are exhaustive switches wherever
/// they are given a meaning: in the text of this module and in the emulator, so that none can be forgotten.
///
/// Source of names and semantics: NVIDIA, "Parallel Thread Execution ISA" (9.x); the section is named with each family.
public enum Instruction: Hashable, Sendable {
  case arithmetic(Arithmetic)
  case conversion(Conversion)
  case memory(Memory)
  case atomic(AtomicOperation)
  case asynchronousCopy(AsynchronousCopy)
  case bulkCopy(BulkCopy)
  case transactionBarrier(TransactionBarrier)
  case matrix(Matrix)
  case warpgroup(WarpgroupMatrix)
  case warp(WarpExchange)
  case synchronization(Synchronization)
  case control(Control)
}

/// How registers and constants are written.
struct TextNames {
  let registers: [String]
  let lists: [[RegisterID]]

  func callAsFunction(_ register: RegisterID) -> String { registers[Int(register.index)] }

  func callAsFunction(_ group: RegisterGroup) -> String {
    group.count == 1 ? self(group[0]) : "{\(group.all.map { self($0) }.joined(separator: ", "))}"
  }

  func callAsFunction(_ list: RegisterList) -> String {
    "{\(lists[Int(list.index)].map { self($0) }.joined(separator: ", "))}"
  }

  /// A place in memory.
  func place(_ address: RegisterID, _ offset: Int32) -> String {
    offset == 0 ? "[\(self(address))]" : "[\(self(address))+\(offset)]"
  }

  /// Floats are written by their bits, so that no digit is lost.
  func callAsFunction(_ operand: Operand, _ kind: RegisterKind) -> String {
    switch operand {
    case .register(let register): return self(register)
    case .immediate(let bits):
      switch kind {
      case .f32: return "0f" + hexadecimal(UInt32(truncatingIfNeeded: bits), digits: 8)
      case .f16x2, .bf16x2: return "0x" + hexadecimal(UInt32(truncatingIfNeeded: bits), digits: 8)
      case .s32: return "\(Int32(truncatingIfNeeded: bits))"
      case .s64: return "\(Int64(bitPattern: bits))"
      case .u32: return "\(UInt32(truncatingIfNeeded: bits))"
      default: return "\(bits)"
      }
    }
  }
}

func hexadecimal(_ value: UInt32, digits: Int) -> String {
  let text = String(value, radix: 16, uppercase: true)
  return String(repeating: "0", count: max(0, digits - text.count)) + text
}

extension Instruction {
  /// The instruction without guard and semicolon.
  func text(_ name: TextNames) -> String {
    switch self {
    case .arithmetic(let instruction): instruction.text(name)
    case .conversion(let instruction): instruction.text(name)
    case .memory(let instruction): instruction.text(name)
    case .atomic(let instruction): instruction.text(name)
    case .asynchronousCopy(let instruction): instruction.text(name)
    case .bulkCopy(let instruction): instruction.text(name)
    case .transactionBarrier(let instruction): instruction.text(name)
    case .matrix(let instruction): instruction.text(name)
    case .warpgroup(let instruction): instruction.text(name)
    case .warp(let instruction): instruction.text(name)
    case .synchronization(let instruction): instruction.text(name)
    case .control(let instruction): instruction.text(name)
    }
  }

  /// Whether the instruction exists for its ordering alone: what a mutation test removes.
  public var isOrdering: Bool {
    switch self {
    case .synchronization(.launchDependents): false
    case .synchronization: true
    case .asynchronousCopy(.waitGroup), .asynchronousCopy(.commit): true
    case .bulkCopy(.commit), .bulkCopy(.waitGroup): true
    case .transactionBarrier(.arrive): true
    case .warpgroup(.fence), .warpgroup(.commit), .warpgroup(.wait): true
    default: false
    }
  }

  /// The same access with a part of its ordering less, for each part: what a mutation test puts in its place.
  public var weakened: [Instruction] {
    switch self {
    case .atomic(let operation): operation.weakened.map { .atomic($0) }
    case .transactionBarrier(.tryWait(let d, _, _, _)):
      // A wait that is over at once.
      [.arithmetic(.compare(.eq, .u32, d: d, a: .immediate(0), b: .immediate(0)))]
    case .transactionBarrier(.arriveExpecting(let address, let offset, _)):
      [.transactionBarrier(.arrive(address: address, offset: offset))]
    case .memory(.load(let space, .acquire, let hint, let width, let d, let address, let offset)):
      [.memory(.load(space, .relaxed, hint, width, d: d, address: address, offset: offset))]
    case .memory(.store(let space, .release, let width, let values, let address, let offset)):
      [.memory(.store(space, .relaxed, width, values: values, address: address, offset: offset))]
    default: []
    }
  }
}

extension Instruction {
  /// The same instruction with other operands in place of those that may be constants.
  public func mapOperands(_ change: (Operand) -> Operand) -> Instruction {
    switch self {
    case .arithmetic(let instruction): .arithmetic(instruction.mapOperands(change))
    case .conversion(let instruction): .conversion(instruction.mapOperands(change))
    case .atomic(let instruction): .atomic(instruction.mapOperands(change))
    case .asynchronousCopy(.copy(let count, let d, let dOffset, let s, let sOffset, let bytes?)):
      .asynchronousCopy(
        .copy(
          byteCount: count, destination: d, destinationOffset: dOffset, source: s, sourceOffset: sOffset,
          sourceBytes: change(bytes)))
    case .bulkCopy(let instruction): .bulkCopy(instruction.mapOperands(change))
    case .transactionBarrier(let instruction): .transactionBarrier(instruction.mapOperands(change))
    case .warp(.shuffle(let mode, let d, let a, let lane, let width)):
      .warp(.shuffle(mode, d: d, a: a, lane: change(lane), width: width))
    case .synchronization(.barrier(let id, let threads)): .synchronization(.barrier(id: change(id), threads: threads))
    case .synchronization(.arrive(let id, let threads)): .synchronization(.arrive(id: change(id), threads: threads))
    case .memory, .asynchronousCopy, .matrix, .warpgroup, .warp, .synchronization, .control: self
    }
  }

  /// The instruction's text with the names of a kernel; constants that were moved to registers behind the kernel's own
  /// are written by their bits.
  public func description(in kernel: Kernel, constants: [UInt64] = []) -> String {
    text(kernel.names(constants: constants))
  }
}
