public import PTX

/// A kernel in the form that the emulator runs: a flat list of operations, constants in registers of their own.
public struct Program: Sendable {
  /// One step of a warp.
  enum Operation: Sendable {
    case run(Instruction, guardedBy: Kernel.Guard?)
    /// Splits the lanes; where none takes the first part, continues at `otherwise`.
    case branch(Kernel.Guard, otherwise: Int)
    /// The first part is done; where no lane takes the second, continues at `end`.
    case otherwise(end: Int)
    case join
    case loop
    /// Back to `start` for the lanes where the predicate holds.
    case repeatWhile(RegisterID, start: Int)
  }

  /// The kernel itself.
  public let kernel: Kernel
  let operations: [Operation]
  let locations: [SourceLocation?]
  /// Constants, in registers behind those of the kernel.
  let constants: [UInt64]

  /// Offsets of the static shared buffers, and where the dynamic memory begins.
  let sharedOffsets: [Int]
  let staticSharedByteCount: Int

  var registerCount: Int { kernel.registers.count + constants.count }
  /// Whether there are accesses that ordinary instructions do not make: by the copy engine, and by `wgmma`.
  let usesAsynchronousProxy: Bool
  /// The kernel's registers that each operation reads or writes; empty where nobody asks.
  let touchedRegisters: [[Int32]]

  /// Warps of a block.
  var warpCount: Int { kernel.threadsPerBlock / 32 }
  /// Whom a warp knows of: the warps of its block; besides, where there is an asynchronous proxy, each warp as the one
  /// whose products read, each as the one whose copies to global memory read, and each transaction barrier as the one
  /// that copies write for.
  var viewCount: Int { usesAsynchronousProxy ? 3 * warpCount + Self.barrierLimit : warpCount }
  /// As whom a warp's products read.
  func products(of warp: Int) -> Int { warpCount + warp }
  /// As whom its copies to global memory read.
  func stores(of warp: Int) -> Int { 2 * warpCount + warp }
  /// As whom copies write that a transaction barrier counts.
  func copies(for barrier: Int) -> Int { 3 * warpCount + barrier }
  /// Transaction barriers of a block.
  static let barrierLimit = 96

  /// - Parameters:
  ///   - kernel: the kernel.
  ///   - change: for mutation tests, another instruction in place of the statement of this number in
  ///     `kernel.statements`, or nothing in its place.
  public init(_ kernel: Kernel, changing change: (statement: Int, to: Instruction?)? = nil) {
    self.kernel = kernel
    var flattener = Flattener(firstConstant: kernel.registers.count, change: change)
    flattener.flatten(kernel.body)
    operations = flattener.operations
    locations = flattener.locations
    constants = flattener.constants
    usesAsynchronousProxy = operations.contains { operation in
      guard case .run(let instruction, _) = operation else { return false }
      return switch instruction {
      case .bulkCopy, .transactionBarrier, .warpgroup, .synchronization(.clusterArrive),
        .synchronization(.clusterWait), .control(.setRegisterCount):
        true
      default: false
      }
    }
    let hasProducts = operations.contains { if case .run(.warpgroup, _) = $0 { true } else { false } }
    let count = kernel.registers.count
    touchedRegisters =
      hasProducts
      ? operations.map { operation in
        guard case .run(let instruction, _) = operation else { return [] }
        let (read, written) = instruction.registers(in: kernel)
        return (read + written).map(\.index).filter { Int($0) < count }
      } : []

    var offset = 0
    sharedOffsets = kernel.sharedBuffers.map { buffer in
      offset = (offset + buffer.alignment - 1) / buffer.alignment * buffer.alignment
      defer { offset += buffer.byteCount }
      return offset
    }
    let alignment = kernel.dynamicSharedAlignment ?? 1
    staticSharedByteCount = (offset + alignment - 1) / alignment * alignment
  }

  /// The text of an operation, for messages.
  func text(_ index: Int) -> String {
    guard case .run(let instruction, _) = operations[index] else { return "" }
    return instruction.description(in: kernel, constants: constants)
  }
}

private struct Flattener {
  let firstConstant: Int
  let change: (statement: Int, to: Instruction?)?
  var operations: [Program.Operation] = []
  var locations: [SourceLocation?] = []
  var constants: [UInt64] = []
  private var numbers: [UInt64: Int] = [:]
  private var statements = 0

  init(firstConstant: Int, change: (statement: Int, to: Instruction?)?) {
    self.firstConstant = firstConstant
    self.change = change
  }

  private mutating func add(_ operation: Program.Operation, _ location: SourceLocation?) {
    operations.append(operation)
    locations.append(location)
  }

  mutating func flatten(_ nodes: [Kernel.Node]) {
    for node in nodes {
      switch node {
      case .comment:
        break
      case .statement(let statement):
        defer { statements += 1 }
        let isChanged = change?.statement == statements
        guard let own = isChanged ? change?.to : statement.instruction else { continue }
        let instruction = own.mapOperands { constant($0) }
        add(.run(instruction, guardedBy: statement.guardedBy), statement.location)
      case .loop(let body, let predicate, let location):
        add(.loop, location)
        let start = operations.count
        flatten(body)
        add(.repeatWhile(predicate, start: start), location)
      case .branch(let condition, let then, let otherwise, let location):
        let branch = operations.count
        add(.join, location)  // replaced below
        flatten(then)
        let middle = operations.count
        add(.join, location)  // replaced below
        flatten(otherwise)
        operations[branch] = .branch(condition, otherwise: middle)
        operations[middle] = .otherwise(end: operations.count)
        add(.join, location)
      }
    }
  }

  private mutating func constant(_ operand: Operand) -> Operand {
    guard case .immediate(let bits) = operand else { return operand }
    let number = numbers[bits] ?? constants.count
    if number == constants.count {
      constants.append(bits)
      numbers[bits] = number
    }
    return .register(RegisterID(index: Int32(firstConstant + number), kind: .u64))
  }
}
