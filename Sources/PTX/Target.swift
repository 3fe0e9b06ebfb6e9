/// A GPU architecture that PTX is written for. Numbers newer than this code are as good as any: PTX for an older target
/// runs on every newer GPU.
public struct Target: Hashable, Sendable, Comparable, CustomStringConvertible {
  /// Compute capability, major * 10 + minor.
  public let number: Int
  /// Whether instructions of this architecture alone are allowed (`sm_90a`); such PTX runs on no other.
  public let isSpecific: Bool

  /// `sm_<number>`, with `a` where specific.
  public init(_ number: Int, isSpecific: Bool = false) {
    self.number = number
    self.isSpecific = isSpecific
  }

  /// Reads "sm_80" or "sm_90a"; nil for anything else.
  public init?(_ text: String) {
    guard text.hasPrefix("sm_") else { return nil }
    let digits = text.dropFirst(3)
    let isSpecific = digits.hasSuffix("a")
    guard let number = Int(isSpecific ? digits.dropLast() : digits), number > 0 else { return nil }
    self.init(number, isSpecific: isSpecific)
  }

  /// Ampere, A100.
  public static let sm80 = Target(80)
  /// Ada.
  public static let sm89 = Target(89)
  /// Hopper.
  public static let sm90 = Target(90)
  /// Hopper with the instructions that only it has.
  public static let sm90a = Target(90, isSpecific: true)

  /// `sm_90a`.
  public var description: String { "sm_\(number)\(isSpecific ? "a" : "")" }

  /// By number; the specific one after the plain one.
  public static func < (a: Target, b: Target) -> Bool {
    a.number != b.number ? a.number < b.number : !a.isSpecific && b.isSpecific
  }

  /// Whether PTX that needs another target may be written for this one: a specific one by itself alone, the others by
  /// all that are not older.
  public func has(_ other: Target) -> Bool { other.isSpecific ? self == other : self >= other }

  /// Whether PTX for this target runs on a GPU of a compute capability (major * 10 + minor).
  public func runs(onCapability capability: Int) -> Bool {
    isSpecific ? capability == number : capability >= number
  }

  /// The first PTX version that knows this target. Source: PTX ISA, section 11.1.2, table of targets.
  public var version: PTXVersion {
    switch number {
    case ...80: PTXVersion(7, 0)
    case ...86: PTXVersion(7, 1)
    case ...87: PTXVersion(7, 4)
    case ...89: PTXVersion(7, 8)
    case ...90: isSpecific ? PTXVersion(8, 0) : PTXVersion(7, 8)
    case ...100: PTXVersion(8, 6)
    default: PTXVersion(8, 7)
    }
  }
}

/// A version of the PTX language.
public struct PTXVersion: Hashable, Sendable, Comparable, CustomStringConvertible {
  /// The number before the point.
  public let major: Int
  /// The number after it.
  public let minor: Int

  /// major.minor.
  public init(_ major: Int, _ minor: Int) {
    self.major = major
    self.minor = minor
  }

  /// "7.0".
  public var description: String { "\(major).\(minor)" }

  /// Older before newer.
  public static func < (a: PTXVersion, b: PTXVersion) -> Bool { (a.major, a.minor) < (b.major, b.minor) }
}

/// What an instruction needs of the language and of the GPU.
public struct Requirement: Hashable, Sendable {
  /// The oldest version that has it.
  public var version: PTXVersion
  /// The oldest GPU that has it.
  public var target: Target

  /// The floor of this library: Ampere.
  public static let ampere = Requirement(version: PTXVersion(7, 0), target: .sm80)

  /// What both need.
  public func and(_ other: Requirement) -> Requirement {
    Requirement(version: max(version, other.version), target: max(target, other.target))
  }
}

extension Instruction {
  /// The one table of what needs more than sm_80 with PTX 7.0. Source: the "PTX ISA Notes" and "Target ISA Notes" of
  /// each instruction, checked with ptxas 13.0.
  public var requirement: Requirement {
    switch self {
    case .arithmetic(.binary(.add, .bf16x2, _, _, _)), .arithmetic(.binary(.sub, .bf16x2, _, _, _)),
      .arithmetic(.binary(.mul, .bf16x2, _, _, _)):
      Requirement(version: PTXVersion(7, 8), target: .sm90)
    case .arithmetic(.unary(.exp2, .bf16x2, _, _)):
      Requirement(version: PTXVersion(7, 8), target: .sm90)
    case .synchronization(.launchDependents), .synchronization(.waitForPrerequisites), .matrix(.store),
      .arithmetic(.readSpecial(.clusterRank, _)):
      Requirement(version: PTXVersion(7, 8), target: .sm90)
    case .transactionBarrier, .bulkCopy, .synchronization(.proxyFence), .warp(.elect),
      .synchronization(.barrierInitializationFence), .synchronization(.clusterArrive), .synchronization(.clusterWait):
      Requirement(version: PTXVersion(8, 0), target: .sm90)
    case .warpgroup, .control(.setRegisterCount):
      Requirement(version: PTXVersion(8, 0), target: .sm90a)
    case .memory(.tensorMapAddress): Requirement(version: PTXVersion(7, 7), target: .sm80)
    case .conversion(.packE4M3), .conversion(.f16x2FromE4M3x2):
      // 7.8 has them for sm_90; sm_89 came with 8.1.
      Requirement(version: PTXVersion(8, 1), target: .sm89)
    case .memory(.add(let values, _, _)) where values.count > 1: Requirement(version: PTXVersion(8, 1), target: .sm90)
    case .memory(.load(_, _, .noL1, _, _, _, _)), .memory(.load(_, _, .evictFirst, _, _, _, _)),
      .memory(.load(_, _, .evictLast, _, _, _, _)):
      Requirement(version: PTXVersion(7, 4), target: .sm80)
    default: .ampere
    }
  }
}
