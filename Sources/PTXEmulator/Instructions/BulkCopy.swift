internal import PTX

extension Machine {
  func execute(_ instruction: BulkCopy, _ warp: Warp, _ block: Block, _ mask: UInt32) throws(Hazard) {
    let r = warp.registers
    switch instruction {
    case .commit:
      forEachLane(mask) { warp.asynchronous!.storeGroups[$0] += 1 }
    case .waitGroup(let pending, let isRead):
      try waitForStores(pending: Int32(pending), isRead: isRead, warp, block, mask)
    case .makePolicy(_, let d):
      let d = r.longs(d)
      forEachLane(mask) { d[$0] = 0 }
    case .prefetchMap(let map):
      try eachLane(mask) { (lane) throws(Hazard) in _ = try tensorMap(at: r.longs(map)[lane], warp, block, lane) }
    case .loadTensor(let map, let coordinates, let destination, let barrier, let multicast, _):
      try eachLane(mask) { (lane) throws(Hazard) in
        let map = try tensorMap(at: r.longs(map)[lane], warp, block, lane)
        let pieces = try box(map, coordinates, Int(r.words(destination)[lane]), warp, block, lane)
        try load(pieces, barrier: Int(r.words(barrier)[lane]), multicast.map { r.words($0)[lane] }, warp, block, lane)
      }
    case .load(let byteCount, let source, let destination, let barrier, let multicast):
      try eachLane(mask) { (lane) throws(Hazard) in
        let piece = try bytes(r.words(byteCount), r.longs(source), r.words(destination), warp, block, lane)
        try load([piece], barrier: Int(r.words(barrier)[lane]), multicast.map { r.words($0)[lane] }, warp, block, lane)
      }
    case .storeTensor(let map, let coordinates, let source, _), .addTensor(let map, let coordinates, let source):
      let isAdded = if case .addTensor = instruction { true } else { false }
      try eachLane(mask) { (lane) throws(Hazard) in
        let map = try tensorMap(at: r.longs(map)[lane], warp, block, lane)
        let pieces = try box(map, coordinates, Int(r.words(source)[lane]), isStore: true, warp, block, lane)
        try store(pieces, addsIn: isAdded ? map.element : nil, warp, block, lane)
      }
    case .store(let byteCount, let source, let destination), .add(let byteCount, let source, let destination):
      let isAdded = if case .add = instruction { true } else { false }
      try eachLane(mask) { (lane) throws(Hazard) in
        let piece = try bytes(r.words(byteCount), r.longs(destination), r.words(source), warp, block, lane)
        try store([piece], addsIn: isAdded ? .f32 : nil, warp, block, lane)
      }
    }
  }

  /// A piece of a copy between the memories, either way.
  struct Piece {
    /// Where it is in shared memory, and in global memory: nil where that has no such elements.
    let shared: Int
    let global: UInt64?
    let byteCount: Int
  }

  /// A copy of neighbouring bytes, in one piece.
  private func bytes(
    _ byteCounts: UnsafeMutablePointer<UInt32>, _ addresses: UnsafeMutablePointer<UInt64>,
    _ places: UnsafeMutablePointer<UInt32>, _ warp: Warp, _ block: Block, _ lane: Int
  ) throws(Hazard) -> Piece {
    let (byteCount, place, address) = (Int(byteCounts[lane]), Int(places[lane]), addresses[lane])
    if byteCount == 0 { throw hazard(.undefined, "a copy of no bytes", warp, block, lane: lane) }
    if byteCount % 16 != 0 || place % 16 != 0 || address % 16 != 0 {
      throw hazard(
        .misaligned,
        "\(byteCount) bytes between address \(address) and shared address \(place); all are multiples of 16", warp,
        block, lane: lane)
    }
    return Piece(shared: place, global: address, byteCount: byteCount)
  }

  /// Where tensor maps lie, as far as their addresses tell.
  static var parameterBase: UInt64 { 0x3f00_0000_0000 }

  private func tensorMap(
    at address: UInt64, _ warp: Warp, _ block: Block, _ lane: Int
  ) throws(Hazard) -> TensorMap {
    let distance = address &- Self.parameterBase
    let index = Int(clamping: distance / UInt64(TensorMap.byteCount))
    guard distance % UInt64(TensorMap.byteCount) == 0, index < launch.arguments.count,
      case .tensorMap(let map) = launch.arguments[index]
    else { throw hazard(.undefined, "there is no tensor map at address \(address)", warp, block, lane: lane) }
    return map
  }

  /// The pieces of a box: 16 bytes each where they change places, or whole rows.
  private func box(
    _ map: TensorMap, _ coordinates: RegisterList, _ place: Int, isStore: Bool = false, _ warp: Warp, _ block: Block,
    _ lane: Int
  ) throws(Hazard) -> [Piece] {
    if coordinates.count != map.extents.count {
      throw hazard(
        .undefined, "\(coordinates.count) coordinates for a tensor of \(map.extents.count) dimensions", warp, block,
        lane: lane)
    }
    let alignment = map.swizzle == .none ? 128 : map.swizzle.period
    if place % alignment != 0 {
      throw hazard(
        .misaligned, "the box at shared address \(place), which is no multiple of \(alignment)", warp, block, lane: lane
      )
    }
    let (elementBytes, rowBytes) = (map.element.byteCount, map.box[0] * map.element.byteCount)
    if map.swizzle != .none && rowBytes != map.swizzle.rawValue {
      throw hazard(
        .undefined,
        "rows of \(rowBytes) bytes under a swizzle of \(map.swizzle.rawValue), which the emulator does not know",
        warp, block, lane: lane)
    }
    let first = program.kernel[coordinates].map { Int(Int32(bitPattern: warp.registers.words($0)[lane])) }
    // As the hardware has it (H100 and H200, 2026-11-28): any other is an illegal instruction there.
    if first[0] * elementBytes % 16 != 0 {
      throw hazard(
        .misaligned,
        "a box begins at element \(first[0]) of the innermost dimension, whose distance of \(first[0] * elementBytes) bytes is "
          + "no multiple of 16", warp, block, lane: lane)
    }
    if isStore, let negative = first.first(where: { $0 < 0 }) {
      throw hazard(
        .undefined, "a box is stored at the coordinate \(negative); those of stores are 0 or more", warp, block,
        lane: lane)
    }
    var pieces: [Piece] = []
    let rows = map.box.dropFirst().reduce(1, *)
    pieces.reserveCapacity(rows * (map.swizzle == .none ? 1 : rowBytes / 16))
    for row in 0..<rows {
      var (rest, address, isInside) = (row, map.address, true)
      for dimension in 1..<map.extents.count {
        let own = first[dimension] + rest % map.box[dimension]
        rest /= map.box[dimension]
        if !(0..<map.extents[dimension]).contains(own) { isInside = false }
        address = address &+ UInt64(bitPattern: Int64(own) &* Int64(map.strides[dimension - 1]))
      }
      // The elements of the row that exist.
      let inside =
        isInside ? max(first[0], 0)..<max(max(first[0], 0), min(first[0] + map.box[0], map.extents[0])) : 0..<0
      // Bytes of the row from `start` up to `end`, in 16-byte pieces where these change places.
      let firstByte = address &+ UInt64(bitPattern: Int64(first[0]) &* Int64(elementBytes))
      func add(_ start: Int, _ end: Int, exists: Bool) {
        var start = start
        while start < end {
          let stop = map.swizzle == .none ? end : min(end, (start / 16 + 1) * 16)
          pieces.append(
            Piece(
              shared: map.swizzle(place + row * rowBytes + start), global: exists ? firstByte &+ UInt64(start) : nil,
              byteCount: stop - start))
          start = stop
        }
      }
      if inside.isEmpty {
        add(0, rowBytes, exists: false)
      } else {
        let (begin, end) = (
          (inside.lowerBound - first[0]) * elementBytes, (inside.upperBound - first[0]) * elementBytes
        )
        add(0, begin, exists: false)
        add(begin, end, exists: true)
        add(end, rowBytes, exists: false)
      }
    }
    return pieces
  }

  private func checkRange(_ range: Range<Int>, _ warp: Warp, _ block: Block, _ lane: Int) throws(Hazard) {
    if range.lowerBound < 0 || range.upperBound > block.sharedByteCount {
      throw hazard(
        .outOfBounds,
        "bytes \(range.lowerBound) to \(range.upperBound) of shared memory, which has \(block.sharedByteCount)", warp,
        block, lane: lane)
    }
    if block.transactionBarrierBounds.overlaps(range) { try checkForBarriers(range, warp, block, lane) }
  }

  /// What pieces take of shared memory, as few ranges as may be.
  private func ranges(_ pieces: [Piece]) -> [Range<Int>] {
    var result: [Range<Int>] = []
    for piece in pieces.sorted(by: { $0.shared < $1.shared }) {
      if let last = result.last, last.upperBound == piece.shared {
        result[result.count - 1] = last.lowerBound..<piece.shared + piece.byteCount
      } else {
        result.append(piece.shared..<piece.shared + piece.byteCount)
      }
    }
    return result
  }

  // MARK: - Loads

  private func load(
    _ pieces: [Piece], barrier place: Int, _ multicast: UInt32?, _ warp: Warp, _ block: Block, _ lane: Int
  ) throws(Hazard) {
    var targets = [block]
    if let multicast {
      let blocks = block.cluster.blocks.map(\.value)
      targets = blocks.filter { multicast >> UInt32($0.index % block.cluster.size) & 1 == 1 }
      if targets.count != (multicast & 0xffff).nonzeroBitCount {
        throw hazard(
          .undefined, "a copy to blocks that the cluster of \(block.cluster.size) does not have", warp, block,
          lane: lane)
      }
    }
    let own = observer(warp, block, lane)
    let ranges = ranges(pieces)
    for target in targets {
      guard let barrier = target.transactionBarriers[place] else {
        throw hazard(
          .transactionBarrier, "nobody made a transaction barrier at shared address \(place) of block \(target.index)",
          warp,
          block, lane: lane)
      }
      guard own.isAfter(barrier.maker), let fenced = barrier.fenced, own.isAfter(fenced) else {
        throw hazard(
          .missingFence,
          "the copy engine need not see the transaction barrier at shared address \(place), which was made without a fence "
            + "for it", warp, block, lane: lane)
      }
      for range in ranges {
        try checkRange(range, warp, target, lane)
        do throws(Conflict) {
          try target.shadow.beginWrite(range, own) { target.proxyFence(after: $0) }
        } catch {
          throw hazard(error, "shared address \(range.lowerBound)", warp, block, lane: lane)
        }
      }
    }
    var bytes = [UInt8](repeating: 0, count: pieces.reduce(0) { $0 + $1.byteCount })
    var done = 0
    var sectors = SectorCount()
    for piece in pieces {
      defer { done += piece.byteCount }
      guard let source = piece.global else { continue }
      try checkGlobalParts(.read, source, piece.byteCount, warp, block, lane)
      eachGlobalPart(source, piece.byteCount) { place, offset, length in
        bytes.withUnsafeMutableBytes {
          ($0.baseAddress! + done + offset).copyMemory(from: place, byteCount: length)
        }
      }
      sectors.add(source, piece.byteCount, memory.allocation(near: source)!)
    }
    sectors.finish(isRead: true)
    landings.append(
      Landing(
        what: .copy(to: targets, pieces, bytes), barrier: place, operation: Int32(current), block: block, warp: warp,
        lane: lane))
    try issued()
  }

  private func checkGlobalParts(
    _ kind: ShadowMemory.Kind, _ address: UInt64, _ byteCount: Int, _ warp: Warp, _ block: Block, _ lane: Int,
    isStrong: Bool = false
  ) throws(Hazard) {
    var offset = 0
    while offset < byteCount {
      // Up to the end of a page, wherever pages begin.
      let place = address &+ UInt64(offset)
      let base = memory.allocation(near: place)?.base ?? 0
      let within = Int((place &- base) & UInt64(Allocation.pageSize - 1))
      let length = min(byteCount - offset, Allocation.pageSize - within)
      _ = try checkGlobal(kind, place, length, 1, warp, block, lane, isStrong: isStrong)
      offset += length
    }
  }

  // MARK: - Stores

  private func store(
    _ pieces: [Piece], addsIn element: TensorMap.Element?, _ warp: Warp, _ block: Block, _ lane: Int
  ) throws(Hazard) {
    // What lies outside the tensor is not looked at.
    let pieces = pieces.filter { $0.global != nil }
    let ranges = ranges(pieces)
    let own = observer(warp, block, lane)
    for range in ranges {
      try checkRange(range, warp, block, lane)
      do throws(Conflict) {
        try block.shadow.beginRead(range, own) { block.proxyFence(after: $0) }
      } catch {
        throw hazard(error, "shared address \(range.lowerBound)", warp, block, lane: lane)
      }
    }
    // What is replaced is nobody's until the copy is waited for; what is added to may be by others, too.
    if element == nil {
      for piece in pieces { try checkGlobalParts(.copyIssue, piece.global!, piece.byteCount, warp, block, lane) }
    }
    warp.asynchronous!.stores.append(
      AsynchronousState.Store(
        lane: UInt8(lane), operation: Int32(current), group: warp.asynchronous!.storeGroups[lane], pieces: pieces,
        addsIn: element, reads: ranges))
  }

  private func waitForStores(
    pending: Int32, isRead: Bool, _ warp: Warp, _ block: Block, _ mask: UInt32
  ) throws(Hazard) {
    guard let state = warp.asynchronous else { return }
    var remaining: [AsynchronousState.Store] = []
    for var store in state.stores {
      let lane = Int(store.lane)
      let isAwaited =
        mask >> UInt32(lane) & 1 == 1 && store.group < state.storeGroups[lane] - pending
      if isAwaited && store.bytes == nil { readSource(&store, warp, block) }
      if isAwaited && !isRead { try write(store, warp, block) } else { remaining.append(store) }
    }
    state.stores = remaining
    // What comes next is not covered by what others knew of the reads.
    warp.clock += 1
  }

  /// The copy engine has read the source, as late as it may.
  private func readSource(_ store: inout AsynchronousState.Store, _ warp: Warp, _ block: Block) {
    var bytes: [UInt8] = []
    for piece in store.pieces {
      bytes += UnsafeRawBufferPointer(start: block.shared + piece.shared, count: piece.byteCount)
    }
    store.bytes = bytes
    let reader = program.stores(of: warp.index)
    for range in store.reads {
      block.shadow.endRead(range, reader: reader, clock: warp.clock, operation: store.operation)
    }
    // The lane that waited alone knows of it.
    warp.laneKnowledge[Int(store.lane), default: Knowledge()].learn(
      block: Int32(block.index), warp: UInt8(reader), clock: warp.clock)
  }

  private func write(_ store: AsynchronousState.Store, _ warp: Warp, _ block: Block) throws(Hazard) {
    let here = current
    current = Int(store.operation)
    defer { current = here }
    var done = 0
    var sectors = SectorCount()
    let lane = Int(store.lane)
    for piece in store.pieces {
      let address = piece.global!
      if store.addsIn != nil {
        try checkGlobalParts(.read, address, piece.byteCount, warp, block, lane, isStrong: true)
        try checkGlobalParts(.write, address, piece.byteCount, warp, block, lane, isStrong: true)
      } else {
        landGlobal(address, piece.byteCount, warp.epoch(lane, block: block.index))
      }
      sectors.add(address, piece.byteCount, memory.allocation(near: address)!)
      eachGlobalPart(address, piece.byteCount) { place, offset, length in
        store.bytes!.withUnsafeBytes { bytes in
          let source = bytes.baseAddress! + done + offset
          guard let element = store.addsIn else { return place.copyMemory(from: source, byteCount: length) }
          Self.add(element, length, from: source, to: place)
        }
      }
      done += piece.byteCount
    }
    counters.bulkBytesStored += done
    sectors.finish(isRead: false)
  }

  /// The copy to these bytes has landed, for the lane that waited.
  private func landGlobal(_ address: UInt64, _ byteCount: Int, _ epoch: Epoch) {
    guard let allocation = memory.allocation(near: address), allocation.access == .readWrite else { return }
    for offset in stride(from: 0, to: byteCount, by: 16) {
      // In 16 bytes, which pages are divided into.
      let place = Int(address - allocation.base) + offset
      allocation.page(place).shadow.land(place & (Allocation.pageSize - 1), min(16, byteCount - offset), epoch)
    }
  }

  /// Adds element by element, each sum rounded once.
  private static func add(
    _ element: TensorMap.Element, _ byteCount: Int, from source: UnsafeRawPointer, to place: UnsafeMutableRawPointer
  ) {
    for offset in stride(from: 0, to: byteCount, by: element.byteCount) {
      switch element {
      case .u8:
        let sum =
          place.load(fromByteOffset: offset, as: UInt8.self) &+ source.load(fromByteOffset: offset, as: UInt8.self)
        place.storeBytes(of: sum, toByteOffset: offset, as: UInt8.self)
      case .f32:
        let sum =
          place.loadUnaligned(fromByteOffset: offset, as: Float.self)
          + source.loadUnaligned(fromByteOffset: offset, as: Float.self)
        place.storeBytes(of: sum, toByteOffset: offset, as: Float.self)
      case .f16, .bf16:
        let kind: RegisterKind = element == .f16 ? .f16x2 : .bf16x2
        let a = UInt32(place.loadUnaligned(fromByteOffset: offset, as: UInt16.self))
        let b = UInt32(source.loadUnaligned(fromByteOffset: offset, as: UInt16.self))
        let sum = Half.bits(kind, Half.float(kind, a) + Half.float(kind, b))
        place.storeBytes(of: UInt16(sum), toByteOffset: offset, as: UInt16.self)
      }
    }
  }

  /// When a warp ends: what it sends to global memory gets there by itself, but shared memory must outlive the reads.
  func finishStores(_ warp: Warp, _ block: Block) throws(Hazard) {
    guard let state = warp.asynchronous else { return }
    for store in state.stores {
      if store.bytes == nil {
        current = Int(store.operation)
        throw hazard(
          .unfinishedCopy, "the warp ends while a copy may still read shared memory, for which nobody waited", warp,
          block,
          lane: Int(store.lane))
      }
      try write(store, warp, block)
    }
    state.stores = []
  }
}
