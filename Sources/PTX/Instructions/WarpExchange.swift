/// Exchanges between the lanes of a warp (sections 9.7.9.6, shfl, and 9.7.13.7, vote).
public enum WarpExchange: Hashable, Sendable {
  /// Each lane receives `a` of another lane within segments of `width` lanes; its own where that is outside.
  case shuffle(ShuffleMode, d: RegisterID, a: RegisterID, lane: Operand, width: UInt8)
  /// Whether the predicate holds in all lanes, or in any.
  case vote(VoteMode, d: RegisterID, p: RegisterID)
  /// One bit a lane.
  case ballot(d: RegisterID, p: RegisterID)
  /// True in one lane, whichever the hardware picks (section 9.7.13.15, elect).
  case elect(d: RegisterID)

  /// How the other lane is found.
  public enum ShuffleMode: String, Hashable, Sendable, CaseIterable {
    case up, down
    case butterfly = "bfly"
    case index = "idx"
  }

  /// What is asked of the lanes.
  public enum VoteMode: String, Hashable, Sendable, CaseIterable {
    case all, any
  }

  /// All lanes take part in every exchange.
  static let members = "0xffffffff"

  func text(_ name: TextNames) -> String {
    switch self {
    case .shuffle(let mode, let d, let a, let lane, let width):
      // The clamp in the low 5 bits, the segment mask above; up counts from the other end.
      let clamp = UInt32(32 - Int(width)) << 8 | (mode == .up ? 0 : 31)
      return "shfl.sync.\(mode.rawValue).b32 \(name(d)), \(name(a)), \(name(lane, .u32)), \(clamp), \(Self.members)"
    case .vote(let mode, let d, let p):
      return "vote.sync.\(mode.rawValue).pred \(name(d)), \(name(p)), \(Self.members)"
    case .ballot(let d, let p):
      return "vote.sync.ballot.b32 \(name(d)), \(name(p)), \(Self.members)"
    case .elect(let d):
      return "elect.sync _|\(name(d)), \(Self.members)"
    }
  }
}
