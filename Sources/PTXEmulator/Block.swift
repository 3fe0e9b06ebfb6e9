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
  var barriers = [Barrier](repeating: Barrier(), count: 16)
  /// What atomics on shared memory published, by address.
  var published: [Int: Publication] = [:]

  init(index: Int, launch: Launch, program: Program) {
    self.index = index
    let (x, y) = (launch.blocks.x, launch.blocks.y)
    coordinates = (UInt32(index % x), UInt32(index / x % y), UInt32(index / x / y))
    let count = program.kernel.threadsPerBlock / 32
    warps = (0..<count).map { Warp(index: $0, warpCount: count, program: program) }
    sharedByteCount = program.staticSharedByteCount + launch.dynamicSharedByteCount
    shared = .allocate(byteCount: max(sharedByteCount, 1), alignment: 1024)
    shared.initializeMemory(as: UInt8.self, repeating: 0xdb, count: max(sharedByteCount, 1))
    shadow = ShadowMemory(byteCount: sharedByteCount, warps: count)
    shadow.block = Int32(index)
  }

  deinit { shared.deallocate() }

  var isDone: Bool { warps.allSatisfy { $0.state == .done } }
}
