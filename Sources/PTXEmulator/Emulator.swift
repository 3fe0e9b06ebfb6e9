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
  /// Any warp that can run, for a random number of instructions, and copies at any time; the same seed gives the same
  /// order.
  case random(seed: UInt64)
  /// As `roundRobin`; copies to shared memory are there as soon as they are issued.
  case copiesAtOnce
  /// Copies are as late as may be: one lands only when every warp waits.
  case copiesLate
  /// The same, and the first warp that can run does, as far as it can: those in front are as far ahead as the barriers
  /// let them be, the producer if it is one of them.
  case firstAhead
  /// The same with the last warp.
  case lastAhead
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
  ///   - program: a kernel, made ready.
  ///   - launch: the grid, its shared memory and the kernel's arguments.
  ///   - memory: what the kernel reads and writes.
  ///   - schedule: which warp goes next.
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

/// Numbers that decide an order; the same seed gives the same.
private struct RandomOrder {
  private var state: UInt64
  let isRandom: Bool

  /// - Parameter seed: nil where nothing is drawn.
  init(seed: UInt64?) {
    isRandom = seed != nil
    state = (seed ?? 0) &* 0x9e37_79b9_7f4a_7c15 | 1
  }

  mutating func draw(_ limit: Int) -> Int {
    state ^= state << 13
    state ^= state >> 7
    state ^= state << 17
    return Int(state >> 33) % limit
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
  /// What has not landed yet in shared memory, in the order of its issue.
  var landings: [Landing] = []
  /// Whether it lands when it is issued.
  var landsAtOnce = false
  /// What tensor cores add.
  let sums = TensorCoreSums()
  /// Where operands of products lie, of all descriptors so far.
  var operandPieces: [OperandPlace: [Int]] = [:]
  /// The lane that `elect.sync` picks in this run.
  var electedLane = 0
  private var random = RandomOrder(seed: nil)
  /// Whether a wait is over before its time, as PTX allows: mostly, where the order is random.
  func drawsNo() -> Bool { random.isRandom && random.draw(3) != 0 }

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
        case .u64: parameter.kind == .u64 && parameter.role == .number
        case .f32: parameter.kind == .f32
        case .pointer: parameter.isPointer
        case .tensorMap: parameter.role == .tensorMap
        }
      guard fits else { throw fail("argument '\(parameter.name)' is \(argument), which the kernel does not expect") }
    }
    for case .tensorMap(let map) in launch.arguments {
      if let obstacle = map.obstacle { throw fail(obstacle) }
    }
    let (x, y, z) = launch.blocks
    if let size = program.kernel.clusterSize, x % size != 0 {
      throw fail("a grid of \(x) blocks along x cannot be divided into clusters of \(size)")
    }
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
    // The blocks of a cluster run together.
    let clusterSize = program.kernel.clusterSize ?? 1
    var waiting = 0
    var resident: [Block] = []
    if case .random(let seed) = schedule { random = RandomOrder(seed: seed) }
    landsAtOnce = schedule == .copiesAtOnce
    // Any lane may be the one.
    electedLane = random.isRandom ? random.draw(32) : schedule == .lastAhead ? 31 : 0
    while true {
      while resident.count < max(residentBlocks, clusterSize) && waiting < count {
        let cluster = Cluster(size: clusterSize)
        for _ in 0..<clusterSize {
          resident.append(Block(index: waiting, launch: launch, program: program, cluster: cluster))
          waiting += 1
        }
      }
      if resident.isEmpty { return }
      let ready = resident.flatMap { block in block.warps.filter { $0.state == .ready }.map { (block, $0) } }
      if ready.isEmpty {
        // Nobody can go on before another copy is there.
        guard !landings.isEmpty else { throw deadlock(resident) }
        try land(random.isRandom ? random.draw(landings.count) : 0)
        continue
      }
      switch schedule {
      case .roundRobin, .copiesAtOnce:
        try landAll()
        for (block, warp) in ready { try run(warp, of: block, atMost: 100_000) }
      case .random:
        if !landings.isEmpty && random.draw(2) == 0 { try land(random.draw(landings.count)) }
        let (block, warp) = ready[random.draw(ready.count)]
        try run(warp, of: block, atMost: 1 + random.draw(60))
      case .copiesLate:
        for (block, warp) in ready { try run(warp, of: block, atMost: 100_000) }
      case .firstAhead, .lastAhead:
        for (block, warp) in schedule == .firstAhead ? ready : ready.reversed() {
          try run(warp, of: block, atMost: 100_000)
          // One that still runs may wait for what another does.
          if warp.state != .ready { break }
        }
      }
      for block in resident where block.isDone && !block.isFinished { try finish(block) }
      // A block's shared memory may be another's to write, as long as the cluster runs.
      resident.removeAll { block in block.cluster.blocks.allSatisfy { $0.value.isDone } }
      if steps > stepLimit {
        throw hazard(
          .deadlock, "the kernel did not end within \(stepLimit) steps", resident.first?.warps.first,
          resident.first)
      }
    }
  }

  private func finish(_ block: Block) throws(Hazard) {
    block.isFinished = true
    counters.splitWords += block.shadow.splitCount
    try finishGroups(block)
    if let load = landings.first(where: { load in load.blocks.contains { $0 === block } }) {
      current = Int(load.operation)
      throw hazard(
        .unfinishedCopy, "the block ends while a copy to its shared memory is under way", load.warp, block,
        lane: load.lane)
    }
    for barrier in block.transactionBarriers.values where barrier.missingBytes != 0 {
      throw hazard(
        .transactionBarrier,
        "the block ends while the transaction barrier at shared address \(barrier.address) misses \(barrier.missingBytes) "
          + "bytes", block.warps[0], block)
    }
  }

  private func deadlock(_ blocks: [Block]) -> Hazard {
    let stuck = blocks.flatMap { block in block.warps.filter { $0.state != .done }.map { (block, $0) } }
    let (block, warp) = stuck[0]
    let what: String
    switch warp.state {
    case .waiting(let barrier):
      current = warp.next - 1
      let state = block.barriers[barrier]
      what = "barrier \(barrier) has \(state.arrived) of \(state.needed) threads"
    case .waitingForPhase(let address):
      current = warp.next
      let barrier = block.transactionBarriers[address]!
      what =
        "the transaction barrier at shared address \(address) misses \(barrier.missingArrivals) of \(barrier.arrivals) "
        + "arrivals and \(barrier.missingBytes) bytes in its phase \(barrier.phase)"
    case .waitingForRegisters:
      current = warp.next
      what = "\(block.freeRegisters) registers have been given back, which are less than are asked for"
    case .waitingForCluster:
      current = warp.next
      what = "\(block.cluster.arrived) warps are at the barrier of the cluster"
    case .ready, .done: what = "nobody waits"
    }
    return hazard(.deadlock, "nobody can go on: \(what), and \(stuck.count) warps wait", warp, block)
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
        if !program.touchedRegisters.isEmpty { try checkRegisters(instruction, warp, block) }
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
    if let product = warp.asynchronous?.products.first {
      current = Int(product.operation)
      throw hazard(.unfinishedCopy, "the warp ends with products that nobody has waited for", warp, block)
    }
    try finishStores(warp, block)
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
    case .bulkCopy(let instruction): try execute(instruction, warp, block, mask)
    case .transactionBarrier(let instruction): try execute(instruction, warp, block, mask)
    case .warpgroup(let instruction): try execute(instruction, warp, block, mask)
    case .control(.setRegisterCount(let isIncrease, let count)):
      try setRegisterCount(isIncrease, Int(count), warp, block, mask)
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
    if [.race, .copyUnderWay, .missingFence].contains(conflict.kind) {
      let (number, warps) = (Int(conflict.other.warp), program.warpCount)
      let who: String
      if number < warps {
        who = "block \(conflict.other.block), warp \(number), lane \(conflict.other.lane)"
      } else if number < 3 * warps {
        // The first stands for any that has not ended.
        who = "the asynchronous proxy" + (conflict.other.clock == .max ? "" : " for warp \(number % warps)")
      } else {
        who = "a copy for transaction barrier \(number - 3 * warps)"
      }
      let place =
        conflict.otherOperation >= 0 ? program.locations[Int(conflict.otherOperation)].map { " at \($0)" } ?? "" : ""
      let verb =
        conflict.kind == .copyUnderWay ? "is being copied to" : conflict.otherIsWrite ? "was written" : "was read"
      message += " \(verb) by \(who)\(place)"
      if conflict.kind == .race { message += ", and nothing orders the two" }
      if conflict.kind == .missingFence { message += ", who did not fence it for the asynchronous proxy" }
    }
    return hazard(conflict.kind, message, warp, block, lane: lane)
  }

  /// An instruction of a whole warp needs all its lanes.
  func requireWholeWarp(_ mask: UInt32, _ warp: Warp, _ block: Block) throws(Hazard) {
    if mask != .max {
      throw hazard(
        .divergence, "only \(mask.nonzeroBitCount) of 32 lanes run it", warp, block, lane: (~mask).trailingZeroBitCount)
    }
    warp.converge(program)
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
