/// Products on the tensor cores by four warps together, which do not wait for them (section 9.7.15, wgmma).
///
/// Fragments, of thread t of the 128 with w = t / 32, g = t % 32 / 4 and c = t % 4. D has N / 2 registers of f32, two
/// neighbours of f16 in each of N / 4; A in registers has 4, of which each holds two neighbours of 16 bits, or four of 8:
///
///     D f32    register i: row 16 w + g + 8 (i / 2 % 2), column 8 (i / 4) + 2 c + i % 2
///     D f16    register i: row 16 w + g + 8 (i % 2), columns 8 (i / 2) + 2 c and the next
///     A        register i: row 16 w + g + 8 (i % 2), bytes 4 c and the next three of 16, the second 16 for i / 2 = 1
///
/// so that the sums of one product, converted in pairs, are A of the next. Accumulators, registers of A and operands in
/// shared memory belong to the hardware from the issue to the `wait` that covers it.
public enum WarpgroupMatrix: Hashable, Sendable {
  /// Orders accesses of registers before and after, for the products that follow.
  case fence
  /// `d = a b`, or `d = a b + d`, of 64 x N with k of 32 bytes.
  case multiplyAdd(Product)
  /// Makes a group of all products since the last.
  case commit
  /// Waits until at most `pending` of the newest groups are under way.
  case wait(pending: UInt8)

  /// The type of A and B.
  public enum Inputs: String, Hashable, Sendable, CaseIterable {
    case f16, bf16, e4m3

    /// Elements of k.
    public var depth: Int { self == .e4m3 ? 32 : 16 }
    /// Bytes of an element.
    public var byteCount: Int { self == .e4m3 ? 1 : 2 }
  }

  /// Where A comes from.
  public enum Left: Hashable, Sendable {
    /// Shared memory, by a descriptor; transposed where its rows are those of k (16 bits only).
    case shared(RegisterID, isTransposed: Bool)
    /// Four registers.
    case registers(RegisterGroup)
  }

  /// Whether D is added to.
  public enum Sum: Hashable, Sendable {
    case always, never
    /// Where the predicate holds, which is the same in all lanes.
    case when(RegisterID)
  }

  /// A product's shape and operands.
  public struct Product: Hashable, Sendable {
    /// The type of A and B.
    public let inputs: Inputs
    /// The type of D.
    public let accumulator: Matrix.Accumulator
    /// The sums.
    public let d: RegisterList
    /// 64 rows.
    public let a: Left
    /// N columns, by a descriptor.
    public let b: RegisterID
    /// Whether the rows of B in memory are those of k (16 bits only).
    public let isTransposedB: Bool
    /// What becomes of what D held.
    public let sum: Sum
    /// Whether A counts with the other sign (16 bits only).
    public let isNegatedA: Bool

    /// N: a multiple of 8, from 8 to 256.
    public var columns: Int { Int(d.count) * (accumulator == .f32 ? 2 : 4) }
    /// All of it.
    public init(
      _ inputs: Inputs, _ accumulator: Matrix.Accumulator, d: RegisterList, a: Left, b: RegisterID,
      isTransposedB: Bool, sum: Sum, isNegatedA: Bool = false
    ) {
      (self.inputs, self.accumulator, self.d, self.a, self.b) = (inputs, accumulator, d, a, b)
      (self.isTransposedB, self.sum, self.isNegatedA) = (isTransposedB, sum, isNegatedA)
    }
  }

  func text(_ name: TextNames) -> String {
    switch self {
    case .fence: return "wgmma.fence.sync.aligned"
    case .commit: return "wgmma.commit_group.sync.aligned"
    case .wait(let pending): return "wgmma.wait_group.sync.aligned \(pending)"
    case .multiplyAdd(let p):
      let (o, i) = (p.accumulator.rawValue, p.inputs.rawValue)
      let a: String
      // Bytes have no transposition, and registers none of A.
      var transposed = p.inputs.byteCount == 1 ? "" : ", \(p.isTransposedB ? 1 : 0)"
      switch p.a {
      case .registers(let group): a = name(group)
      case .shared(let descriptor, let isTransposed):
        a = name(descriptor)
        if p.inputs.byteCount == 2 { transposed = ", \(isTransposed ? 1 : 0)" + transposed }
      }
      let sum =
        switch p.sum {
        case .always: "1"
        case .never: "0"
        case .when(let predicate): name(predicate)
        }
      let shape = "m64n\(p.columns)k\(p.inputs.depth)"
      let signs = "\(p.isNegatedA ? -1 : 1), 1"
      return
        "wgmma.mma_async.sync.aligned.\(shape).\(o).\(i).\(i) \(name(p.d)), \(a), \(name(p.b)), \(sum), \(signs)\(transposed)"
    }
  }
}
