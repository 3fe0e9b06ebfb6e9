/// A transaction barrier at work.
final class TransactionBarrierState {
  /// Its number in the block, and where it is.
  let number, address: Int
  let arrivals: Int
  /// Who made it, and when that was fenced for the copy engine.
  let maker: Epoch
  var fenced: Epoch?
  /// Of the running phase: arrivals and bytes that are missing, the latter below zero where they came too early.
  var missingArrivals: Int
  var missingBytes = 0
  /// Phases that have ended.
  var phase = 0
  /// What those who arrived in the running phase brought along, and in the last.
  var views: [UInt32]
  var knowledge = Knowledge()
  var lastViews: [UInt32]
  var lastKnowledge = Knowledge()
  /// Who has seen a phase end, so that the next but one must not begin before they have left the wait.
  var waits: [Wait] = []

  struct Wait {
    let warp: Int
    let lanes: UInt32
    let clock: UInt32
    let phase: Int
  }

  init(number: Int, address: Int, arrivals: Int, maker: Epoch, viewCount: Int) {
    (self.number, self.address, self.arrivals, self.maker) = (number, address, arrivals, maker)
    missingArrivals = arrivals
    views = .init(repeating: 0, count: viewCount)
    lastViews = views
  }
}
