internal import PTX

/// A block of threads: its warps, its shared memory, its barriers.
final class Block {
  struct Barrier {
    /// Threads that arrived, and how many are needed; 0 while nobody has.
    var arrived = 0
    var needed = 0
    var waiting: [Int] = []
    /// Warps that arrived with their clocks, and what they brought along.
    var clocks: [(warp: Int, clock: UInt32)] = []
    var views: [UInt32] = []
    var knowledge = Knowledge()
  }

  let index: Int
  let coordinates: (x: UInt32, y: UInt32, z: UInt32)
  let warps: [Warp]
  let shared: UnsafeMutableRawPointer
  let sharedByteCount: Int
  let shadow: ShadowMemory
  /// By address.
  var transactionBarriers: [Int: TransactionBarrierState] = [:]
  /// Where the first and the last of them lie, so that most accesses need not ask.
  @exclusivity(unchecked) var transactionBarrierBounds = Int.max..<Int.max
  /// Registers that warps have given back, and nobody took yet: of a thread, counted for each warp.
  var freeRegisters = 0
  /// What each group of four warps has done.
  var groupLogs: [GroupLog] = []
  let program: Program
  let cluster: Cluster
  var barriers = [Barrier](repeating: Barrier(), count: 16)
  /// What atomics on shared memory published, by address.
  var published: [Int: Publication] = [:]

  init(index: Int, launch: Launch, program: Program, cluster: Cluster) {
    self.index = index
    self.program = program
    self.cluster = cluster
    let (x, y) = (launch.blocks.x, launch.blocks.y)
    coordinates = (UInt32(index % x), UInt32(index / x % y), UInt32(index / x / y))
    let count = program.kernel.threadsPerBlock / 32
    warps = (0..<count).map { Warp(index: $0, program: program) }
    groupLogs = .init(repeating: GroupLog(), count: count / 4)
    sharedByteCount = program.staticSharedByteCount + launch.dynamicSharedByteCount
    shared = .allocate(byteCount: max(sharedByteCount, 1), alignment: 1024)
    shared.initializeMemory(as: UInt8.self, repeating: 0xdb, count: max(sharedByteCount, 1))
    shadow = ShadowMemory(byteCount: sharedByteCount, warps: count)
    shadow.block = Int32(index)
    cluster.blocks.append(Unowned(self))
  }

  /// When the lane of an epoch next ordered its ordinary accesses with those of the asynchronous proxy; nil where it did
  /// not.
  func proxyFence(after epoch: Epoch) -> Epoch? {
    guard let fences = warps[Int(epoch.warp)].asynchronous?.proxyFences else { return nil }
    var (low, high) = (0, fences.count)
    while low < high {
      let middle = (low + high) / 2
      if fences[middle].clock < epoch.clock { low = middle + 1 } else { high = middle }
    }
    for fence in fences[low...] where fence.lanes >> UInt32(epoch.lane) & 1 == 1 {
      var result = epoch
      result.clock = fence.clock
      return result
    }
    return nil
  }

  deinit { shared.deallocate() }

  /// Whether what is left over when it ends was looked at.
  var isFinished = false
  var isDone: Bool { warps.allSatisfy { $0.state == .done } }
}
