/// What the asynchronous proxy reads of shared memory, in units of 32 bytes: the least that `wgmma` takes of a row. (Copies
/// to global memory take 16; within a unit they are not told apart.)
final class AsynchronousReads {
  private static let unit = 32

  /// Who reads: warps by their products, then warps by their copies. In epochs they follow the warps themselves.
  private let readers: Int
  private let block: Int32
  /// Reads under way.
  private let open: UnsafeMutablePointer<UInt16>
  /// When each reader's last read ended, by its warp's clock, and the operation.
  private let ends: UnsafeMutablePointer<UInt32>
  private let operations: UnsafeMutablePointer<Int32>

  init(byteCount: Int, warps: Int, block: Int32) {
    (readers, self.block) = (2 * warps, block)
    let count = (byteCount + Self.unit - 1) / Self.unit
    open = .allocate(capacity: count)
    ends = .allocate(capacity: count * readers)
    operations = .allocate(capacity: count * readers)
    open.initialize(repeating: 0, count: count)
    ends.initialize(repeating: 0, count: count * readers)
    operations.initialize(repeating: -1, count: count * readers)
  }

  deinit {
    open.deallocate()
    ends.deallocate()
    operations.deallocate()
  }

  private static func units(_ range: Range<Int>) -> Range<Int> {
    range.lowerBound / unit..<(range.upperBound + unit - 1) / unit
  }

  func begin(_ range: Range<Int>) { for unit in Self.units(range) { open[unit] += 1 } }

  /// - Parameter reader: as in epochs.
  func end(_ range: Range<Int>, reader: Int, clock: UInt32, operation: Int32) {
    let own = reader - readers / 2
    for unit in Self.units(range) {
      open[unit] -= 1
      ends[unit * readers + own] = clock
      operations[unit * readers + own] = operation
    }
  }

  /// Who writes must come after all who read.
  func checkReaders(_ range: Range<Int>, _ observer: Observer) throws(Conflict) {
    for unit in Self.units(range) {
      for own in 0..<readers {
        let clock = ends[unit * readers + own]
        if clock == 0 { continue }
        let epoch = Epoch(block: block, warp: UInt8(readers / 2 + own), lane: 0, clock: clock)
        if !observer.isAfter(epoch) {
          throw Conflict(kind: .race, other: epoch, otherOperation: operations[unit * readers + own])
        }
      }
      if open[unit] > 0 {
        // The first reader stands for any that has not ended.
        throw Conflict(kind: .race, other: Epoch(block: block, warp: UInt8(readers / 2), lane: 0, clock: .max))
      }
    }
  }
}
