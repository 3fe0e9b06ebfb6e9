/// A kernel: what `Kernel.build` made of a Swift function. A value; its text is made when it is asked for.
public struct Kernel: Sendable {
  /// What the host passes.
  public struct Parameter: Hashable, Sendable {
    /// For people; in the text it is a comment.
    public let name: String
    /// u32, s32, u64 or f32.
    public let kind: RegisterKind
    /// What it is for.
    public let role: Role
    /// Whether it is the address of global memory.
    public var isPointer: Bool { role == .address }

    /// What a parameter is for.
    public enum Role: Hashable, Sendable {
      case number
      /// The address of global memory.
      case address
      /// 128 bytes that describe a tensor to the copy engine.
      case tensorMap
    }
  }

  /// What the host passes for a parameter.
  public enum Argument: Hashable, Sendable {
    case u32(UInt32)
    case s32(Int32)
    case u64(UInt64)
    case f32(Float)
    /// An address in global memory.
    case pointer(UInt64)
    /// What the copy engine must know of a tensor.
    case tensorMap(TensorMap)
  }

  /// A register and its name in the text.
  public struct Register: Hashable, Sendable {
    /// What it holds.
    public let kind: RegisterKind
    /// Without the percent sign.
    public let name: String
  }

  /// Shared memory of a size known when the kernel is built.
  public struct SharedBuffer: Hashable, Sendable {
    /// For people.
    public let name: String
    /// Its size.
    public let byteCount: Int
    /// A power of two.
    public let alignment: Int
  }

  /// An instruction in its place.
  public struct Statement: Hashable, Sendable {
    /// What is done.
    public let instruction: Instruction
    /// Done only by lanes where this holds.
    public let guardedBy: Guard?
    /// The Swift call that made it.
    public let location: SourceLocation
  }

  /// A condition on a statement.
  public struct Guard: Hashable, Sendable {
    /// The predicate.
    public let predicate: RegisterID
    /// Whether it must be false.
    public let isNegated: Bool
  }

  /// The body of a kernel: statements and structured control flow.
  public indirect enum Node: Hashable, Sendable {
    case statement(Statement)
    /// A line of text for readers.
    case comment(String)
    /// Runs the body, then again by those lanes whose predicate holds at its end.
    case loop(body: [Node], repeatsWhile: RegisterID, location: SourceLocation)
    case branch(Guard, then: [Node], otherwise: [Node], location: SourceLocation)
  }

  /// The entry point's name.
  public let name: String
  /// In the order of the host's arguments.
  public let parameters: [Parameter]
  /// By number.
  public let registers: [Register]
  /// The lists that instructions name, each different.
  public let registerLists: [[RegisterID]]
  /// Static shared memory.
  public let sharedBuffers: [SharedBuffer]
  /// The alignment of dynamic shared memory; nil where there is none.
  public let dynamicSharedAlignment: Int?
  /// Threads of a block at most, which bounds the registers of each.
  public let threadsPerBlock: Int
  /// Blocks that should fit a multiprocessor at once; nil leaves it to ptxas.
  public let blocksPerMultiprocessor: Int?
  /// Blocks of a cluster, which run at the same time and share barriers and copies; nil without clusters.
  public let clusterSize: Int?
  /// What it does.
  public let body: [Node]

  static func parameterName(_ index: Int) -> String { "parameter_\(index)" }
  static func sharedName(_ index: Int) -> String { index < 0 ? "shared_dynamic" : "shared_\(index)" }

  /// The registers of a list.
  public subscript(list: RegisterList) -> [RegisterID] { registerLists[Int(list.index)] }

  /// Registers that a thread has when the kernel begins, as `setmaxnreg` counts them: those of a multiprocessor, divided
  /// by the threads that it should hold.
  public var registersAtFirst: Int {
    Self.registersAtFirst(threadsPerBlock: threadsPerBlock, blocksPerMultiprocessor: blocksPerMultiprocessor)
  }

  package static func registersAtFirst(threadsPerBlock: Int, blocksPerMultiprocessor: Int?) -> Int {
    min(65536 / max(threadsPerBlock * (blocksPerMultiprocessor ?? 1), 1) / 8 * 8, 256)
  }

  /// All statements, in the order of the text.
  public var statements: [Statement] {
    func collect(_ nodes: [Node]) -> [Statement] {
      nodes.flatMap { node -> [Statement] in
        switch node {
        case .statement(let statement): [statement]
        case .comment: []
        case .loop(let body, _, _): collect(body)
        case .branch(_, let then, let otherwise, _): collect(then) + collect(otherwise)
        }
      }
    }
    return collect(body)
  }

  /// The lowest language version and GPU that the instructions need.
  public var requirement: Requirement {
    statements.reduce(
      clusterSize == nil ? .ampere : Requirement(version: PTXVersion(7, 8), target: .sm90)
    ) { $0.and($1.instruction.requirement) }
  }
}
