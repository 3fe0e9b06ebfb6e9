internal import PTX

extension Machine {
  func execute(_ instruction: AtomicOperation, _ warp: Warp, _ block: Block, _ mask: UInt32) throws(Hazard) {
    let r = warp.registers
    let length = instruction.kind.byteCount
    let acquires = instruction.ordering == .acquire || instruction.ordering == .acquireRelease
    let releases = instruction.ordering == .release || instruction.ordering == .acquireRelease
    // One lane after the other, as the hardware does in some order.
    try eachLane(mask) { (lane) throws(Hazard) in
      let place: UnsafeMutableRawPointer
      if instruction.space == .shared {
        let address = Int(r.words(instruction.address)[lane]) + Int(instruction.offset)
        try checkShared(.read, address, length, length, warp, block, lane, isStrong: true)
        try checkShared(.write, address, length, length, warp, block, lane, isStrong: true)
        place = block.shared + address
        acquire(block.published[address], acquires, warp, block, lane)
        publish(
          &block.published[address, default: Publication()], isRelease: releases, keepsChain: true, warp, block, lane)
      } else {
        let address = r.longs(instruction.address)[lane] &+ UInt64(bitPattern: Int64(instruction.offset))
        _ = try checkGlobal(.read, address, length, length, warp, block, lane, isStrong: true)
        let (allocation, page, within) = try checkGlobal(
          .write, address, length, length, warp, block, lane, isStrong: true)
        place = page.bytes + within
        let offset = Int(address - allocation.base)
        acquire(allocation, offset, acquires, warp, block, lane)
        publish(
          &allocation.published[offset, default: Publication()], isRelease: releases, keepsChain: true, warp, block,
          lane)
        allocation.traffic.bytesRead += length
        allocation.traffic.bytesWritten += length
        allocation.traffic.sectorsRead += 1
        allocation.traffic.sectorsWritten += 1
      }
      if length == 8 {
        let old = place.load(as: UInt64.self)
        let expected = instruction.expected.map { r.longs($0)[lane] }
        let new = changed(old, r.longs(instruction.value)[lane], expected, instruction.operation)
        place.storeBytes(of: new, as: UInt64.self)
        r.longs(instruction.d)[lane] = old
      } else {
        let old = place.load(as: UInt32.self)
        let value = r.words(instruction.value)[lane]
        let new: UInt32
        if instruction.kind == .f32 && instruction.operation == .add {
          new = (Float(bitPattern: old) + Float(bitPattern: value)).bitPattern
        } else if instruction.kind == .s32 {
          let expected = instruction.expected.map { Int32(bitPattern: r.words($0)[lane]) }
          new = UInt32(
            bitPattern: changed(Int32(bitPattern: old), Int32(bitPattern: value), expected, instruction.operation))
        } else {
          new = changed(old, value, instruction.expected.map { r.words($0)[lane] }, instruction.operation)
        }
        place.storeBytes(of: new, as: UInt32.self)
        r.words(instruction.d)[lane] = old
      }
    }
  }

  private func changed<T: FixedWidthInteger>(
    _ old: T, _ value: T, _ expected: T?, _ operation: AtomicOperation.Operation
  ) -> T {
    switch operation {
    case .add: old &+ value
    case .min: min(old, value)
    case .max: max(old, value)
    case .and: old & value
    case .or: old | value
    case .xor: old ^ value
    case .exchange: value
    case .compareAndSwap: old == expected ? value : old
    }
  }

  // MARK: - What is passed on

  /// A lane that reads an atomic location learns what was published there: at once if it acquires, else at its next
  /// fence.
  func acquire(
    _ allocation: Allocation, _ offset: Int, _ acquires: Bool, _ warp: Warp, _ block: Block, _ lane: Int
  ) {
    acquire(allocation.published[offset], acquires, warp, block, lane)
  }

  func acquire(_ publication: Publication?, _ acquires: Bool, _ warp: Warp, _ block: Block, _ lane: Int) {
    guard let publication else { return }
    let own = Int32(block.index)
    var fromBlock = publication.toBlock[own] ?? Knowledge()
    var fromDevice = Knowledge()
    for (origin, known) in publication.toDevice {
      origin == own ? fromBlock.learn(known) : fromDevice.learn(known)
    }
    if acquires {
      warp.laneKnowledge[lane, default: Knowledge()].learn(fromBlock)
      warp.laneKnowledge[lane, default: Knowledge()].learn(fromDevice)
    } else {
      warp.pendingFromBlock[lane, default: Knowledge()].learn(fromBlock)
      warp.pendingFromDevice[lane, default: Knowledge()].learn(fromDevice)
    }
  }

  /// A lane that writes an atomic location publishes what it knew at its last fences, or all it knows if it releases.
  ///
  /// - Parameter keepsChain: a read-modify-write passes on what was there; a plain store does not.
  func publish(
    _ publication: inout Publication, isRelease: Bool, keepsChain: Bool, _ warp: Warp, _ block: Block, _ lane: Int
  ) {
    if !keepsChain { publication = Publication() }
    let own = Int32(block.index)
    if isRelease {
      publication.toDevice[own, default: Knowledge()].learn(warp.publishable(lane, block: block.index))
      warp.clock += 1
      return
    }
    if let known = warp.fencedForDevice[lane] { publication.toDevice[own, default: Knowledge()].learn(known) }
    if let known = warp.fencedForBlock[lane] { publication.toBlock[own, default: Knowledge()].learn(known) }
  }
}
