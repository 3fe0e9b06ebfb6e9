/// What is wrong with an access; the emulator adds who and where.
struct Conflict: Error {
  let kind: Hazard.Kind
  /// The other access, where there is one.
  var other = Epoch.beforeLaunch
  var otherOperation: Int32 = -1
  var otherIsWrite = false
}

/// The last write of a granule (4 bytes) of memory.
struct WriteShadow {
  enum State: UInt8 {
    case unwritten
    case written
    /// By an atomic or an ordered store, which cannot race with its like.
    case writtenStrongly
    /// An asynchronous copy is on its way.
    case copyUnderWay
  }

  var epoch = Epoch.beforeLaunch
  var operation: Int32 = -1
  var state = State.unwritten
}

/// The last reads of a granule by one warp: the clock of the last, the lanes, the operation.
struct ReadShadow {
  var clock: UInt32 = 0
  var operation: Int32 = -1
  var lanes: UInt32 = 0
}

/// An atomic or ordered access. Such accesses do not race with each other, so several may be the last.
struct StrongAccess {
  let epoch: Epoch
  let operation: Int32
  let isWrite: Bool
}

/// The shadows of a stretch of memory, checked and advanced by every access.
///
/// Every granule has its last write and, for each warp that may read it, that warp's last read. A granule that is ever
/// accessed in parts gets shadows for each byte instead, in a side table.
final class ShadowMemory {
  enum Kind { case read, write, copyIssue }

  private let writes: UnsafeMutablePointer<WriteShadow>
  private let reads: UnsafeMutablePointer<ReadShadow>
  private let count: Int
  private let warps: Int
  @exclusivity(unchecked) private var splits: [Int: SplitGranule] = [:]
  /// Readers that are not ordered among each other, by granule: global memory, which any warp of the grid may read.
  private var foreignReads: [Int: [Epoch]] = [:]
  private let isGlobal: Bool
  /// Atomics and ordered accesses that are not ordered among each other, by place: granule * 8, or that + 1 + byte.
  @exclusivity(unchecked) private var strong: [Int: [StrongAccess]] = [:]
  @exclusivity(unchecked) private var hasStrong = false
  @exclusivity(unchecked) private var hasSplits = false
  /// Granules that have shadows for each byte.
  var splitCount: Int { splits.count }

  private final class SplitGranule {
    var writes: [WriteShadow]
    var reads: [[Epoch]]
    init(_ write: WriteShadow, _ readers: [Epoch]) {
      writes = .init(repeating: write, count: 4)
      reads = .init(repeating: readers, count: 4)
    }
  }

  /// - Parameter warps: warps of the one block that accesses the memory; nil for global memory.
  init(byteCount: Int, warps: Int?) {
    count = max((byteCount + 3) / 4, 1)
    self.warps = warps ?? 0
    isGlobal = warps == nil
    writes = .allocate(capacity: count)
    writes.initialize(repeating: WriteShadow(), count: count)
    reads = .allocate(capacity: max(count * self.warps, 1))
    reads.initialize(repeating: ReadShadow(), count: max(count * self.warps, 1))
  }

  deinit {
    writes.deallocate()
    reads.deallocate()
  }

  /// Marks bytes as written before the launch.
  func initialize(_ range: Range<Int>) {
    for granule in range.lowerBound / 4..<(range.upperBound + 3) / 4 {
      let mask = Self.mask(range, granule)
      if mask == 0xf && splits[granule] == nil {
        writes[granule] = WriteShadow(state: .written)
      } else {
        let split = split(granule)
        for byte in 0..<4 where mask >> byte & 1 == 1 { split.writes[byte] = WriteShadow(state: .written) }
      }
    }
  }

  /// The bytes of a granule that lie in the range.
  private static func mask(_ range: Range<Int>, _ granule: Int) -> Int {
    (0..<4).reduce(0) { range.contains(granule * 4 + $1) ? $0 | 1 << $1 : $0 }
  }

  private func split(_ granule: Int) -> SplitGranule {
    if let split = splits[granule] { return split }
    var readers = foreignReads[granule] ?? []
    for warp in 0..<warps {
      let read = reads[granule * warps + warp]
      for lane in 0..<32 where read.clock > 0 && read.lanes >> UInt32(lane) & 1 == 1 {
        readers.append(Epoch(block: block, warp: UInt8(warp), lane: UInt8(lane), clock: read.clock))
      }
    }
    let split = SplitGranule(writes[granule], readers)
    if let accesses = strong[granule * 8] {
      for byte in 0..<4 { strong[granule * 8 + 1 + byte] = accesses }
    }
    splits[granule] = split
    hasSplits = true
    return split
  }

  /// What the asynchronous proxy reads of shared memory; nil before it does.
  @exclusivity(unchecked) private var units: AsynchronousReads?

  // MARK: - The asynchronous proxy

  /// Checks that an asynchronous read may begin, and keeps the bytes from being written until it ends.
  ///
  /// - Parameter fence: when the lane of an ordinary access next fenced it for the asynchronous proxy.
  func beginRead(
    _ range: Range<Int>, _ observer: Observer, fence: (Epoch) -> Epoch?
  ) throws(Conflict) {
    var seen = Epoch.beforeLaunch
    for granule in range.lowerBound / 4..<(range.upperBound + 3) / 4 {
      if hasSplits, let split = splits[granule] {
        for byte in split.writes { try checkAsynchronous(byte, observer, &seen, isRead: true, fence) }
      } else {
        try checkAsynchronous(writes[granule], observer, &seen, isRead: true, fence)
      }
      if hasStrong { try checkStrongOnes(granule, observer, isRead: true) }
    }
    let units = self.units ?? AsynchronousReads(byteCount: count * 4, warps: warps, block: block)
    self.units = units
    units.begin(range)
  }

  /// The read has ended, at a clock of its warp.
  func endRead(_ range: Range<Int>, reader: Int, clock: UInt32, operation: Int32) {
    units?.end(range, reader: reader, clock: clock, operation: operation)
  }

  /// Checks that an asynchronous write may begin; until it lands, the bytes are nobody's.
  func beginWrite(
    _ range: Range<Int>, _ observer: Observer, fence: (Epoch) -> Epoch?
  ) throws(Conflict) {
    try units?.checkReaders(range, observer)
    var seen = Epoch.beforeLaunch
    var seenReads = [ReadShadow](repeating: ReadShadow(), count: warps)
    for granule in range.lowerBound / 4..<(range.upperBound + 3) / 4 {
      if hasSplits, let split = splits.removeValue(forKey: granule) {
        // A whole granule is written, so that its parts need not be told apart any more.
        for byte in split.writes { try checkAsynchronous(byte, observer, &seen, isRead: false, fence) }
        for reader in split.reads.joined() { try checkReader(reader, -1, observer, fence) }
        hasSplits = !splits.isEmpty
      } else {
        try checkAsynchronous(writes[granule], observer, &seen, isRead: false, fence)
      }
      if hasStrong { try checkStrongOnes(granule, observer, isRead: false) }
      for warp in 0..<warps {
        let read = reads[granule * warps + warp]
        if read.clock == seenReads[warp].clock && read.lanes == seenReads[warp].lanes { continue }
        seenReads[warp] = read
        for lane in 0..<32 where read.lanes >> UInt32(lane) & 1 == 1 {
          let epoch = Epoch(block: block, warp: UInt8(warp), lane: UInt8(lane), clock: read.clock)
          try checkReader(epoch, read.operation, observer, fence)
        }
      }
      writes[granule] = WriteShadow(epoch: observer.epoch, operation: observer.operation, state: .copyUnderWay)
    }
  }

  /// An asynchronous access must come after all strong ones that it conflicts with, too.
  private func checkStrongOnes(_ granule: Int, _ observer: Observer, isRead: Bool) throws(Conflict) {
    // The granule's place, and those of its bytes.
    for place in granule * 8...granule * 8 + 4 {
      for access in strong[place] ?? [] where (access.isWrite || !isRead) && !observer.isAfter(access.epoch) {
        throw Conflict(
          kind: .race, other: access.epoch, otherOperation: access.operation, otherIsWrite: access.isWrite)
      }
    }
  }

  private func checkReader(
    _ reader: Epoch, _ operation: Int32, _ observer: Observer, _ fence: (Epoch) -> Epoch?
  ) throws(Conflict) {
    if !observer.isAfter(reader) { throw Conflict(kind: .race, other: reader, otherOperation: operation) }
    guard let fenced = fence(reader), observer.isAfter(fenced) else {
      throw Conflict(kind: .missingFence, other: reader, otherOperation: operation)
    }
  }

  /// The write before an asynchronous access must have happened before it, and if an ordinary instruction made it, a
  /// fence of the writer's too.
  @inline(__always)
  private func checkAsynchronous(
    _ write: WriteShadow, _ observer: Observer, _ seen: inout Epoch, isRead: Bool, _ fence: (Epoch) -> Epoch?
  ) throws(Conflict) {
    switch write.state {
    case .unwritten:
      if isRead { throw Conflict(kind: .uninitialized) }
    case .copyUnderWay:
      throw Conflict(
        kind: .copyUnderWay, other: write.epoch, otherOperation: write.operation, otherIsWrite: true)
    case .written, .writtenStrongly:
      if write.epoch == seen { return }
      if !observer.isAfter(write.epoch) {
        throw Conflict(kind: .race, other: write.epoch, otherOperation: write.operation, otherIsWrite: true)
      }
      if write.epoch.block >= 0 && Int(write.epoch.warp) < warps {
        guard let fenced = fence(write.epoch), observer.isAfter(fenced) else {
          throw Conflict(
            kind: .missingFence, other: write.epoch, otherOperation: write.operation, otherIsWrite: true)
        }
      }
      seen = write.epoch
    }
  }

  /// The block that accesses shared memory.
  var block: Int32 = 0

  /// Checks an access of `length` bytes from `offset` on, and records it.
  @inline(__always)
  func access(_ kind: Kind, _ offset: Int, _ length: Int, by observer: Observer) throws(Conflict) {
    if kind != .read, let units { try units.checkReaders(offset..<offset + length, observer) }
    if offset & 3 == 0 && length & 3 == 0 && !hasSplits {
      for granule in offset >> 2..<(offset + length) >> 2 { try step(kind, granule, observer) }
    } else {
      try accessInParts(kind, offset, length, observer)
    }
  }

  private func accessInParts(
    _ kind: Kind, _ offset: Int, _ length: Int, _ observer: Observer
  ) throws(Conflict) {
    let range = offset..<offset + length
    for granule in offset / 4..<(offset + length + 3) / 4 {
      let mask = Self.mask(range, granule)
      if mask == 0xf && splits[granule] == nil {
        try step(kind, granule, observer)
      } else {
        let split = split(granule)
        for byte in 0..<4 where mask >> byte & 1 == 1 { try step(kind, split, granule, byte, observer) }
      }
    }
  }

  /// Whether somebody wrote all of these bytes.
  func isWritten(_ range: Range<Int>) -> Bool {
    for granule in range.lowerBound / 4..<(range.upperBound + 3) / 4 {
      guard hasSplits, let split = splits[granule] else {
        if writes[granule].state == .unwritten { return false }
        continue
      }
      let mask = Self.mask(range, granule)
      for byte in 0..<4 where mask >> byte & 1 == 1 && split.writes[byte].state == .unwritten { return false }
    }
    return true
  }

  /// All accesses so far lie before those to come.
  func settle() {
    for granule in 0..<count where writes[granule].state != .unwritten {
      writes[granule] = WriteShadow(state: .written)
    }
    for split in splits.values {
      split.reads = .init(repeating: [], count: 4)
      for byte in 0..<4 where split.writes[byte].state != .unwritten {
        split.writes[byte] = WriteShadow(state: .written)
      }
    }
    foreignReads = [:]
    strong = [:]
  }

  /// Whether the running kernel wrote one of these bytes.
  func isWrittenByKernel(_ range: Range<Int>) -> Bool {
    (range.lowerBound / 4..<(range.upperBound + 3) / 4).contains { granule in
      if hasSplits, let split = splits[granule] { return split.writes.contains { $0.epoch.block >= 0 } }
      return writes[granule].epoch.block >= 0
    }
  }

  /// The copy into these bytes has landed, for the thread that waited.
  func land(_ offset: Int, _ length: Int, _ epoch: Epoch) {
    for granule in offset / 4..<(offset + length + 3) / 4 {
      writes[granule].state = .written
      writes[granule].epoch = epoch
      if hasSplits, let split = splits[granule] {
        for byte in 0..<4 {
          split.writes[byte].state = .written
          split.writes[byte].epoch = epoch
        }
      }
    }
  }

  // MARK: - One granule

  @inline(__always)
  private func step(_ kind: Kind, _ granule: Int, _ observer: Observer) throws(Conflict) {
    try Self.check(kind, writes[granule], observer)
    if hasStrong || observer.isStrong { try checkStrong(kind, granule * 8, observer) }
    if kind == .read {
      if !observer.isStrong { record(granule, observer) }
      return
    }
    try checkReaders(granule, observer)
    writes[granule] = Self.written(kind, observer)
  }

  @inline(__always)
  private func record(_ granule: Int, _ observer: Observer) {
    if isGlobal {
      var readers = foreignReads[granule] ?? []
      readers.removeAll { observer.isAfter($0) }
      readers.append(observer.epoch)
      foreignReads[granule] = readers
      return
    }
    let read = reads + (granule * warps + Int(observer.epoch.warp))
    // Reads since the last synchronization of the warp are kept together, by the clock of the last.
    let others = read.pointee.clock > observer.syncedClock ? read.pointee.lanes : 0
    read.pointee = ReadShadow(
      clock: observer.epoch.clock, operation: observer.operation, lanes: others | 1 << UInt32(observer.epoch.lane))
  }

  @inline(__always)
  private func checkReaders(_ granule: Int, _ observer: Observer) throws(Conflict) {
    for warp in 0..<warps {
      let read = reads[granule * warps + warp]
      if read.clock == 0 { continue }
      if warp == Int(observer.epoch.warp) {
        if read.clock <= observer.syncedClock || read.lanes == 1 << UInt32(observer.epoch.lane) { continue }
      } else if observer.view[warp] >= read.clock {
        continue
      }
      for lane in 0..<32 where read.lanes >> UInt32(lane) & 1 == 1 {
        let epoch = Epoch(block: observer.epoch.block, warp: UInt8(warp), lane: UInt8(lane), clock: read.clock)
        if !observer.isAfter(epoch) {
          throw Conflict(kind: .race, other: epoch, otherOperation: read.operation)
        }
      }
    }
    if isGlobal, let readers = foreignReads.removeValue(forKey: granule) {
      for reader in readers where !observer.isAfter(reader) { throw Conflict(kind: .race, other: reader) }
    }
  }

  /// A weak access must come after all strong ones that it conflicts with, not only after the last.
  @inline(never)
  private func checkStrong(_ kind: Kind, _ place: Int, _ observer: Observer) throws(Conflict) {
    var accesses = strong[place] ?? []
    if observer.isStrong {
      hasStrong = true
      accesses.removeAll { ($0.isWrite ? kind != .read : true) && observer.isAfter($0.epoch) }
      accesses.append(StrongAccess(epoch: observer.epoch, operation: observer.operation, isWrite: kind != .read))
      strong[place] = accesses
      return
    }
    for access in accesses where (access.isWrite || kind != .read) && !observer.isAfter(access.epoch) {
      throw Conflict(
        kind: .race, other: access.epoch, otherOperation: access.operation, otherIsWrite: access.isWrite)
    }
    if kind != .read { strong[place] = nil }
  }

  private func step(
    _ kind: Kind, _ split: SplitGranule, _ granule: Int, _ byte: Int, _ observer: Observer
  ) throws(Conflict) {
    try Self.check(kind, split.writes[byte], observer)
    if observer.isStrong || !strong.isEmpty { try checkStrong(kind, granule * 8 + 1 + byte, observer) }
    if kind == .read {
      if observer.isStrong { return }
      split.reads[byte].removeAll { observer.isAfter($0) }
      split.reads[byte].append(observer.epoch)
      return
    }
    for reader in split.reads[byte] where !observer.isAfter(reader) { throw Conflict(kind: .race, other: reader) }
    split.reads[byte] = []
    split.writes[byte] = Self.written(kind, observer)
  }

  private static func written(_ kind: Kind, _ observer: Observer) -> WriteShadow {
    WriteShadow(
      epoch: observer.epoch, operation: observer.operation,
      state: kind == .copyIssue ? .copyUnderWay : observer.isStrong ? .writtenStrongly : .written)
  }

  /// The write before this access must have happened before it.
  @inline(__always)
  private static func check(_ kind: Kind, _ write: WriteShadow, _ observer: Observer) throws(Conflict) {
    switch write.state {
    case .written:
      if observer.isAfter(write.epoch) { return }
    case .writtenStrongly:
      if observer.isStrong || observer.isAfter(write.epoch) { return }
    case .unwritten:
      if kind != .read { return }
      throw Conflict(kind: .uninitialized)
    case .copyUnderWay:
      throw Conflict(
        kind: .copyUnderWay, other: write.epoch, otherOperation: write.operation, otherIsWrite: true)
    }
    throw Conflict(kind: .race, other: write.epoch, otherOperation: write.operation, otherIsWrite: true)
  }
}
