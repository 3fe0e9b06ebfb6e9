internal import PTX

/// What a warp does in the asynchronous proxy.
final class AsynchronousState {
  /// A product that was issued and not yet waited for.
  struct Product {
    let product: WarpgroupMatrix.Product
    let operation: Int32
    /// Descriptors, where the operands are in shared memory.
    let a, b: UInt64
    /// Whether D is added to.
    let adds: Bool
    /// The number of its group, which a commit ends.
    let group: Int32
    /// What it reads of shared memory.
    let reads: [Range<Int>]
  }

  /// Bytes that one lane sends from shared to global memory.
  struct Store {
    let lane: UInt8
    let operation: Int32
    let group: Int32
    /// Pieces: where they are in shared memory, where they go, how many bytes.
    let pieces: [(source: Int, destination: UInt64, byteCount: Int)]
    /// What is added to what is there; nil where it is replaced.
    let addsIn: TensorMap.Element?
    let reads: [Range<Int>]
    /// The bytes, once they have been read.
    var bytes: [UInt8]?
  }

  var products: [Product] = []
  var productGroups: Int32 = 0
  /// Products issued so far: the place in the group's log.
  var productCount = 0
  /// Registers that products under way use: 1 accumulators, 2 operands.
  var busy: [UInt8]
  /// When each register was accessed last by an ordinary instruction, and when the last `wgmma.fence` was.
  var accesses: [UInt32]
  var fence: UInt32 = 0
  var time: UInt32 = 1

  /// When lanes fenced their accesses for the asynchronous proxy, by the warp's clock, ascending.
  var proxyFences: [(clock: UInt32, lanes: UInt32)] = []

  var stores: [Store] = []
  var storeGroups = [Int32](repeating: 0, count: 32)

  /// Registers of a thread.
  var registerCount: Int
  /// Whether lanes may have left a wait apart, so that the next whole-warp instruction brings them together.
  var isApart = false

  /// The registers of a thread when a kernel begins.
  static func registersAtFirst(_ kernel: Kernel) -> Int { min(65536 / kernel.threadsPerBlock / 8 * 8, 256) }

  init(_ program: Program) {
    busy = .init(repeating: 0, count: program.kernel.registers.count)
    accesses = .init(repeating: 0, count: program.kernel.registers.count)
    registerCount = Self.registersAtFirst(program.kernel)
  }
}

/// A transaction barrier at work.
final class TransactionBarrierState {
  /// Its number in the block, and where it is.
  let number, address: Int
  let arrivals: Int
  /// Who made it, and when that was fenced for the copy engine.
  let maker: Epoch
  var fenced: Epoch?
  /// Of the running phase: arrivals and bytes that are missing, the latter below zero where they came too early.
  var missingArrivals: Int
  var missingBytes = 0
  /// Phases that have ended.
  var phase = 0
  /// What those who arrived in the running phase brought along, and in the last.
  var views: [UInt32]
  var knowledge = Knowledge()
  var lastViews: [UInt32]
  var lastKnowledge = Knowledge()
  /// Who has seen a phase end, so that the next but one must not begin before they have left the wait.
  var waits: [Wait] = []

  struct Wait {
    let warp: Int
    let lanes: UInt32
    let clock: UInt32
    let phase: Int
  }

  init(number: Int, address: Int, arrivals: Int, maker: Epoch, viewCount: Int) {
    (self.number, self.address, self.arrivals, self.maker) = (number, address, arrivals, maker)
    missingArrivals = arrivals
    views = .init(repeating: 0, count: viewCount)
    lastViews = views
  }
}

/// What the four warps of a group issue: each the same products in the same order.
struct ProductLog {
  struct Entry: Equatable {
    let operation: Int32
    let a, b: UInt64
    let adds: Bool
  }
  var entries: [Entry] = []
}

/// The blocks that run together, and their common barrier.
final class Cluster {
  let size: Int
  var blocks: [Unowned<Block>] = []
  var arrived = 0
  var knowledge = Knowledge()
  /// Knowledge of the phase that has ended, and its number; each warp waits for one more than it has seen.
  var lastKnowledge = Knowledge()
  var phase = 0
  /// By block and warp: the phase in which a warp has arrived and not yet waited.
  var waiting: [[Int]: Int] = [:]
  init(size: Int) { self.size = size }
}

/// A reference that keeps nothing alive.
struct Unowned<Value: AnyObject> {
  unowned let value: Value
  init(_ value: Value) { self.value = value }
}

/// A copy to shared memory under way, or arrivals that wait for copies of their lane.
final class BulkLoad {
  /// Where bytes go in each block that gets them: with the bytes as they were at the issue.
  let blocks: [Block]
  let pieces: [(destination: Int, source: UInt64?, byteCount: Int)]
  var bytes: [UInt8]
  let barrier: Int
  let operation: Int32
  let warp: Warp
  let lane: UInt8
  /// Copies by `cp.async` of a lane behind which it arrives; then there are no pieces.
  let copies: [Warp.Copy]?

  init(
    blocks: [Block], pieces: [(destination: Int, source: UInt64?, byteCount: Int)], bytes: [UInt8], barrier: Int,
    operation: Int32, warp: Warp, lane: UInt8, copies: [Warp.Copy]? = nil
  ) {
    (self.blocks, self.pieces, self.bytes, self.barrier) = (blocks, pieces, bytes, barrier)
    (self.operation, self.warp, self.lane, self.copies) = (operation, warp, lane, copies)
  }
}

extension Machine {
  /// Where tensor maps lie, as far as their addresses tell.
  static var parameterBase: UInt64 { 0x3f00_0000_0000 }

  /// The four warps of a group give back registers, or take those that others gave back.
  func setRegisterCount(
    _ isIncrease: Bool, _ count: Int, _ warp: Warp, _ block: Block, _ mask: UInt32
  ) throws(Hazard) {
    try requireWholeWarp(mask, warp, block)
    guard let state = warp.asynchronous else { return }
    let difference = count - state.registerCount
    if isIncrease ? difference < 0 : difference > 0 {
      throw hazard(
        .registerCount,
        "a thread has \(state.registerCount) registers, which setmaxnreg cannot \(isIncrease ? "in" : "de")crease to \(count)",
        warp, block)
    }
    if difference > block.freeRegisters {
      // Until others give back some.
      warp.state = .waitingForRegisters
      warp.next -= 1
      return
    }
    block.freeRegisters -= difference
    state.registerCount = count
    for other in block.warps where other.state == .waitingForRegisters { other.state = .ready }
  }

  // MARK: - The asynchronous proxy

  func proxyFence(_ warp: Warp, _ block: Block, _ mask: UInt32) {
    warp.asynchronous?.proxyFences.append((warp.clock, mask))
    barrierInitializationFence(warp, block, mask)
  }

  /// From now on the copy engine may use barriers that these lanes made, for those who know of it.
  func barrierInitializationFence(_ warp: Warp, _ block: Block, _ mask: UInt32) {
    for barrier in block.transactionBarriers.values
    where barrier.fenced == nil && Int(barrier.maker.warp) == warp.index && mask >> UInt32(barrier.maker.lane) & 1 == 1
    {
      barrier.fenced = warp.epoch(Int(barrier.maker.lane), block: block.index)
    }
    warp.clock += 1
  }

  // MARK: - Clusters

  func clusterArrive(_ warp: Warp, _ block: Block, _ mask: UInt32) throws(Hazard) {
    try requireWholeWarp(mask, warp, block)
    let cluster = block.cluster
    if cluster.waiting[[block.index, warp.index]] != nil {
      throw hazard(.barrier, "a warp arrives twice at the barrier of its cluster", warp, block)
    }
    cluster.waiting[[block.index, warp.index]] = cluster.phase
    warp.synchronizeLanes()
    cluster.knowledge.learn(warp.publishable(0, block: block.index))
    cluster.arrived += 1
    if cluster.arrived < cluster.size * program.warpCount { return }
    (cluster.lastKnowledge, cluster.knowledge, cluster.arrived) = (cluster.knowledge, Knowledge(), 0)
    cluster.phase += 1
    for block in cluster.blocks {
      for other in block.value.warps where other.state == .waitingForCluster { other.state = .ready }
    }
  }

  func clusterWait(_ warp: Warp, _ block: Block, _ mask: UInt32) throws(Hazard) {
    try requireWholeWarp(mask, warp, block)
    counters.barriers += 1
    let cluster = block.cluster
    guard let phase = cluster.waiting[[block.index, warp.index]] else {
      throw hazard(.barrier, "a warp waits at the barrier of its cluster without having arrived", warp, block)
    }
    if cluster.phase == phase {
      warp.state = .waitingForCluster
      warp.next -= 1
      return
    }
    cluster.waiting[[block.index, warp.index]] = nil
    warp.knowledge.learn(cluster.lastKnowledge)
  }
}
