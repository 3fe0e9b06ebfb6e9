internal import PTX

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

extension Machine {
  /// After something was issued that lands: where that is made at once, it is.
  func issued() throws(Hazard) {
    if landsAtOnce { try landAll() }
  }

  func landAll() throws(Hazard) {
    while !landings.isEmpty { try land(0) }
  }

  /// Lands something: it is there for those who wait for the phase that it is counted in.
  func land(_ index: Int) throws(Hazard) {
    let landing = landings.remove(at: index)
    let here = current
    current = Int(landing.operation)
    defer { current = here }
    for block in landing.blocks {
      guard let barrier = block.transactionBarriers[landing.barrier] else {
        throw hazard(
          .transactionBarrier,
          "nobody made a transaction barrier at shared address \(landing.barrier) of block \(block.index)",
          landing.warp,
          landing.block, lane: landing.lane)
      }
      switch landing.what {
      case .copy(_, let pieces, let bytes): try land(pieces, bytes, landing, block, barrier)
      case .arrival(let copies, let clock): try land(copies, clock, landing, block, barrier)
      }
      try complete(barrier, landing.warp, block)
    }
  }

  private func land(
    _ pieces: [Piece], _ bytes: [UInt8], _ landing: Landing, _ block: Block, _ barrier: TransactionBarrierState
  ) throws(Hazard) {
    let epoch = Epoch(
      block: Int32(block.index), warp: UInt8(program.copies(for: barrier.number)), lane: 0,
      clock: UInt32(barrier.phase + 1))
    var done = 0
    for piece in pieces {
      let isSame = bytes.withUnsafeBytes { all in
        let own = UnsafeRawBufferPointer(rebasing: all[done..<done + piece.byteCount])
        (block.shared + piece.shared).copyMemory(from: own.baseAddress!, byteCount: own.count)
        return piece.global.map { isSource($0, own) } ?? true
      }
      if !isSame { throw changed(piece.global!, landing) }
      block.shadow.land(piece.shared, piece.byteCount, epoch)
      done += piece.byteCount
    }
    barrier.missingBytes -= done
    counters.bulkBytesLoaded += done
    try checkBytes(barrier, landing.warp, landing.block)
  }

  private func land(
    _ copies: [Warp.Copy], _ clock: UInt32, _ landing: Landing, _ block: Block, _ barrier: TransactionBarrierState
  ) throws(Hazard) {
    // Ordinary writes of the lane, as old as its arrival, which those who wait know of.
    let epoch = Epoch(
      block: Int32(block.index), warp: UInt8(landing.warp.index), lane: UInt8(landing.lane), clock: clock)
    for copy in copies {
      let isSame = withUnsafeBytes(of: copy.issued) { bytes in
        (block.shared + copy.destination).copyMemory(from: bytes.baseAddress!, byteCount: copy.byteCount)
        return isSource(copy.sourceAddress, UnsafeRawBufferPointer(rebasing: bytes[..<copy.sourceBytes]))
      }
      if !isSame { throw changed(copy.sourceAddress, landing) }
      block.shadow.land(copy.destination, copy.byteCount, epoch)
    }
    barrier.knowledge.learn(epoch)
    if barrier.missingArrivals == 0 {
      throw hazard(
        .transactionBarrier, "the phase takes no more of \(barrier.arrivals) arrivals", landing.warp, landing.block,
        lane: landing.lane)
    }
    barrier.missingArrivals -= 1
  }

  /// Whether the source of a copy still is what it was at the issue.
  private func isSource(_ address: UInt64, _ issued: UnsafeRawBufferPointer) -> Bool {
    var isSame = true
    eachGlobalPart(address, issued.count) { place, offset, length in
      if memcmp(place, issued.baseAddress! + offset, length) != 0 { isSame = false }
    }
    return isSame
  }

  private func changed(_ source: UInt64, _ landing: Landing) -> Hazard {
    hazard(
      .sourceChanged, "address \(source) was written between the copy's issue and its end", landing.warp, landing.block,
      lane: landing.lane)
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
