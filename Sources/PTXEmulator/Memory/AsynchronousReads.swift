/// What the asynchronous proxy reads of shared memory, in units of 32 bytes: the least that `wgmma` takes of a row.
final class AsynchronousReads {
  static let unit = 32

  private let warps: Int
  private let block: Int32
  /// Reads under way.
  private var open: [UInt16]
  /// When each warp's last read ended, by its clock, and the operation.
  private var ends: [UInt32]
  private var operations: [Int32]

  init(byteCount: Int, warps: Int, block: Int32) {
    (self.warps, self.block) = (warps, block)
    let count = (byteCount + Self.unit - 1) / Self.unit
    open = .init(repeating: 0, count: count)
    ends = .init(repeating: 0, count: count * warps)
    operations = .init(repeating: -1, count: count * warps)
  }

  /// The one as whom a warp reads asynchronously: of what it says all its lanes know.
  static func reader(_ warp: Int, of warps: Int) -> UInt8 { UInt8(warps + warp) }

  private static func units(_ range: Range<Int>) -> Range<Int> {
    range.lowerBound / unit..<(range.upperBound + unit - 1) / unit
  }

  func begin(_ range: Range<Int>) { for unit in Self.units(range) { open[unit] += 1 } }

  func end(_ range: Range<Int>, warp: Int, clock: UInt32, operation: Int32) {
    for unit in Self.units(range) {
      open[unit] -= 1
      ends[unit * warps + warp] = clock
      operations[unit * warps + warp] = operation
    }
  }

  /// Who writes must come after all who read.
  func checkReaders(_ range: Range<Int>, _ observer: Observer) throws(Conflict) {
    for unit in Self.units(range) {
      for warp in 0..<warps {
        let clock = ends[unit * warps + warp]
        if clock == 0 { continue }
        let epoch = Epoch(block: block, warp: Self.reader(warp, of: warps), lane: 0, clock: clock)
        if !observer.isAfter(epoch) {
          throw Conflict(kind: .race, other: epoch, otherOperation: operations[unit * warps + warp])
        }
      }
      if open[unit] > 0 {
        let reader = Epoch(block: block, warp: UInt8(warps), lane: 0, clock: .max)
        throw Conflict(kind: .race, other: reader, otherIsWrite: false)
      }
    }
  }
}
