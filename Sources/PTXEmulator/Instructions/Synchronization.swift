internal import PTX

extension Machine {
  func execute(_ instruction: Synchronization, _ warp: Warp, _ block: Block, _ mask: UInt32) throws(Hazard) {
    switch instruction {
    case .barrier(let id, let threads):
      counters.barriers += 1
      try requireWholeWarp(mask, warp, block)
      try arrive(Int(id), threads.map(Int.init) ?? program.kernel.threadsPerBlock, waits: true, warp, block)
    case .arrive(let id, let threads):
      try requireWholeWarp(mask, warp, block)
      try arrive(Int(id), Int(threads), waits: false, warp, block)
    case .warpBarrier:
      try requireWholeWarp(mask, warp, block)
      warp.synchronizeLanes()
    case .fence(let scope):
      forEachLane(mask) { lane in
        if let pending = warp.pending.removeValue(forKey: lane) {
          warp.laneKnowledge[lane, default: Knowledge()].learn(pending)
        }
        warp.fenced[lane] = (scope, warp.publishable(lane, block: block.index))
      }
      // What comes after the fence is not covered by it.
      warp.clock += 1
    }
  }

  private func arrive(_ id: Int, _ threads: Int, waits: Bool, _ warp: Warp, _ block: Block) throws(Hazard) {
    var barrier = block.barriers[id]
    if barrier.needed == 0 {
      barrier.needed = threads
      barrier.views = .init(repeating: 0, count: block.warps.count)
    } else if barrier.needed != threads {
      throw hazard(
        .barrier, "barrier \(id) is used for \(threads) threads, but for \(barrier.needed) by those who wait there",
        warp, block)
    }
    warp.synchronizeLanes()
    barrier.arrived += 32
    barrier.clocks.append((warp.index, warp.syncedClock))
    for other in block.warps.indices { barrier.views[other].raise(to: warp.view[other]) }
    barrier.knowledge.learn(warp.knowledge)
    if waits {
      warp.state = .waiting(barrier: id)
      barrier.waiting.append(warp.index)
    }
    if barrier.arrived >= barrier.needed {
      for (other, clock) in barrier.clocks { barrier.views[other].raise(to: clock) }
      for index in barrier.waiting {
        let waiter = block.warps[index]
        for other in block.warps.indices { waiter.view[other].raise(to: barrier.views[other]) }
        waiter.knowledge.learn(barrier.knowledge)
        waiter.state = .ready
      }
      barrier = Block.Barrier()
    }
    block.barriers[id] = barrier
  }
}
