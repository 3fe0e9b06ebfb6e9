internal import PTX

/// The warps that share a tile of rows: all of the block, or one half of it.
struct WarpGroup {
  private let k: KernelBuilder
  private let tiling: ForwardTiling
  /// 0 or 1; nil where there is one group.
  private let number: Register<U32>?
  /// The thread's number within the group, and its lane.
  let thread, lane: Register<U32>
  /// Where the group's shared memory begins.
  let shared: Register<U32>

  init(_ k: KernelBuilder, _ tiling: ForwardTiling, shared: Register<U32>, bytesPerGroup: Int) {
    (self.k, self.tiling) = (k, tiling)
    let thread = k.special(.threadX)
    lane = k.special(.lane)
    if tiling.groups == 1 {
      (number, self.thread, self.shared) = (nil, thread, shared)
    } else {
      let number = (thread / tiling.threadsPerGroup).named("group")
      self.number = number
      self.thread = (thread % tiling.threadsPerGroup).named("thread")
      self.shared = (shared + number * bytesPerGroup).named("group_shared")
    }
  }

  /// The number of the group's tile, of those that the blocks of a head cut its rows into.
  func tile(ofBlock block: Register<U32>) -> Register<U32> { number.map { block * 2 + $0 } ?? block }

  /// Waits for all warps of the group.
  func barrier() {
    if let number { k.barrier(id: number + 1, threads: tiling.threadsPerGroup) } else { k.barrier() }
  }

  /// The turns of the groups, of which each takes `count`, with work or without.
  func turns(count: Register<S32>) -> Turns? {
    number.map { Turns(k, group: $0, count: count, threads: tiling.threads) }
  }
}

/// Two groups of warps take turns on the tensor cores: what one does between its turns, mostly exponentials, falls into
/// the other's turn. Nothing is handed over but time.
struct Turns {
  /// Barrier 3 is group 0's turn, barrier 4 group 1's.
  static let firstBarrier = 3

  private let k: KernelBuilder
  private let group: Register<U32>
  private let threads: Int
  private let left: Register<S32>

  fileprivate init(_ k: KernelBuilder, group: Register<U32>, count: Register<S32>, threads: Int) {
    (self.k, self.group, self.threads) = (k, group, threads)
    left = k.variable(count).named("turns_left")
    k.comment("turns: group 0 begins")
    k.when((group .== 1) & (left .> 0)) { k.arrive(id: Self.firstBarrier, threads: threads) }
  }

  /// Waits until the other group has given the turn.
  func take() { k.barrier(id: group + Self.firstBarrier, threads: threads) }

  /// Gives the turn to the other group; the last turn is given to nobody.
  func give() {
    k.set(left, to: left - 1)
    k.when((group .== 0) | (left .> 0)) {
      k.arrive(id: k.constant(Self.firstBarrier + 1, U32.self) - group, threads: threads)
    }
  }

  /// Takes and gives the turns for which this group has no work.
  func pass() {
    k.if(left .> 0) {
      k.loop {
        take()
        give()
        return left .> 0
      }
    }
  }
}
