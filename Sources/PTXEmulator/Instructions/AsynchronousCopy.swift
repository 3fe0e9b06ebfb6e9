internal import PTX

extension Machine {
  func execute(_ instruction: AsynchronousCopy, _ warp: Warp, _ block: Block, _ mask: UInt32) throws(Hazard) {
    let r = warp.registers
    switch instruction {
    case .copy(let byteCount, let destination, let destinationOffset, let source, let sourceOffset, let sourceBytes):
      let count = Int(byteCount)
      let (destinations, sources) = (r.words(destination), r.longs(source))
      var sectors = SectorCount()
      try eachLane(mask) { (lane) throws(Hazard) in
        let place = Int(destinations[lane]) + Int(destinationOffset)
        let address = sources[lane] &+ UInt64(bitPattern: Int64(sourceOffset))
        let wanted = sourceBytes.map { Int(r.words($0)[lane]) } ?? count
        if wanted > count {
          throw hazard(.undefined, "a copy of \(count) bytes from \(wanted)", warp, block, lane: lane)
        }
        try checkShared(.copyIssue, place, count, count, warp, block, lane)
        let bytes = try readSource(address, wanted, count, warp, block, lane)
        if wanted > 0 { sectors.add(address, wanted, memory.allocation(near: address)!) }
        warp.copies.append(
          Warp.Copy(
            lane: UInt8(lane), group: warp.groups[lane], destination: place, byteCount: count, sourceAddress: address,
            sourceBytes: wanted, operation: Int32(current), issued: bytes))
      }
      sectors.finish(isRead: true)
      countSharedPasses(mask, destinations, destinationOffset, count)
    case .commit:
      forEachLane(mask) { warp.groups[$0] += 1 }
    case .waitGroup(let pending):
      try wait(pending: Int32(pending), warp, block, mask)
    }
  }

  /// Reads the source of a copy; what is beyond `wanted` is zero and not looked at.
  private func readSource(
    _ address: UInt64, _ wanted: Int, _ count: Int, _ warp: Warp, _ block: Block, _ lane: Int
  ) throws(Hazard) -> (UInt64, UInt64) {
    if wanted == 0 { return (0, 0) }
    let (_, page, within) = try checkGlobal(.read, address, wanted, count, warp, block, lane)
    var bytes: (UInt64, UInt64) = (0, 0)
    withUnsafeMutableBytes(of: &bytes) {
      $0.baseAddress!.copyMemory(from: page.bytes + within, byteCount: wanted)
    }
    return bytes
  }

  /// Lands all copies of the mask's lanes but those of their newest `pending` groups.
  private func wait(pending: Int32, _ warp: Warp, _ block: Block, _ mask: UInt32) throws(Hazard) {
    var remaining: [Warp.Copy] = []
    let here = current
    for copy in warp.copies {
      let lane = Int(copy.lane)
      // Copies that no group holds yet are not waited for.
      let isAwaited =
        mask >> UInt32(lane) & 1 == 1 && copy.group < warp.groups[lane] && copy.group < warp.groups[lane] - pending
      if !isAwaited {
        remaining.append(copy)
        continue
      }
      current = Int(copy.operation)
      let now = try readSource(copy.sourceAddress, copy.sourceBytes, copy.byteCount, warp, block, lane)
      if now != copy.issued {
        throw hazard(
          .sourceChanged, "address \(copy.sourceAddress) was written between the copy's issue and its end", warp, block,
          lane: lane)
      }
      withUnsafeBytes(of: copy.issued) {
        (block.shared + copy.destination).copyMemory(from: $0.baseAddress!, byteCount: copy.byteCount)
      }
      block.shadow.land(copy.destination, copy.byteCount, warp.epoch(lane, block: block.index))
    }
    current = here
    warp.copies = remaining
  }
}
