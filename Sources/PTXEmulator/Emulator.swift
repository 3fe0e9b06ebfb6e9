public import PTX

/// How a kernel is started.
public struct Launch: Sendable {
  /// What the host passes for a parameter; pointers are addresses in `GlobalMemory`.
  public typealias Argument = Kernel.Argument

  /// Blocks along x, y and z.
  public var blocks: (x: Int, y: Int, z: Int)
  /// Shared memory beyond the kernel's own buffers.
  public var dynamicSharedByteCount: Int
  /// One for each parameter, in order.
  public var arguments: [Argument]
  /// Whether it may begin before the launch in front of it has ended: memory that kernels write is then nobody's until
  /// the warp has waited for that.
  public var isDependent: Bool

  /// Everything but the kernel.
  public init(
    blocks: (x: Int, y: Int, z: Int), dynamicSharedByteCount: Int = 0, arguments: [Argument], isDependent: Bool = false
  ) {
    self.blocks = blocks
    self.dynamicSharedByteCount = dynamicSharedByteCount
    self.arguments = arguments
    self.isDependent = isDependent
  }
}

/// In which order warps run. The checks do not depend on luck, but what a kernel computes from the order may.
public enum Schedule: Hashable, Sendable {
  /// Warp after warp, each until it must wait.
  case roundRobin
  /// Any warp that can run, for a random number of instructions; the same seed gives the same order.
  case random(seed: UInt64)
}

/// Runs PTX kernels on the CPU and finds what the hardware hides.
///
/// It executes a grid as PTX defines it, and is unkind where PTX allows it: memory that nobody wrote may not be read;
/// an asynchronous copy's destination belongs to nobody until it is waited for; two accesses of which one writes must
/// be ordered by a barrier or by fences and atomics, whatever order they happen to run in.
public enum Emulator {
  /// Runs a grid to its end.
  ///
  /// - Parameters:
  ///   - residentBlocks: blocks that run at the same time, as on the multiprocessors of a GPU.
  ///   - stepLimit: steps of all warps together, after which the kernel counts as hung.
  /// - Returns: what was counted.
  /// - Throws: `Hazard`, the first mistake of the kernel.
  public static func run(
    _ program: Program, _ launch: Launch, memory: GlobalMemory, schedule: Schedule = .roundRobin,
    residentBlocks: Int = 2, stepLimit: Int = 500_000_000
  ) throws(Hazard) -> Counters {
    let machine = Machine(program, launch, memory)
    try machine.checkLaunch()
    defer {
      for allocation in memory.allocations {
        allocation.traffic = Counters.Traffic()
        allocation.settle()
      }
    }
    try machine.runGrid(schedule, residentBlocks: max(1, residentBlocks), stepLimit: stepLimit)
    for allocation in memory.allocations { machine.counters.traffic[allocation.name] = allocation.traffic }
    return machine.counters
  }
}

/// One run of a grid.
final class Machine {
  let program: Program
  let launch: Launch
  let memory: GlobalMemory
  var counters = Counters()
  /// The operation at work, for messages.
  var current = 0
  /// Steps of all warps, those without a running lane included.
  private var steps = 0

  init(_ program: Program, _ launch: Launch, _ memory: GlobalMemory) {
    self.program = program
    self.launch = launch
    self.memory = memory
  }

  func checkLaunch() throws(Hazard) {
    let parameters = program.kernel.parameters
    func fail(_ message: String) -> Hazard {
      Hazard(
        kind: .launch, message: message, instruction: "", location: nil, block: 0, warp: 0, lane: 0)
    }
    guard launch.arguments.count == parameters.count else {
      throw fail("\(program.kernel.name) takes \(parameters.count) arguments; \(launch.arguments.count) were given")
    }
    for (parameter, argument) in zip(parameters, launch.arguments) {
      let fits =
        switch argument {
        case .u32: parameter.kind == .u32
        case .s32: parameter.kind == .s32
        case .u64: parameter.kind == .u64 && !parameter.isPointer
        case .f32: parameter.kind == .f32
        case .pointer: parameter.isPointer
        }
      guard fits else { throw fail("argument '\(parameter.name)' is \(argument), which the kernel does not expect") }
    }
    let (x, y, z) = launch.blocks
    guard x >= 1, y >= 1, z >= 1, y <= 65535, z <= 65535 else {
      throw fail("a grid of \(x) x \(y) x \(z) blocks is impossible; y and z have 1 to 65535, x at least 1")
    }
    let sharedByteCount = program.staticSharedByteCount + launch.dynamicSharedByteCount
    guard launch.dynamicSharedByteCount >= 0, sharedByteCount <= 227 * 1024 else {
      throw fail("a block is given \(sharedByteCount) bytes of shared memory; no GPU has more than 232448")
    }
    if launch.dynamicSharedByteCount > 0 && program.kernel.dynamicSharedAlignment == nil {
      throw fail("the kernel uses no dynamic shared memory, but is given \(launch.dynamicSharedByteCount) bytes")
    }
  }

  // MARK: - Schedule

  func runGrid(_ schedule: Schedule, residentBlocks: Int, stepLimit: Int) throws(Hazard) {
    let count = launch.blocks.x * launch.blocks.y * launch.blocks.z
    var waiting = 0
    var resident: [Block] = []
    var random: UInt64? = nil
    if case .random(let seed) = schedule { random = seed &* 0x9e37_79b9_7f4a_7c15 | 1 }
    func draw(_ limit: Int) -> Int {
      random! ^= random! << 13
      random! ^= random! >> 7
      random! ^= random! << 17
      return Int(random! >> 33) % limit
    }
    while true {
      while resident.count < residentBlocks && waiting < count {
        resident.append(Block(index: waiting, launch: launch, program: program))
        waiting += 1
      }
      if resident.isEmpty { return }
      let ready = resident.flatMap { block in block.warps.filter { $0.state == .ready }.map { (block, $0) } }
      guard !ready.isEmpty else { throw deadlock(resident) }
      if random == nil {
        for (block, warp) in ready { try run(warp, of: block, atMost: 100_000) }
      } else {
        let (block, warp) = ready[draw(ready.count)]
        try run(warp, of: block, atMost: 1 + draw(60))
      }
      resident.removeAll { block in
        if block.isDone { counters.splitWords += block.shadow.splitCount }
        return block.isDone
      }
      if steps > stepLimit {
        throw hazard(
          .deadlock, "the kernel did not end within \(stepLimit) steps", resident.first?.warps.first,
          resident.first)
      }
    }
  }

  private func deadlock(_ blocks: [Block]) -> Hazard {
    let stuck = blocks.flatMap { block in
      block.warps.compactMap { warp -> (Block, Warp, Int)? in
        if case .waiting(let barrier) = warp.state { (block, warp, barrier) } else { nil }
      }
    }
    let (block, warp, barrier) = stuck[0]
    current = warp.next - 1
    let state = block.barriers[barrier]
    return hazard(
      .deadlock,
      "nobody can go on: barrier \(barrier) has \(state.arrived) of \(state.needed) threads, and "
        + "\(stuck.count) warps wait", warp, block)
  }

  // MARK: - A warp

  func run(_ warp: Warp, of block: Block, atMost limit: Int) throws(Hazard) {
    let operations = program.operations
    let end = steps + limit
    while warp.state == .ready && steps < end {
      guard warp.next < operations.count else {
        try finish(warp, block)
        return
      }
      current = warp.next
      warp.next += 1
      steps += 1
      switch operations[current] {
      case .run(let instruction, let condition):
        var mask = warp.mask
        if let condition {
          let holds = warp.registers.predicate(condition.predicate)
          mask &= condition.isNegated ? ~holds : holds
        }
        if mask == 0 { continue }
        counters.instructions += 1
        try execute(instruction, warp, block, mask)
        if warp.exited == .max { try finish(warp, block) }
      case .branch(let condition, let otherwise):
        let holds = warp.registers.predicate(condition.predicate) ^ (condition.isNegated ? .max : 0)
        let taken = warp.mask & holds
        warp.frames.append(Warp.Frame(saved: warp.mask, otherwise: warp.mask & ~holds))
        warp.mask = taken
        if taken == 0 { warp.next = otherwise }
      case .otherwise(let end):
        warp.mask = warp.frames[warp.frames.count - 1].otherwise & ~warp.exited
        if warp.mask == 0 { warp.next = end }
      case .join:
        warp.mask = warp.frames.removeLast().saved & ~warp.exited
      case .loop:
        warp.frames.append(Warp.Frame(saved: warp.mask))
      case .repeatWhile(let predicate, let start):
        warp.mask &= warp.registers.predicate(predicate)
        if warp.mask != 0 {
          warp.next = start
        } else {
          warp.mask = warp.frames.removeLast().saved & ~warp.exited
        }
      }
    }
  }

  private func finish(_ warp: Warp, _ block: Block) throws(Hazard) {
    warp.state = .done
    if let copy = warp.copies.first {
      current = Int(copy.operation)
      throw hazard(
        .unfinishedCopy, "\(warp.copies.count) copies were never waited for", warp, block, lane: Int(copy.lane))
    }
    if launch.isDependent && !warp.hasPrerequisites {
      throw hazard(
        .race,
        "the warp ended without having waited for the launch before, which may then still write while what follows begins",
        warp, block)
    }
  }

  private func execute(_ instruction: Instruction, _ warp: Warp, _ block: Block, _ mask: UInt32) throws(Hazard) {
    switch instruction {
    case .arithmetic(let instruction): execute(instruction, warp, block, mask)
    case .conversion(let instruction): execute(instruction, warp.registers, mask)
    case .memory(let instruction): try execute(instruction, warp, block, mask)
    case .atomic(let instruction): try execute(instruction, warp, block, mask)
    case .asynchronousCopy(let instruction): try execute(instruction, warp, block, mask)
    case .matrix(let instruction): try execute(instruction, warp, block, mask)
    case .warp(let instruction): try execute(instruction, warp, block, mask)
    case .synchronization(let instruction): try execute(instruction, warp, block, mask)
    case .control(.exit):
      warp.exited |= mask
      warp.mask &= ~mask
    case .control(.trap):
      throw hazard(.trap, "the kernel found something impossible", warp, block, lane: mask.trailingZeroBitCount)
    }
  }

  // MARK: - Messages

  func hazard(
    _ kind: Hazard.Kind, _ message: String, _ warp: Warp?, _ block: Block?, lane: Int = 0
  ) -> Hazard {
    Hazard(
      kind: kind, message: message, instruction: program.text(current), location: program.locations[current],
      block: block?.index ?? 0, warp: warp?.index ?? 0, lane: lane)
  }

  /// A conflict in the words of a hazard.
  func hazard(
    _ conflict: Conflict, _ what: String, _ warp: Warp, _ block: Block, lane: Int
  ) -> Hazard {
    var message = what
    if conflict.kind == .race || conflict.kind == .copyUnderWay {
      let who = "block \(conflict.other.block), warp \(conflict.other.warp)"
      let lane = ", lane \(conflict.other.lane)"
      let place =
        conflict.otherOperation >= 0 ? program.locations[Int(conflict.otherOperation)].map { " at \($0)" } ?? "" : ""
      let verb =
        conflict.kind == .copyUnderWay ? "is being copied to" : conflict.otherIsWrite ? "was written" : "was read"
      message += " \(verb) by \(who)\(lane)\(place)"
      if conflict.kind == .race { message += ", and nothing orders the two" }
    }
    return hazard(conflict.kind, message, warp, block, lane: lane)
  }

  /// An instruction of a whole warp needs all its lanes.
  func requireWholeWarp(_ mask: UInt32, _ warp: Warp, _ block: Block) throws(Hazard) {
    if mask != .max {
      throw hazard(
        .divergence, "only \(mask.nonzeroBitCount) of 32 lanes run it", warp, block, lane: (~mask).trailingZeroBitCount)
    }
  }

  func observer(_ warp: Warp, _ block: Block, _ lane: Int, isStrong: Bool = false) -> Observer {
    Observer(
      epoch: warp.epoch(lane, block: block.index), syncedClock: warp.syncedClock, view: UnsafePointer(warp.view),
      warp: Unmanaged.passUnretained(warp), operation: Int32(current), isStrong: isStrong)
  }
}

/// Calls `body` for each lane of a mask.
@inline(__always)
func forEachLane(_ mask: UInt32, _ body: (Int) -> Void) {
  if mask == .max {
    for lane in 0..<32 { body(lane) }
  } else {
    var rest = mask
    while rest != 0 {
      body(rest.trailingZeroBitCount)
      rest &= rest - 1
    }
  }
}
