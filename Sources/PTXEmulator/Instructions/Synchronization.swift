internal import PTX

extension Machine {
  func execute(_ instruction: Synchronization, _ warp: Warp, _ block: Block, _ mask: UInt32) throws(Hazard) {
    switch instruction {
    case .barrier(let id, let threads):
      counters.barriers += 1
      try requireWholeWarp(mask, warp, block)
      try arrive(
        try barrierNumber(id, warp, block), threads.map(Int.init) ?? program.kernel.threadsPerBlock, waits: true, warp,
        block)
    case .arrive(let id, let threads):
      try requireWholeWarp(mask, warp, block)
      try arrive(try barrierNumber(id, warp, block), Int(threads), waits: false, warp, block)
    case .launchDependents: break
    case .proxyFence: proxyFence(warp, block, mask)
    case .barrierInitializationFence: barrierInitializationFence(warp, block, mask)
    case .clusterArrive: try clusterArrive(warp, block, mask)
    case .clusterWait: try clusterWait(warp, block, mask)
    case .waitForPrerequisites: warp.hasPrerequisites = true
    case .warpBarrier:
      try requireWholeWarp(mask, warp, block)
      warp.synchronizeLanes()
    case .fence(let scope):
      forEachLane(mask) { lane in
        // A fence for the block orders what threads of the block published; one for the device, what anyone did.
        if let own = warp.pendingFromBlock.removeValue(forKey: lane) {
          warp.laneKnowledge[lane, default: Knowledge()].learn(own)
        }
        if scope == .device, let others = warp.pendingFromDevice.removeValue(forKey: lane) {
          warp.laneKnowledge[lane, default: Knowledge()].learn(others)
        }
        let known = warp.publishable(lane, block: block.index)
        if scope == .device { warp.fencedForDevice[lane] = known }
        warp.fencedForBlock[lane] = known
      }
      // What comes after the fence is not covered by it.
      warp.clock += 1
    }
  }

  private func proxyFence(_ warp: Warp, _ block: Block, _ mask: UInt32) {
    warp.asynchronous?.proxyFences.append((warp.clock, mask))
    barrierInitializationFence(warp, block, mask)
  }

  /// From now on the copy engine may use barriers that these lanes made, for those who know of it.
  private func barrierInitializationFence(_ warp: Warp, _ block: Block, _ mask: UInt32) {
    for barrier in block.transactionBarriers.values
    where barrier.fenced == nil && Int(barrier.maker.warp) == warp.index && mask >> UInt32(barrier.maker.lane) & 1 == 1
    {
      barrier.fenced = warp.epoch(Int(barrier.maker.lane), block: block.index)
    }
    warp.clock += 1
  }

  /// Its number, which must be the same in all lanes and exist.
  private func barrierNumber(_ id: Operand, _ warp: Warp, _ block: Block) throws(Hazard) -> Int {
    let lanes = warp.registers.words(id)
    let number = lanes[0]
    guard number < 16, (1..<32).allSatisfy({ lanes[$0] == number }) else {
      throw hazard(.barrier, "a barrier's number must be the same in all lanes, and 0 to 15", warp, block)
    }
    return Int(number)
  }

  private func arrive(_ id: Int, _ threads: Int, waits: Bool, _ warp: Warp, _ block: Block) throws(Hazard) {
    var barrier = block.barriers[id]
    if barrier.needed == 0 {
      barrier.needed = threads
      barrier.views = .init(repeating: 0, count: program.viewCount)
    } else if barrier.needed != threads {
      throw hazard(
        .barrier, "barrier \(id) is used for \(threads) threads, but for \(barrier.needed) by those who wait there",
        warp, block)
    }
    barrier.arrived += 32
    barrier.clocks.append((warp.index, warp.clock))
    for known in warp.laneKnowledge.values { barrier.knowledge.learn(known) }
    if waits {
      warp.synchronizeLanes()
    } else {
      // Who only arrives waits for nobody, not even for the other lanes.
      warp.clock += 1
    }
    for other in 0..<program.viewCount { barrier.views[other].raise(to: warp.view[other]) }
    barrier.knowledge.learn(warp.knowledge)
    if waits {
      warp.state = .waiting(barrier: id)
      barrier.waiting.append(warp.index)
    }
    if barrier.arrived >= barrier.needed {
      for (other, clock) in barrier.clocks { barrier.views[other].raise(to: clock) }
      for index in barrier.waiting {
        let waiter = block.warps[index]
        for other in 0..<program.viewCount { waiter.view[other].raise(to: barrier.views[other]) }
        waiter.knowledge.learn(barrier.knowledge)
        waiter.state = .ready
      }
      barrier = Block.Barrier()
    }
    block.barriers[id] = barrier
  }
}
