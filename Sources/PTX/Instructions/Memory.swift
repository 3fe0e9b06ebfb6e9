/// Loads and stores (sections 9.7.9.8 and 9.7.9.11, ld and st), and sums in memory (9.7.13.6, red).
public enum Memory: Hashable, Sendable {
  case load(Space, Ordering, CacheHint, Width, d: RegisterGroup, address: RegisterID, offset: Int32)
  case store(Space, Ordering, Width, values: RegisterGroup, address: RegisterID, offset: Int32)
  /// Adds f32 to those of global memory, each in one step, for all of the GPU; 2 and 4 neighbours at once need sm_90.
  case add(values: RegisterGroup, address: RegisterID, offset: Int32)
  /// A kernel parameter, by its place in the list.
  case loadParameter(Int32, d: RegisterID)
  /// The address of a shared buffer, by its place in the kernel's list; -1 is the dynamic one.
  case sharedAddress(Int32, d: RegisterID)
  /// The address of a tensor map among the parameters, by its place in the list.
  case tensorMapAddress(Int32, d: RegisterID)

  /// Which memory.
  public enum Space: String, Hashable, Sendable, CaseIterable {
    case global, shared
  }

  /// What the access orders (section 8.8, memory consistency).
  public enum Ordering: String, Hashable, Sendable, CaseIterable {
    /// Nothing; the ordinary access.
    case weak
    /// Nothing, but races with other relaxed accesses are defined; at GPU scope.
    case relaxed
    /// A load: what the matching release published is seen afterwards.
    case acquire
    /// A store: publishes what came before.
    case release
    /// Nothing; but the assembler neither moves nor removes it, nor what its value needs.
    case volatile
  }

  /// What the caches should do.
  public enum CacheHint: String, Hashable, Sendable, CaseIterable {
    case none = ""
    /// Data that no one writes while the kernel runs.
    case readOnly = ".nc"
    /// Not in L1; read once.
    case noL1 = ".L1::no_allocate"
    /// The first to leave L1: read once, but soon again by neighbours.
    case evictFirst = ".L1::evict_first"
    /// The last to leave L1: read again and again.
    case evictLast = ".L1::evict_last"
  }

  /// Bytes of each element of the access.
  public enum Width: Int, Hashable, Sendable, CaseIterable {
    case b8 = 1, b16 = 2, b32 = 4, b64 = 8

    var suffix: String {
      switch self {
      case .b8: ".u8"
      case .b16: ".b16"
      case .b32: ".b32"
      case .b64: ".b64"
      }
    }
  }

  func text(_ name: TextNames) -> String {
    func vector(_ group: RegisterGroup) -> String { group.count == 1 ? "" : ".v\(group.count)" }
    func order(_ ordering: Ordering) -> String {
      switch ordering {
      case .weak: ""
      case .volatile: ".volatile"
      case .relaxed, .acquire, .release: ".\(ordering.rawValue).gpu"
      }
    }
    switch self {
    case .load(let space, let ordering, let hint, let width, let d, let address, let offset):
      return "ld\(order(ordering)).\(space.rawValue)\(hint.rawValue)\(vector(d))\(width.suffix) \(name(d)), "
        + name.place(address, offset)
    case .store(let space, let ordering, let width, let values, let address, let offset):
      return "st\(order(ordering)).\(space.rawValue)\(vector(values))\(width.suffix) \(name.place(address, offset)), "
        + name(values)
    case .add(let values, let address, let offset):
      return "red.relaxed.gpu.global.add\(vector(values)).f32 \(name.place(address, offset)), \(name(values))"
    case .loadParameter(let index, let d):
      return "ld.param\(d.kind.suffix) \(name(d)), [\(Kernel.parameterName(Int(index)))]"
    case .sharedAddress(let index, let d):
      return "mov.u32 \(name(d)), \(Kernel.sharedName(Int(index)))"
    case .tensorMapAddress(let index, let d):
      // A mov of the name assembles too, and is no address.
      return "cvta.param.u64 \(name(d)), \(Kernel.parameterName(Int(index)))"
    }
  }
}

/// Atomic read-modify-write (section 9.7.13.5, atom), at GPU scope for global memory and block scope for shared.
public struct AtomicOperation: Hashable, Sendable {
  /// What becomes of the value.
  public enum Operation: String, Hashable, Sendable, CaseIterable {
    case add, min, max, and, or, xor
    case exchange = "exch"
    case compareAndSwap = "cas"
  }

  /// What the operation orders, as for loads and stores.
  public enum Ordering: String, Hashable, Sendable, CaseIterable {
    case relaxed, acquire, release
    case acquireRelease = "acq_rel"
  }

  /// What is done.
  public let operation: Operation
  /// What is ordered.
  public let ordering: Ordering
  /// Which memory.
  public let space: Memory.Space
  /// u32, s32, u64 or f32 (add only).
  public let kind: RegisterKind
  /// Receives the old value.
  public let d: RegisterID
  /// Where.
  public let address: RegisterID
  /// Bytes beyond the address.
  public let offset: Int32
  /// The second operand.
  public let value: Operand
  /// For `compareAndSwap`, what the old value must be.
  public let expected: Operand?

  func text(_ name: TextNames) -> String {
    let scope = space == .global ? "gpu" : "cta"
    // Exchanges work on bits, sums and comparisons on numbers.
    let isBits = [.exchange, .compareAndSwap, .and, .or, .xor].contains(operation)
    let suffix = isBits ? (kind.byteCount == 8 ? ".b64" : ".b32") : kind.suffix
    let operands = [expected, value].compactMap { $0 }.map { name($0, kind) }.joined(separator: ", ")
    return
      "atom.\(ordering.rawValue).\(scope).\(space.rawValue).\(operation.rawValue)\(suffix) \(name(d)), \(name.place(address, offset)), "
      + operands
  }
}

extension AtomicOperation {
  func mapOperands(_ change: (Operand) -> Operand) -> AtomicOperation {
    AtomicOperation(
      operation: operation, ordering: ordering, space: space, kind: kind, d: d, address: address, offset: offset,
      value: change(value), expected: expected.map(change))
  }

  /// The same with a part of its ordering less.
  var weakened: [AtomicOperation] {
    let orderings: [Ordering] =
      switch ordering {
      case .acquireRelease: [.acquire, .release]
      case .acquire, .release: [.relaxed]
      case .relaxed: []
      }
    return orderings.map {
      AtomicOperation(
        operation: operation, ordering: $0, space: space, kind: kind, d: d, address: address, offset: offset,
        value: value,
        expected: expected)
    }
  }
}
