internal import PTX

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

extension Machine {
  func clusterArrive(_ warp: Warp, _ block: Block, _ mask: UInt32) throws(Hazard) {
    try requireWholeWarp(mask, warp, block)
    let cluster = block.cluster
    if cluster.waiting[[block.index, warp.index]] != nil {
      throw hazard(.barrier, "a warp arrives twice at the barrier of its cluster", warp, block)
    }
    cluster.waiting[[block.index, warp.index]] = cluster.phase
    // All lanes have come; what any of them does from now on is not covered, and their own order is not this one's.
    for known in warp.laneKnowledge.values { cluster.knowledge.learn(known) }
    cluster.knowledge.learn(warp.knowledge)
    for other in 0..<program.viewCount where other != warp.index && warp.view[other] > 0 {
      cluster.knowledge.learn(block: Int32(block.index), warp: UInt8(other), clock: warp.view[other])
    }
    cluster.knowledge.learn(block: Int32(block.index), warp: UInt8(warp.index), clock: warp.clock)
    warp.clock += 1
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
    let cluster = block.cluster
    guard let phase = cluster.waiting[[block.index, warp.index]] else {
      throw hazard(.barrier, "a warp waits at the barrier of its cluster without having arrived", warp, block)
    }
    if cluster.phase == phase {
      warp.state = .waitingForCluster
      warp.next -= 1
      return
    }
    counters.barriers += 1
    cluster.waiting[[block.index, warp.index]] = nil
    warp.knowledge.learn(cluster.lastKnowledge)
  }
}
