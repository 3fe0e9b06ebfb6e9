/// A register of one kernel, by number.
public struct RegisterID: Hashable, Sendable {
  /// Place in `Kernel.registers`.
  public let index: Int32
  /// What it holds.
  public let kind: RegisterKind

  /// A register by number.
  public init(index: Int32, kind: RegisterKind) {
    self.index = index
    self.kind = kind
  }
}

/// What an instruction reads: a register, or a constant in the instruction itself.
public enum Operand: Hashable, Sendable {
  case register(RegisterID)
  /// The bits, as the instruction's type reads them.
  case immediate(UInt64)
}

/// Up to four registers, for instructions on vectors and fragments.
public struct RegisterGroup: Hashable, Sendable {
  /// How many of the four are meant.
  public let count: Int
  private let first, second, third, fourth: RegisterID

  /// One to four registers.
  public init(_ registers: [RegisterID]) {
    precondition((1...4).contains(registers.count), "A register group has 1 to 4 registers.")
    count = registers.count
    first = registers[0]
    second = registers[min(1, count - 1)]
    third = registers[min(2, count - 1)]
    fourth = registers[min(3, count - 1)]
  }

  /// Register 0 to 3.
  public subscript(_ i: Int) -> RegisterID {
    switch i {
    case 0: first
    case 1: second
    case 2: third
    default: fourth
    }
  }

  /// The registers in order.
  public var all: [RegisterID] { (0..<count).map { self[$0] } }
}

/// More registers than a group has, kept by the kernel: an instruction names the list, so that it stays a plain value,
/// which costs nothing to copy.
public struct RegisterList: Hashable, Sendable {
  /// Place in `Kernel.registerLists`.
  public let index: Int32
  /// How many registers it has.
  public let count: Int32
}

/// Where a value is read that the hardware provides.
public enum SpecialRegister: String, Hashable, Sendable, CaseIterable {
  case threadX = "%tid.x", threadY = "%tid.y", threadZ = "%tid.z"
  case blockX = "%ctaid.x", blockY = "%ctaid.y", blockZ = "%ctaid.z"
  case threadsX = "%ntid.x", threadsY = "%ntid.y", threadsZ = "%ntid.z"
  case blocksX = "%nctaid.x", blocksY = "%nctaid.y", blocksZ = "%nctaid.z"
  case lane = "%laneid"
  /// The block's number in its cluster (sm_90).
  case clusterRank = "%cluster_ctarank"
}

/// Where the Swift call stands that made an instruction.
public struct SourceLocation: Hashable, Sendable, CustomStringConvertible {
  /// `Module/File.swift`.
  public let file: String
  /// Counted from 1.
  public let line: Int

  /// A place in a file.
  public init(file: String, line: Int) {
    self.file = file
    self.line = line
  }

  /// `File.swift:12`.
  public var description: String { "\(file.split(separator: "/").last ?? ""):\(line)" }
}
