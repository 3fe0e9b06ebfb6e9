internal import PTX

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

extension Machine {
  func execute(_ instruction: TransactionBarrier, _ warp: Warp, _ block: Block, _ mask: UInt32) throws(Hazard) {
    let r = warp.registers
    switch instruction {
    case .initialize(let address, let offset, let arrivals):
      guard mask.nonzeroBitCount == 1 else {
        throw hazard(
          .transactionBarrier, "\(mask.nonzeroBitCount) lanes make one transaction barrier; one does it", warp, block)
      }
      let lane = mask.trailingZeroBitCount
      let place = Int(r.words(address)[lane]) + Int(offset)
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
        number: block.transactionBarriers.count, address: place, arrivals: Int(r.words(arrivals)[lane]),
        maker: warp.epoch(lane, block: block.index), viewCount: program.viewCount)
      let places = block.transactionBarriers.keys
      block.transactionBarrierBounds = places.min()!..<places.max()! + 8
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
        if saysNoBeforeItsTime {
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
        bulkLoads.append(
          BulkLoad(
            blocks: [block], pieces: [], bytes: [], barrier: barrier.address, operation: Int32(current), warp: warp,
            lane: UInt8(lane), copies: own))
      }
      try issued()
    }
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

  private func checkBytes(_ barrier: TransactionBarrierState, _ warp: Warp, _ block: Block) throws(Hazard) {
    if barrier.missingBytes.magnitude >= 1 << 20 {
      throw hazard(
        .transactionBarrier, "a phase counts up to 1048575 bytes, and \(barrier.missingBytes) are missing", warp, block)
    }
  }

  /// Ends the phase if nothing is missing any more.
  private func complete(_ barrier: TransactionBarrierState, _ warp: Warp, _ block: Block) throws(Hazard) {
    guard barrier.missingArrivals == 0, barrier.missingBytes == 0 else { return }
    // Who has seen the phase before this one end must have left the wait: from now on its parity says that it runs.
    let warps = program.warpCount
    for wait in barrier.waits where wait.phase < barrier.phase {
      let together = Epoch(
        block: Int32(block.index), warp: AsynchronousReads.reader(wait.warp, of: warps), lane: 0, clock: wait.clock + 1)
      if barrier.views[warps + wait.warp] > wait.clock || barrier.views[wait.warp] >= wait.clock
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
    let engine = 2 * warps + barrier.number
    barrier.views[engine].raise(to: UInt32(barrier.phase))
    (barrier.lastViews, barrier.lastKnowledge) = (barrier.views, barrier.knowledge)
    barrier.views = .init(repeating: 0, count: program.viewCount)
    barrier.knowledge = Knowledge()
    for other in block.warps where other.state == .waitingForPhase(barrier.address) { other.state = .ready }
  }

  // MARK: - Copies that land

  /// After a copy was issued: where copies are made at once, this one is.
  func issued() throws(Hazard) {
    if landsAtOnce { try landAll() }
  }

  func landAll() throws(Hazard) {
    while !bulkLoads.isEmpty { try land(0) }
  }

  /// Lands a copy: its bytes are there for those who wait for the phase that they are counted in.
  func land(_ index: Int) throws(Hazard) {
    let load = bulkLoads.remove(at: index)
    let here = current
    current = Int(load.operation)
    defer { current = here }
    let issuer = load.blocks.first { block in block.warps.contains { $0 === load.warp } } ?? load.blocks[0]
    if load.copies == nil { try checkSources(load, issuer) }
    for block in load.blocks {
      guard let barrier = block.transactionBarriers[load.barrier] else {
        throw hazard(
          .transactionBarrier,
          "nobody made a transaction barrier at shared address \(load.barrier) of block \(block.index)",
          load.warp, issuer, lane: Int(load.lane))
      }
      let epoch = Epoch(
        block: Int32(block.index), warp: UInt8(2 * program.warpCount + barrier.number), lane: 0,
        clock: UInt32(barrier.phase + 1))
      if let copies = load.copies {
        for copy in copies {
          withUnsafeBytes(of: copy.issued) {
            (block.shared + copy.destination).copyMemory(from: $0.baseAddress!, byteCount: copy.byteCount)
          }
          // An ordinary write of the lane, which those who wait know of.
          block.shadow.land(copy.destination, copy.byteCount, load.warp.epoch(Int(load.lane), block: block.index))
        }
        load.warp.clock += copies.isEmpty ? 0 : 1
        barrier.knowledge.learn(
          Epoch(block: Int32(block.index), warp: UInt8(load.warp.index), lane: load.lane, clock: load.warp.clock))
        if barrier.missingArrivals == 0 {
          throw hazard(
            .transactionBarrier, "the phase takes no more of \(barrier.arrivals) arrivals", load.warp, issuer,
            lane: Int(load.lane))
        }
        barrier.missingArrivals -= 1
      } else {
        var done = 0
        for piece in load.pieces {
          load.bytes.withUnsafeBytes {
            (block.shared + piece.destination).copyMemory(from: $0.baseAddress! + done, byteCount: piece.byteCount)
          }
          block.shadow.land(piece.destination, piece.byteCount, epoch)
          done += piece.byteCount
        }
        barrier.missingBytes -= done
        counters.bulkBytesLoaded += done
        try checkBytes(barrier, load.warp, issuer)
      }
      try complete(barrier, load.warp, block)
    }
  }

  private func checkSources(_ load: BulkLoad, _ issuer: Block) throws(Hazard) {
    var done = 0
    for piece in load.pieces {
      defer { done += piece.byteCount }
      guard let source = piece.source else { continue }
      var isSame = true
      eachGlobalPart(source, piece.byteCount) { place, offset, length in
        load.bytes.withUnsafeBytes {
          if memcmp(place, $0.baseAddress! + done + offset, length) != 0 { isSame = false }
        }
      }
      if !isSame {
        throw hazard(
          .sourceChanged, "address \(source) was written between the copy's issue and its end", load.warp, issuer,
          lane: Int(load.lane))
      }
    }
  }

  /// Bytes of one allocation, page by page.
  func eachGlobalPart(
    _ address: UInt64, _ byteCount: Int, _ body: (UnsafeMutableRawPointer, _ offset: Int, _ length: Int) -> Void
  ) {
    guard let allocation = memory.allocation(near: address) else { return }
    var offset = 0
    while offset < byteCount {
      let place = Int(address - allocation.base) + offset
      let within = place & (Allocation.pageSize - 1)
      let length = min(byteCount - offset, Allocation.pageSize - within)
      body(allocation.page(place).bytes + within, offset, length)
      offset += length
    }
  }
}

extension Warp {
  /// All lanes are at the same instruction, so that none is still in a wait before it.
  func converge(of warps: Int) {
    guard let asynchronous, asynchronous.isApart else { return }
    asynchronous.isApart = false
    view[warps + index] = clock
    clock += 1
  }
}
