internal import PTX

extension Machine {
  func execute(_ instruction: Memory, _ warp: Warp, _ block: Block, _ mask: UInt32) throws(Hazard) {
    switch instruction {
    case .load(let space, let ordering, let hint, let width, let d, let address, let offset):
      let length = width.rawValue * d.count
      let isStrong = ordering.isStrong
      if space == .shared {
        let addresses = warp.registers.words(address)
        try eachLane(mask) { (lane) throws(Hazard) in
          let place = Int(addresses[lane]) + Int(offset)
          try checkShared(.read, place, length, length, warp, block, lane, isStrong: isStrong)
          read(block.shared + place, width, d, warp.registers, lane)
        }
        countSharedPasses(mask, addresses, offset, length)
      } else {
        let addresses = warp.registers.longs(address)
        var sectors = SectorCount()
        try eachLane(mask) { (lane) throws(Hazard) in
          let place = addresses[lane] &+ UInt64(bitPattern: Int64(offset))
          let (allocation, page, within) = try checkGlobal(
            .read, place, length, length, warp, block, lane, isStrong: isStrong)
          if hint == .readOnly && page.shadow.isWrittenByKernel(within..<within + length) {
            throw hazard(
              .undefined, "a read-only load of '\(allocation.name)', which this kernel writes", warp, block, lane: lane)
          }
          read(page.bytes + within, width, d, warp.registers, lane)
          sectors.add(place, length, allocation)
          if isStrong { acquire(allocation, Int(place - allocation.base), ordering == .acquire, warp, block, lane) }
        }
        sectors.finish(isRead: true)
      }
    case .store(let space, let ordering, let width, let values, let address, let offset):
      let length = width.rawValue * values.count
      let isStrong = ordering.isStrong
      if space == .shared {
        let addresses = warp.registers.words(address)
        try eachLane(mask) { (lane) throws(Hazard) in
          let place = Int(addresses[lane]) + Int(offset)
          try checkShared(.write, place, length, length, warp, block, lane, isStrong: isStrong)
          write(block.shared + place, width, values, warp.registers, lane)
        }
        countSharedPasses(mask, addresses, offset, length)
      } else {
        let addresses = warp.registers.longs(address)
        var sectors = SectorCount()
        try eachLane(mask) { (lane) throws(Hazard) in
          let place = addresses[lane] &+ UInt64(bitPattern: Int64(offset))
          let (allocation, page, within) = try checkGlobal(
            .write, place, length, length, warp, block, lane, isStrong: isStrong)
          write(page.bytes + within, width, values, warp.registers, lane)
          sectors.add(place, length, allocation)
          if isStrong {
            publish(
              &allocation.published[Int(place - allocation.base), default: Publication()],
              isRelease: ordering == .release, keepsChain: false, warp, block, lane)
          }
        }
        sectors.finish(isRead: false)
      }
    case .add(let values, let address, let offset):
      let length = 4 * values.count
      let addresses = warp.registers.longs(address)
      var sectors = SectorCount()
      try eachLane(mask) { (lane) throws(Hazard) in
        let place = addresses[lane] &+ UInt64(bitPattern: Int64(offset))
        for kind in [ShadowMemory.Kind.read, .write] {
          let (allocation, page, within) = try checkGlobal(
            kind, place, length, length, warp, block, lane, isStrong: true)
          if kind == .read { continue }
          for (number, value) in values.all.enumerated() {
            let sum = page.bytes + (within + 4 * number)
            let added = flushed(Float(bitPattern: warp.registers.words(value)[lane]))
            sum.storeBytes(of: flushed(flushed(sum.load(as: Float.self)) + added), as: Float.self)
            publish(
              &allocation.published[Int(place - allocation.base) + 4 * number, default: Publication()],
              isRelease: false, keepsChain: true, warp, block, lane)
          }
          sectors.add(place, length, allocation)
        }
      }
      sectors.finish(isRead: true)
      sectors.finish(isRead: false)
    case .loadParameter(let index, let d):
      switch launch.arguments[Int(index)] {
      case .u32(let value): fill(warp.registers.words(d), value, mask)
      case .s32(let value): fill(warp.registers.words(d), UInt32(bitPattern: value), mask)
      case .f32(let value): fill(warp.registers.words(d), value.bitPattern, mask)
      case .tensorMap: preconditionFailure("A tensor map is not loaded; its address is taken.")
      case .u64(let value), .pointer(let value):
        let d = warp.registers.longs(d)
        forEachLane(mask) { d[$0] = value }
      }
    case .tensorMapAddress(let index, let d):
      // Parameters have addresses that no memory has.
      let d = warp.registers.longs(d)
      forEachLane(mask) { d[$0] = Self.parameterBase + UInt64(index) * UInt64(TensorMap.byteCount) }
    case .sharedAddress(let index, let d):
      let offset = index < 0 ? program.staticSharedByteCount : program.sharedOffsets[Int(index)]
      fill(warp.registers.words(d), UInt32(offset), mask)
    }
  }

  private func fill(_ d: UnsafeMutablePointer<UInt32>, _ value: UInt32, _ mask: UInt32) {
    forEachLane(mask) { d[$0] = value }
  }

  @inline(__always)
  func eachLane(_ mask: UInt32, _ body: (Int) throws(Hazard) -> Void) throws(Hazard) {
    var rest = mask
    while rest != 0 {
      try body(rest.trailingZeroBitCount)
      rest &= rest - 1
    }
  }

  @inline(__always)
  private func read(
    _ source: UnsafeMutableRawPointer, _ width: Memory.Width, _ d: RegisterGroup, _ r: Registers, _ lane: Int
  ) {
    for i in 0..<d.count {
      let place = source + i * width.rawValue
      switch width {
      case .b8: r.words(d[i])[lane] = UInt32(place.load(as: UInt8.self))
      case .b16: r.words(d[i])[lane] = UInt32(place.load(as: UInt16.self))
      case .b32: r.words(d[i])[lane] = place.load(as: UInt32.self)
      case .b64: r.longs(d[i])[lane] = place.load(as: UInt64.self)
      }
    }
  }

  @inline(__always)
  private func write(
    _ destination: UnsafeMutableRawPointer, _ width: Memory.Width, _ values: RegisterGroup, _ r: Registers, _ lane: Int
  ) {
    for i in 0..<values.count {
      let place = destination + i * width.rawValue
      switch width {
      case .b8: place.storeBytes(of: UInt8(truncatingIfNeeded: r.words(values[i])[lane]), as: UInt8.self)
      case .b16: place.storeBytes(of: UInt16(truncatingIfNeeded: r.words(values[i])[lane]), as: UInt16.self)
      case .b32: place.storeBytes(of: r.words(values[i])[lane], as: UInt32.self)
      case .b64: place.storeBytes(of: r.longs(values[i])[lane], as: UInt64.self)
      }
    }
  }

  // MARK: - Checks

  @inline(__always)
  func checkShared(
    _ kind: ShadowMemory.Kind, _ place: Int, _ length: Int, _ alignment: Int, _ warp: Warp, _ block: Block,
    _ lane: Int, isStrong: Bool = false
  ) throws(Hazard) {
    if place < 0 || place + length > block.sharedByteCount {
      throw hazard(
        .outOfBounds, "bytes \(place) to \(place + length) of shared memory, which has \(block.sharedByteCount)", warp,
        block, lane: lane)
    }
    if block.transactionBarrierBounds.overlaps(place..<place + length) {
      try checkForBarriers(place..<place + length, warp, block, lane)
    }
    if place & (alignment - 1) != 0 {
      throw hazard(
        .misaligned, "shared address \(place) is no multiple of \(alignment)", warp, block, lane: lane)
    }
    do throws(Conflict) {
      try block.shadow.access(kind, place, length, by: observer(warp, block, lane, isStrong: isStrong))
    } catch {
      throw hazard(error, "shared address \(place)", warp, block, lane: lane)
    }
  }

  /// Finds the memory behind an address and checks the access.
  @inline(__always)
  func checkGlobal(
    _ kind: ShadowMemory.Kind, _ place: UInt64, _ length: Int, _ alignment: Int, _ warp: Warp, _ block: Block,
    _ lane: Int, isStrong: Bool = false
  ) throws(Hazard) -> (Allocation, Allocation.Page, within: Int) {
    guard let allocation = memory.allocation(near: place), place >= allocation.base,
      place - allocation.base <= UInt64(allocation.byteCount),
      UInt64(length) <= UInt64(allocation.byteCount) - (place - allocation.base)
    else { throw outOfBounds(place, length, warp, block, lane) }
    let offset = Int(place - allocation.base)
    if place & UInt64(alignment - 1) != 0 {
      throw hazard(
        .misaligned, "byte \(offset) of '\(allocation.name)' is no multiple of \(alignment)", warp, block, lane: lane)
    }
    if kind != .read && allocation.isReadOnly {
      throw hazard(.readOnly, "byte \(offset) of '\(allocation.name)'", warp, block, lane: lane)
    }
    if launch.isDependent && !warp.hasPrerequisites && !allocation.isReadOnly {
      throw hazard(
        .race, "'\(allocation.name)' may still be written by the launch before, for which nobody waited", warp, block,
        lane: lane)
    }
    let page = allocation.page(offset)
    let within = offset & (Allocation.pageSize - 1)
    do throws(Conflict) {
      switch allocation.access {
      case .readWrite: try page.shadow.access(kind, within, length, by: observer(warp, block, lane, isStrong: isStrong))
      case .anyOrder where kind != .read: page.shadow.initialize(within..<within + length)
      case .anyOrder, .readOnly:
        // No race is possible, or none is looked for; only bytes that nobody ever wrote.
        if !page.shadow.isWritten(within..<within + length) { throw Conflict(kind: .uninitialized) }
      }
    } catch {
      throw hazard(error, "byte \(offset) of '\(allocation.name)'", warp, block, lane: lane)
    }
    return (allocation, page, within)
  }

  private func outOfBounds(_ place: UInt64, _ length: Int, _ warp: Warp, _ block: Block, _ lane: Int) -> Hazard {
    var message = "address \(place), where nothing is"
    if let near = memory.allocation(near: place) {
      let distance = Int64(bitPattern: place &- near.base)
      message = "bytes \(distance) to \(distance &+ Int64(length)) of '\(near.name)', which has \(near.byteCount)"
    }
    return hazard(.outOfBounds, message, warp, block, lane: lane)
  }

  // MARK: - Counters

  /// Passes that an access of a warp to shared memory takes: 128 bytes each, of 32 banks of 4 bytes. Wide accesses are
  /// made by groups of lanes, one after the other; within a group, different words of one bank need a pass each.
  @inline(__always)
  func countSharedPasses(_ lanes: Int, byteCount: Int, _ place: (Int) -> Int) {
    let atOnce = max(1, min(32, 128 / byteCount))
    let wordsEach = (byteCount + 3) / 4
    withUnsafeTemporaryAllocation(of: Int.self, capacity: 32) { seen in
      for start in stride(from: 0, to: lanes, by: atOnce) {
        let group = start..<min(start + atOnce, lanes)
        seen.update(repeating: -1)
        var distinct = 0
        var hasConflict = false
        for lane in group {
          let first = place(lane) / 4
          for word in first..<first + wordsEach where seen[word & 31] != word {
            if seen[word & 31] >= 0 { hasConflict = true }
            seen[word & 31] = word
            distinct += 1
          }
        }
        let conflicts = hasConflict ? self.conflicts(group, wordsEach, place) : (passes: 1, words: distinct)
        let ideal = (conflicts.words + 31) / 32
        counters.sharedPasses += ideal
        counters.bankConflicts += conflicts.passes - ideal
      }
    }
  }

  /// The slow way, for groups in which banks are asked for more than one word.
  private func conflicts(_ group: Range<Int>, _ wordsEach: Int, _ place: (Int) -> Int) -> (passes: Int, words: Int) {
    var words: Set<Int> = []
    for lane in group {
      for word in place(lane) / 4..<place(lane) / 4 + wordsEach { words.insert(word) }
    }
    var load = [Int](repeating: 0, count: 32)
    for word in words { load[word & 31] += 1 }
    return (load.max()!, words.count)
  }

  @inline(__always)
  func countSharedPasses(
    _ mask: UInt32, _ addresses: UnsafeMutablePointer<UInt32>, _ offset: Int32, _ byteCount: Int
  ) {
    if mask == .max {
      countSharedPasses(32, byteCount: byteCount) { Int(addresses[$0]) + Int(offset) }
    } else {
      // Lanes keep their places in the groups; one that is idle asks for what another of its group asks for.
      let atOnce = max(1, min(32, 128 / byteCount))
      for start in stride(from: 0, to: 32, by: atOnce) {
        let group = atOnce == 32 ? mask : mask >> UInt32(start) & (1 << UInt32(atOnce) - 1)
        if group == 0 { continue }
        let first = start + group.trailingZeroBitCount
        countSharedPasses(atOnce, byteCount: byteCount) { lane in
          Int(addresses[group >> UInt32(lane) & 1 == 1 ? start + lane : first]) + Int(offset)
        }
      }
    }
  }
}

/// The 32-byte sectors that one instruction touches in one allocation.
struct SectorCount {
  /// Sectors in order of their first touch; neighbours of one sector come one after the other in most kernels.
  private var sectors: [UInt64] = []
  private var bytes = 0
  private var allocation: Allocation?

  init() { sectors.reserveCapacity(32) }

  mutating func add(_ address: UInt64, _ length: Int, _ allocation: Allocation) {
    self.allocation = allocation
    bytes += length
    for sector in address >> 5...(address + UInt64(length) - 1) >> 5 where sector != sectors.last {
      sectors.append(sector)
    }
  }

  func finish(isRead: Bool) {
    guard let allocation else { return }
    let isAscending = zip(sectors, sectors.dropFirst()).allSatisfy { $0 < $1 }
    let count = isAscending ? sectors.count : Set(sectors).count
    if isRead {
      allocation.traffic.bytesRead += bytes
      allocation.traffic.sectorsRead += count
    } else {
      allocation.traffic.bytesWritten += bytes
      allocation.traffic.sectorsWritten += count
    }
  }
}

extension Memory.Ordering {
  /// Whether accesses do not race with their like; a volatile one may.
  var isStrong: Bool { self != .weak && self != .volatile }
}
