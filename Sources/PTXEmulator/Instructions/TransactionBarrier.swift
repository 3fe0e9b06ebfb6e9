internal import PTX

extension Machine {
  func execute(_ instruction: TransactionBarrier, _ warp: Warp, _ block: Block, _ mask: UInt32) throws(Hazard) {
    let r = warp.registers
    switch instruction {
    case .initialize(let address, let offset, let arrivals):
      try eachLane(mask) { (lane) throws(Hazard) in
        try make(Int(r.words(address)[lane]) + Int(offset), arrivals: Int(r.words(arrivals)[lane]), warp, block, lane)
      }
    case .arrive(let address, let offset):
      try arrive(try barrier(address, offset, warp, block, mask), expecting: 0, warp, block, mask)
    case .arriveExpecting(let address, let offset, let byteCount):
      let barrier = try barrier(address, offset, warp, block, mask)
      try arrive(barrier, expecting: sum(r.words(byteCount), mask), warp, block, mask)
    case .expect(let address, let offset, let byteCount):
      let barrier = try barrier(address, offset, warp, block, mask)
      barrier.missingBytes += sum(r.words(byteCount), mask)
      try checkBytes(barrier, warp, block)
    case .tryWait(let d, let address, let offset, let parity):
      let barrier = try barrier(address, offset, warp, block, mask)
      let parities = r.words(parity)
      let own = parities[mask.trailingZeroBitCount]
      var isSame = own < 2
      forEachLane(mask) { if parities[$0] != own { isSame = false } }
      if !isSame {
        throw hazard(
          .transactionBarrier, "a wait is for the parity 0 or 1, and here for the same in all lanes", warp, block,
          lane: mask.trailingZeroBitCount)
      }
      if barrier.phase & 1 == Int(own) {
        // The phase is running. PTX lets the wait be over before its time, too, of which loops take no notice.
        if drawsNo() {
          r.setPredicate(d, 0, mask: mask)
          return
        }
        warp.state = .waitingForPhase(barrier.address)
        warp.next -= 1
        return
      }
      r.setPredicate(d, .max, mask: mask)
      if mask == .max {
        for other in 0..<program.viewCount { warp.view[other].raise(to: barrier.lastViews[other]) }
        // Where all lanes have arrived and wait, each knows what the others did before.
        warp.syncedClock.raise(to: barrier.lastViews[warp.index])
        warp.knowledge.learn(barrier.lastKnowledge)
      } else {
        var known = barrier.lastKnowledge
        for other in 0..<program.viewCount where barrier.lastViews[other] > 0 {
          known.learn(block: Int32(block.index), warp: UInt8(other), clock: barrier.lastViews[other])
        }
        forEachLane(mask) { warp.laneKnowledge[$0, default: Knowledge()].learn(known) }
      }
      barrier.waits.append(
        TransactionBarrierState.Wait(warp: warp.index, lanes: mask, clock: warp.clock, phase: barrier.phase - 1))
      warp.asynchronous?.isApart = true
      warp.clock += 1
    case .arriveAfterCopies(let address, let offset):
      let barrier = try barrier(address, offset, warp, block, mask)
      forEachLane(mask) { lane in
        let own = warp.copies.filter { Int($0.lane) == lane }
        warp.copies.removeAll { Int($0.lane) == lane }
        landings.append(
          Landing(
            what: .arrival(own, clock: warp.clock), barrier: barrier.address, operation: Int32(current), block: block,
            warp: warp, lane: lane))
      }
      // What the lanes do from now on is not behind their arrival.
      warp.clock += 1
      try issued()
    }
  }

  private func make(
    _ place: Int, arrivals: Int, _ warp: Warp, _ block: Block, _ lane: Int
  ) throws(Hazard) {
    if block.transactionBarriers[place] != nil {
      throw hazard(
        .transactionBarrier, "there is a transaction barrier at shared address \(place) already", warp, block,
        lane: lane)
    }
    try checkShared(.write, place, 8, 8, warp, block, lane)
    if block.transactionBarriers.count == Program.barrierLimit {
      throw hazard(
        .transactionBarrier, "the emulator has room for \(Program.barrierLimit) transaction barriers in a block",
        warp,
        block, lane: lane)
    }
    block.transactionBarriers[place] = TransactionBarrierState(
      number: block.transactionBarriers.count, address: place, arrivals: arrivals,
      maker: warp.epoch(lane, block: block.index), viewCount: program.viewCount)
    let places = block.transactionBarriers.keys
    block.transactionBarrierBounds = places.min()!..<places.max()! + 8
  }

  private func sum(_ words: UnsafeMutablePointer<UInt32>, _ mask: UInt32) -> Int {
    var result = 0
    forEachLane(mask) { result += Int(words[$0]) }
    return result
  }

  /// The barrier at an address, the same in all lanes, of which they must know.
  private func barrier(
    _ address: RegisterID, _ offset: Int32, _ warp: Warp, _ block: Block, _ mask: UInt32
  ) throws(Hazard) -> TransactionBarrierState {
    let addresses = warp.registers.words(address)
    let lane = mask.trailingZeroBitCount
    var isSame = true
    forEachLane(mask) { if addresses[$0] != addresses[lane] { isSame = false } }
    if !isSame {
      throw hazard(
        .transactionBarrier, "the emulator takes one transaction barrier for all lanes of an instruction", warp, block,
        lane: lane)
    }
    let place = Int(addresses[lane]) + Int(offset)
    guard let barrier = block.transactionBarriers[place] else {
      throw hazard(
        .transactionBarrier, "nobody made a transaction barrier at shared address \(place)", warp, block, lane: lane)
    }
    try eachLane(mask) { (lane) throws(Hazard) in
      if !observer(warp, block, lane).isAfter(barrier.maker) {
        throw hazard(
          .race, "the transaction barrier at shared address \(place) is used by who need not know yet that it was made",
          warp, block, lane: lane)
      }
    }
    return barrier
  }

  /// Bytes of a barrier are nobody's but its own.
  func checkForBarriers(_ range: Range<Int>, _ warp: Warp, _ block: Block, _ lane: Int) throws(Hazard) {
    for place in block.transactionBarriers.keys where range.overlaps(place..<place + 8) {
      throw hazard(
        .transactionBarrier, "shared address \(range.lowerBound) is a part of the transaction barrier at \(place)",
        warp,
        block, lane: lane)
    }
  }

  private func arrive(
    _ barrier: TransactionBarrierState, expecting bytes: Int, _ warp: Warp, _ block: Block, _ mask: UInt32
  ) throws(Hazard) {
    let count = mask.nonzeroBitCount
    if count > barrier.missingArrivals {
      throw hazard(
        .transactionBarrier,
        "the phase takes \(barrier.missingArrivals) more of \(barrier.arrivals) arrivals, and \(count) come", warp,
        block,
        lane: mask.trailingZeroBitCount)
    }
    for known in 0..<program.viewCount where known != warp.index {
      barrier.views[known].raise(to: warp.view[known])
    }
    barrier.knowledge.learn(warp.knowledge)
    if mask == .max {
      barrier.views[warp.index].raise(to: warp.clock)
      for known in warp.laneKnowledge.values { barrier.knowledge.learn(known) }
    } else {
      // Of the other lanes only what they did before they last met.
      barrier.views[warp.index].raise(to: warp.syncedClock)
      forEachLane(mask) { lane in
        barrier.knowledge.learn(warp.epoch(lane, block: block.index))
        if let known = warp.laneKnowledge[lane] { barrier.knowledge.learn(known) }
      }
    }
    warp.clock += 1
    barrier.missingBytes += bytes
    barrier.missingArrivals -= count
    try checkBytes(barrier, warp, block)
    try complete(barrier, warp, block)
  }

  func checkBytes(_ barrier: TransactionBarrierState, _ warp: Warp, _ block: Block) throws(Hazard) {
    if barrier.missingBytes.magnitude >= 1 << 20 {
      throw hazard(
        .transactionBarrier, "a phase counts up to 1048575 bytes, and \(barrier.missingBytes) are missing", warp, block)
    }
  }

  /// Ends the phase if nothing is missing any more.
  func complete(_ barrier: TransactionBarrierState, _ warp: Warp, _ block: Block) throws(Hazard) {
    guard barrier.missingArrivals == 0, barrier.missingBytes == 0 else { return }
    // Who has seen the phase before this one end must have left the wait: from now on its parity says that it runs.
    for wait in barrier.waits where wait.phase < barrier.phase {
      let together = Epoch(
        block: Int32(block.index), warp: UInt8(program.products(of: wait.warp)), lane: 0, clock: wait.clock + 1)
      if barrier.views[program.products(of: wait.warp)] > wait.clock || barrier.views[wait.warp] >= wait.clock
        || barrier.knowledge.covers(together)
      {
        continue
      }
      for lane in 0..<32 where wait.lanes >> UInt32(lane) & 1 == 1 {
        let epoch = Epoch(block: Int32(block.index), warp: UInt8(wait.warp), lane: UInt8(lane), clock: wait.clock)
        if barrier.knowledge.covers(epoch) { continue }
        throw hazard(
          .transactionBarrier,
          "the next phase of the barrier at shared address \(barrier.address) ends while lane \(lane) of warp \(wait.warp) "
            + "may still wait for the one before: it would be two phases behind, and wait for ever", warp, block,
          lane: lane)
      }
    }
    barrier.waits.removeAll { $0.phase < barrier.phase }
    barrier.phase += 1
    barrier.missingArrivals = barrier.arrivals
    // Who waited knows what those know who arrived, and what the copies of the phase brought.
    barrier.views[program.copies(for: barrier.number)].raise(to: UInt32(barrier.phase))
    (barrier.lastViews, barrier.lastKnowledge) = (barrier.views, barrier.knowledge)
    barrier.views = .init(repeating: 0, count: program.viewCount)
    barrier.knowledge = Knowledge()
    for other in block.warps where other.state == .waitingForPhase(barrier.address) { other.state = .ready }
  }
}

extension Warp {
  /// All lanes are at the same instruction, so that none is still in a wait before it.
  func converge(_ program: Program) {
    guard let asynchronous, asynchronous.isApart else { return }
    asynchronous.isApart = false
    view[program.products(of: index)] = clock
    clock += 1
  }
}
