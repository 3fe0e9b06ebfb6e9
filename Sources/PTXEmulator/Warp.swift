internal import PTX

/// 32 threads in step: where they are, what they hold, and what they know of others.
final class Warp {
  enum State: Equatable {
    case ready
    case waiting(barrier: Int)
    /// For a phase of the transaction barrier at an address.
    case waitingForPhase(Int)
    /// For registers that others give back, and for the other blocks of the cluster.
    case waitingForRegisters, waitingForCluster
    case done
  }

  /// Lanes that are set aside by a branch or a loop.
  struct Frame {
    /// The lanes that go on behind it.
    let saved: UInt32
    /// The lanes of the second part of a branch.
    var otherwise: UInt32 = 0
  }

  /// An asynchronous copy of one lane.
  struct Copy {
    let lane: UInt8
    let group: Int32
    let destination: Int
    let byteCount: Int
    let sourceAddress: UInt64
    let sourceBytes: Int
    let operation: Int32
    /// The source as it was at the issue.
    let issued: (UInt64, UInt64)
  }

  let index: Int
  let registers: Registers
  var next = 0
  var mask: UInt32 = .max
  var exited: UInt32 = 0
  var frames: [Frame] = []
  var state = State.ready

  var clock: UInt32 = 1
  var syncedClock: UInt32 = 0
  /// For each warp of the block, the clock up to which barriers have ordered it before this one.
  let view: UnsafeMutablePointer<UInt32>
  private let viewCount: Int
  /// What all lanes know by fences and atomics.
  var knowledge = Knowledge()
  /// What single lanes know more; all learn it at the next synchronization of the warp.
  var laneKnowledge: [Int: Knowledge] = [:]
  /// What lanes knew at their last fence of each scope: the atomics that follow publish it.
  var fencedForBlock: [Int: Knowledge] = [:]
  var fencedForDevice: [Int: Knowledge] = [:]
  /// What lanes saw by relaxed atomics, from threads of their block and from any: the fence that follows teaches it.
  var pendingFromBlock: [Int: Knowledge] = [:]
  var pendingFromDevice: [Int: Knowledge] = [:]

  /// Whether the launch before this one has ended for it.
  var hasPrerequisites = false

  var copies: [Copy] = []
  /// Groups that each lane has committed.
  var groups = [Int32](repeating: 0, count: 32)

  /// What it does in the asynchronous proxy; nil where the kernel has none.
  let asynchronous: AsynchronousState?

  init(index: Int, program: Program) {
    self.index = index
    viewCount = program.viewCount
    registers = Registers(program)
    asynchronous = program.usesAsynchronousProxy ? AsynchronousState(program) : nil
    view = .allocate(capacity: viewCount)
    view.initialize(repeating: 0, count: viewCount)
  }

  deinit { view.deallocate() }

  func epoch(_ lane: Int, block: Int) -> Epoch {
    Epoch(block: Int32(block), warp: UInt8(index), lane: UInt8(lane), clock: clock)
  }

  func knows(_ epoch: Epoch, lane: Int) -> Bool {
    knowledge.covers(epoch) || laneKnowledge[lane].map { $0.covers(epoch) } ?? false
  }

  /// All lanes meet: what each did lies before what any does next.
  func synchronizeLanes() {
    syncedClock = clock
    clock += 1
    for known in laneKnowledge.values { knowledge.learn(known) }
    laneKnowledge = [:]
  }

  /// What a lane can vouch for when it publishes now.
  func publishable(_ lane: Int, block: Int) -> Knowledge {
    var result = knowledge
    if let own = laneKnowledge[lane] { result.learn(own) }
    for warp in 0..<viewCount {
      let clock = warp == index ? syncedClock : view[warp]
      if clock > 0 { result.learn(block: Int32(block), warp: UInt8(warp), clock: clock) }
    }
    result.learn(epoch(lane, block: block))
    return result
  }
}

/// The registers of a warp: 32 lanes of 64 bits each; narrower registers use the first 128 bytes, predicates one word.
final class Registers {
  private let base: UnsafeMutableRawPointer

  init(_ program: Program) {
    let count = program.registerCount
    base = .allocate(byteCount: max(count, 1) * 256, alignment: 64)
    // Nothing is promised of a register that nobody wrote.
    base.initializeMemory(as: UInt32.self, repeating: 0xdead_beef, count: count * 64)
    // A constant serves as 32 bits and as 64 bits, so it has a plane for each.
    constants = program.constants.map(ConstantPlanes.init)
    kernelRegisters = program.kernel.registers.count
  }

  deinit { base.deallocate() }

  private let constants: [ConstantPlanes]
  private let kernelRegisters: Int

  /// A constant in all lanes.
  final class ConstantPlanes {
    let words: UnsafeMutablePointer<UInt32>
    let longs: UnsafeMutablePointer<UInt64>
    init(_ bits: UInt64) {
      words = .allocate(capacity: 32)
      words.initialize(repeating: UInt32(truncatingIfNeeded: bits), count: 32)
      longs = .allocate(capacity: 32)
      longs.initialize(repeating: bits, count: 32)
    }
    deinit {
      words.deallocate()
      longs.deallocate()
    }
  }

  @inline(__always)
  func words(_ register: RegisterID) -> UnsafeMutablePointer<UInt32> {
    let index = Int(register.index)
    if index >= kernelRegisters { return constants[index - kernelRegisters].words }
    return (base + index * 256).assumingMemoryBound(to: UInt32.self)
  }

  @inline(__always)
  func longs(_ register: RegisterID) -> UnsafeMutablePointer<UInt64> {
    let index = Int(register.index)
    if index >= kernelRegisters { return constants[index - kernelRegisters].longs }
    return (base + index * 256).assumingMemoryBound(to: UInt64.self)
  }

  @inline(__always)
  func floats(_ register: RegisterID) -> UnsafeMutablePointer<Float> {
    UnsafeMutableRawPointer(words(register)).assumingMemoryBound(to: Float.self)
  }

  @inline(__always)
  func words(_ operand: Operand) -> UnsafeMutablePointer<UInt32> {
    guard case .register(let register) = operand else { preconditionFailure("Constants were moved to registers.") }
    return words(register)
  }

  @inline(__always)
  func longs(_ operand: Operand) -> UnsafeMutablePointer<UInt64> {
    guard case .register(let register) = operand else { preconditionFailure("Constants were moved to registers.") }
    return longs(register)
  }

  @inline(__always)
  func floats(_ operand: Operand) -> UnsafeMutablePointer<Float> {
    UnsafeMutableRawPointer(words(operand)).assumingMemoryBound(to: Float.self)
  }

  /// The lanes where a predicate holds.
  @inline(__always)
  func predicate(_ register: RegisterID) -> UInt32 { words(register)[0] }

  @inline(__always)
  func setPredicate(_ register: RegisterID, _ value: UInt32, mask: UInt32) {
    let word = words(register)
    word[0] = word[0] & ~mask | value & mask
  }
}
