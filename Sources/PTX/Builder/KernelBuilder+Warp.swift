extension KernelBuilder {
  // MARK: - Tensor cores

  /// Loads `count` (1, 2 or 4) 8 x 8 matrices of 16-bit elements from shared memory; lane 8i + r gives the 16-byte
  /// aligned address of row r of matrix i.
  public func loadMatrix(
    count: Int, shared address: Register<U32>, offset: Int = 0, isTransposed: Bool = false, file: String = #fileID,
    line: Int = #line
  ) -> [Register<U32>] {
    at(file, line)
    check(address)
    guard [1, 2, 4].contains(count) else {
      fail("ldmatrix loads 1, 2 or 4 matrices; \(count) were asked for.")
      return (0..<max(count, 1)).map { _ in make(U32.self) }
    }
    let results = (0..<count).map { _ in make(U32.self) }
    emit(
      .matrix(
        .load(
          isTransposed: isTransposed, d: RegisterGroup(results.map(\.id)), address: address.id,
          offset: checkOffset(offset))))
    return results
  }

  /// `accumulators += a b` of one 16 x 8 tile with k 16, in place: A has 4 registers, B has 2; 4 f32 accumulators, or, of
  /// f16 inputs, 2 of f16x2.
  public func multiplyAdd<T: FloatType>(
    _ inputs: Matrix.Inputs, a: [Register<U32>], b: [Register<U32>], into accumulators: [Register<T>],
    file: String = #fileID, line: Int = #line
  ) {
    at(file, line)
    (a + b).forEach { check($0) }
    accumulators.forEach { check($0) }
    if T.kind == .bf16x2 { fail("There are no bf16 accumulators; use f32.") }
    let accumulator: Matrix.Accumulator = T.kind == .f32 ? .f32 : .f16
    if accumulator == .f16 && inputs == .bf16 { fail("There are no f16 accumulators for bf16 inputs; use f32.") }
    let needed = accumulator == .f32 ? 4 : 2
    guard a.count == 4, b.count == 2, accumulators.count == needed else {
      fail(
        "mma.m16n8k16 takes 4 registers of A, 2 of B and \(needed) accumulators; \(a.count), \(b.count) and "
          + "\(accumulators.count) were given.")
      return
    }
    let group = RegisterGroup(accumulators.map(\.id))
    emit(
      .matrix(
        .multiplyAdd(
          inputs, accumulator, d: group, a: RegisterGroup(a.map(\.id)), b: RegisterGroup(b.map(\.id)), c: group)))
  }

  // MARK: - Lanes

  /// The value of lane `lane ^ mask`.
  public func shuffle<T: RegisterType>(
    _ value: Register<T>, xor mask: Int, file: String = #fileID, line: Int = #line
  ) -> Register<T> {
    at(file, line)
    return shuffle(value, .butterfly, .integer(mask), 32)
  }

  /// The value of lane `lane` of each segment of `width` lanes.
  public func shuffle<T: RegisterType>(
    _ value: Register<T>, lane: Register<U32>, width: Int = 32, file: String = #fileID, line: Int = #line
  ) -> Register<T> {
    at(file, line)
    check(lane)
    return shuffle(value, .index, lane.operand, width)
  }

  /// The value of the lane `distance` further up (`.down`) or down (`.up`); the own value beyond the end.
  public func shuffle<T: RegisterType>(
    _ value: Register<T>, _ mode: WarpExchange.ShuffleMode, by distance: Int, width: Int = 32, file: String = #fileID,
    line: Int = #line
  ) -> Register<T> {
    at(file, line)
    return shuffle(value, mode, .integer(distance), width)
  }

  private func shuffle<T: RegisterType>(
    _ value: Register<T>, _ mode: WarpExchange.ShuffleMode, _ lane: Operand, _ width: Int
  ) -> Register<T> {
    check(value)
    if T.kind.byteCount != 4 { fail("A shuffle moves 32 bits; \(T.kind) has \(T.kind.byteCount * 8).") }
    if ![1, 2, 4, 8, 16, 32].contains(width) {
      fail("A shuffle's width is a power of two up to 32; \(width) is none.")
    }
    let result = make(T.self)
    emit(.warp(.shuffle(mode, d: result.id, a: value.id, lane: lane, width: UInt8(clamping: width))))
    return result
  }

  /// Whether the predicate holds in all lanes, or in any.
  public func vote(
    _ mode: WarpExchange.VoteMode, _ predicate: Predicate, file: String = #fileID, line: Int = #line
  ) -> Predicate {
    at(file, line)
    check(predicate)
    let result = make(Bool1.self)
    emit(.warp(.vote(mode, d: result.id, p: predicate.id)))
    return result
  }

  /// One bit a lane: where the predicate holds.
  public func ballot(_ predicate: Predicate, file: String = #fileID, line: Int = #line) -> Register<U32> {
    at(file, line)
    check(predicate)
    let result = make(U32.self)
    emit(.warp(.ballot(d: result.id, p: predicate.id)))
    return result
  }

  // MARK: - Order

  /// Waits for all threads of the block, or for `threads` of them, at one of 16 barriers.
  public func barrier(id: Int = 0, threads: Int? = nil, file: String = #fileID, line: Int = #line) {
    at(file, line)
    checkBarrier(id, threads ?? 32)
    emit(.synchronization(.barrier(id: .integer(id), threads: threads.map { UInt16(clamping: $0) })))
  }

  /// Waits for `threads` threads of the block at a barrier whose number the warp computes; the same in all its lanes.
  public func barrier(id: Register<U32>, threads: Int, file: String = #fileID, line: Int = #line) {
    at(file, line)
    check(id)
    checkBarrier(0, threads)
    emit(.synchronization(.barrier(id: id.operand, threads: UInt16(clamping: threads))))
  }

  /// Counts this warp at a barrier whose number the warp computes, without waiting.
  public func arrive(id: Register<U32>, threads: Int, file: String = #fileID, line: Int = #line) {
    at(file, line)
    check(id)
    checkBarrier(0, threads)
    emit(.synchronization(.arrive(id: id.operand, threads: UInt16(clamping: threads))))
  }

  /// Counts this warp at a barrier without waiting.
  public func arrive(id: Int, threads: Int, file: String = #fileID, line: Int = #line) {
    at(file, line)
    checkBarrier(id, threads)
    emit(.synchronization(.arrive(id: .integer(id), threads: UInt16(clamping: threads))))
  }

  private func checkBarrier(_ id: Int, _ threads: Int) {
    if !(0...15).contains(id) { fail("There are barriers 0 to 15; \(id) is none.") }
    if threads < 32 || threads % 32 != 0 || threads > threadsPerBlock {
      fail("A barrier of \(threads) threads is impossible in a block of \(threadsPerBlock); it is a multiple of 32.")
    }
  }

  /// Waits for the lanes of the warp and orders their memory accesses.
  public func warpBarrier(file: String = #fileID, line: Int = #line) {
    at(file, line)
    emit(.synchronization(.warpBarrier))
  }

  /// Orders this thread's accesses before and after, for the block or the device.
  public func fence(_ scope: Synchronization.Scope, file: String = #fileID, line: Int = #line) {
    at(file, line)
    emit(.synchronization(.fence(scope)))
  }

  /// Lets the launch behind this one begin, where it was made to; its blocks wait by `waitForPrerequisites` before they
  /// use what this one writes.
  public func launchDependents(file: String = #fileID, line: Int = #line) {
    at(file, line)
    emit(.synchronization(.launchDependents))
  }

  /// Waits until the launch before this one has ended, and its memory can be seen.
  public func waitForPrerequisites(file: String = #fileID, line: Int = #line) {
    at(file, line)
    emit(.synchronization(.waitForPrerequisites))
  }

  /// This thread is done.
  public func exit(file: String = #fileID, line: Int = #line) {
    at(file, line)
    emit(.control(.exit))
  }

  /// This thread found something impossible; the whole kernel fails.
  public func trap(file: String = #fileID, line: Int = #line) {
    at(file, line)
    emit(.control(.trap))
  }
}
