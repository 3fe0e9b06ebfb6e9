/// Who did something, and when.
struct Epoch: Hashable {
  /// The block of the grid; -1: before the launch.
  var block: Int32
  var warp: UInt8
  var lane: UInt8
  /// The warp's clock; it advances whenever the warp publishes what it did. It starts at 1.
  var clock: UInt32

  static let beforeLaunch = Epoch(block: -1, warp: 0, lane: 0, clock: 0)
}

/// What fences and atomics have told a thread of the past of others: for each warp of the grid, up to which of its
/// clocks everything has happened before.
///
/// Within a block the answer is mostly in the warps' views, because barriers are what is used there. A thread that
/// publishes knows of its own warp only up to the warp's last synchronization, and of itself up to now: hence the
/// entries for single lanes.
struct Knowledge {
  private struct WarpName: Hashable {
    let block: Int32
    let warp: UInt8
  }

  private struct ThreadName: Hashable {
    let block: Int32
    let warp: UInt8
    let lane: UInt8
  }

  private var warps: [WarpName: UInt32] = [:]
  private var threads: [ThreadName: UInt32] = [:]

  var isEmpty: Bool { warps.isEmpty && threads.isEmpty }

  mutating func learn(block: Int32, warp: UInt8, clock: UInt32) {
    warps[WarpName(block: block, warp: warp), default: 0].raise(to: clock)
  }

  mutating func learn(_ epoch: Epoch) {
    threads[ThreadName(block: epoch.block, warp: epoch.warp, lane: epoch.lane), default: 0].raise(to: epoch.clock)
  }

  mutating func learn(_ other: Knowledge) {
    warps.merge(other.warps) { max($0, $1) }
    threads.merge(other.threads) { max($0, $1) }
  }

  func covers(_ epoch: Epoch) -> Bool {
    if let clock = warps[WarpName(block: epoch.block, warp: epoch.warp)], clock >= epoch.clock { return true }
    let thread = ThreadName(block: epoch.block, warp: epoch.warp, lane: epoch.lane)
    return threads[thread].map { $0 >= epoch.clock } ?? false
  }
}

extension UInt32 {
  mutating func raise(to value: UInt32) { self = Swift.max(self, value) }
}

/// A thread that looks at the past of others: what has happened before what it does now?
struct Observer {
  let epoch: Epoch
  /// The clock of the last synchronization of the warp's own lanes.
  let syncedClock: UInt32
  /// For each warp of the block, the clock up to which barriers have ordered it.
  let view: UnsafePointer<UInt32>
  /// What fences and atomics told; asked last, because it is slow.
  let warp: Unmanaged<Warp>
  let operation: Int32
  /// An atomic or an access with an ordering, which cannot race with its like.
  var isStrong = false

  @inline(__always)
  func isAfter(_ other: Epoch) -> Bool {
    if other.block == epoch.block {
      if other.warp == epoch.warp {
        if other.lane == epoch.lane || other.clock <= syncedClock { return true }
      } else if view[Int(other.warp)] >= other.clock {
        return true
      }
    }
    if other.block < 0 { return true }
    return warp._withUnsafeGuaranteedRef { $0.knows(other, lane: Int(epoch.lane)) }
  }
}
