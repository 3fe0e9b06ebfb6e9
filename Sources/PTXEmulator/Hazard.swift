public import PTX

/// What a kernel did wrong, and where: the instruction, who ran it, and the Swift line that made it.
public struct Hazard: Error, Hashable, Sendable {
  /// Kinds of mistakes. The hardware hides most of them, most of the time.
  public enum Kind: String, Hashable, Sendable, CaseIterable {
    case race = "race"
    case uninitialized = "read of memory that nothing wrote"
    case copyUnderWay = "access to memory that an asynchronous copy is writing"
    case sourceChanged = "source of an asynchronous copy changed under way"
    case outOfBounds = "access out of bounds"
    case misaligned = "misaligned access"
    case readOnly = "write to memory that is read-only"
    case divergence = "instruction of a whole warp run by a part of it"
    case deadlock = "deadlock"
    case barrier = "barrier used with different counts"
    case unfinishedCopy = "kernel ended with asynchronous copies under way"
    case undefined = "use that PTX leaves undefined"
    case registersUnderWay = "access to registers that wgmma is working on"
    case missingFence = "access without the fence that PTX asks for"
    case transactionBarrier = "misuse of a transaction barrier"
    case registerCount = "register counts that do not add up"
    case trap = "trap"
    case launch = "launch does not fit the kernel"
  }

  /// What kind of mistake.
  public let kind: Kind
  /// What happened, as a sentence.
  public let message: String
  /// The instruction's text; empty where none is to blame.
  public let instruction: String
  /// The Swift line; nil where none is to blame.
  public let location: SourceLocation?
  /// Number of the block in the grid.
  public let block: Int
  /// The warp in the block, and the lane in the warp.
  public let warp: Int
  /// The lane in the warp.
  public let lane: Int
}

extension Hazard: CustomStringConvertible {
  /// Everything, in one line.
  public var description: String {
    let place = location.map { "\($0): " } ?? ""
    let text = instruction.isEmpty ? "" : " `\(instruction)`"
    return "\(place)\(kind.rawValue): \(message) [block \(block), warp \(warp), lane \(lane)\(text)]"
  }
}
