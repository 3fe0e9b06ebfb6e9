/// A tensor map among a kernel's parameters.
public struct TensorMapParameter {
  /// Its address.
  let address: Register<U64>
}

extension KernelBuilder {
  // MARK: - The copy engine

  /// A tensor map that the host passes.
  public func tensorMap(_ name: String, file: String = #fileID, line: Int = #line) -> TensorMapParameter {
    at(file, line)
    let index = addParameter(name, .u64, .tensorMap)
    let result = make(U64.self)
    emit(.memory(.tensorMapAddress(index, d: result.id)))
    return TensorMapParameter(address: result.named(name))
  }

  /// Fetches a tensor map that a copy will need soon, by one thread.
  public func prefetch(_ map: TensorMapParameter, file: String = #fileID, line: Int = #line) {
    at(file, line)
    check(map.address)
    emit(.bulkCopy(.prefetchMap(map: map.address.id)))
  }

  /// What L2 should do with what is copied, for the copies that take it.
  public func policy(_ policy: BulkCopy.Policy, file: String = #fileID, line: Int = #line) -> Register<U64> {
    at(file, line)
    let result = make(U64.self)
    emit(.bulkCopy(.makePolicy(policy, d: result.id)))
    return result.named(policy.rawValue)
  }

  /// Starts a copy of a box of a tensor to shared memory, by one thread. The whole box's bytes are counted at the
  /// barrier; elements outside the tensor become zero.
  ///
  /// - Parameters:
  ///   - map: the tensor and its boxes.
  ///   - coordinates: of the box's first element, innermost first; they may lie outside. The innermost is a multiple of
  ///     16 bytes.
  ///   - destination: a multiple of 128, with a swizzle of its period.
  ///   - barrier: where the box's bytes are counted.
  ///   - multicast: the blocks of the cluster, one bit each, that get the box at this address, and its bytes at their
  ///     barriers at that address; nil for this block.
  ///   - policy: how long L2 should keep it; nil for as usual.
  ///   - file: for messages.
  ///   - line: for messages.
  public func copy(
    _ map: TensorMapParameter, _ coordinates: [Register<S32>], to destination: Register<U32>,
    barrier: Register<U32>, multicast: Register<B16>? = nil, policy: Register<U64>? = nil, file: String = #fileID,
    line: Int = #line
  ) {
    at(file, line)
    check(destination)
    check(barrier)
    multicast.map { check($0) }
    policy.map { check($0) }
    guard let coordinates = checked(map, coordinates) else { return }
    emit(
      .bulkCopy(
        .loadTensor(
          map: map.address.id, coordinates: coordinates, destination: destination.id, barrier: barrier.id,
          multicast: multicast?.id, policy: policy?.id)))
  }

  /// Starts a copy of a box from shared memory to a tensor, by one thread; what lies beyond its end is dropped.
  /// Coordinates are 0 or more, the innermost a multiple of 16 bytes.
  public func copy(
    from source: Register<U32>, to map: TensorMapParameter, _ coordinates: [Register<S32>],
    policy: Register<U64>? = nil, file: String = #fileID, line: Int = #line
  ) {
    at(file, line)
    check(source)
    policy.map { check($0) }
    guard let coordinates = checked(map, coordinates) else { return }
    emit(
      .bulkCopy(
        .storeTensor(map: map.address.id, coordinates: coordinates, source: source.id, policy: policy?.id)))
  }

  /// Starts to add a box in shared memory to a tensor, in the map's type, by one thread.
  public func add(
    from source: Register<U32>, to map: TensorMapParameter, _ coordinates: [Register<S32>], file: String = #fileID,
    line: Int = #line
  ) {
    at(file, line)
    check(source)
    guard let coordinates = checked(map, coordinates) else { return }
    emit(.bulkCopy(.addTensor(map: map.address.id, coordinates: coordinates, source: source.id)))
  }

  private func checked(_ map: TensorMapParameter, _ coordinates: [Register<S32>]) -> RegisterList? {
    check(map.address)
    coordinates.forEach { check($0) }
    if (1...5).contains(coordinates.count) { return list(coordinates.map(\.id)) }
    fail("A tensor has 1 to 5 dimensions; \(coordinates.count) coordinates were given.")
    return nil
  }

  /// Starts a copy of so many neighbouring bytes, a multiple of 16 as both addresses are, to shared memory.
  public func copy(
    byteCount: Register<U32>, from source: Register<U64>, to destination: Register<U32>, barrier: Register<U32>,
    multicast: Register<B16>? = nil, file: String = #fileID, line: Int = #line
  ) {
    at(file, line)
    check(byteCount)
    check(source)
    check(destination)
    check(barrier)
    multicast.map { check($0) }
    emit(
      .bulkCopy(
        .load(
          byteCount: byteCount.operand, source: source.id, destination: destination.id, barrier: barrier.id,
          multicast: multicast?.id)))
  }

  /// Starts a copy of so many neighbouring bytes from shared memory.
  public func copy(
    byteCount: Register<U32>, from source: Register<U32>, to destination: Register<U64>, file: String = #fileID,
    line: Int = #line
  ) {
    at(file, line)
    let (byteCount, source, destination) = checked(byteCount, source, destination)
    emit(.bulkCopy(.store(byteCount: byteCount, source: source, destination: destination)))
  }

  /// Starts to add so many neighbouring bytes of f32 in shared memory to global memory.
  public func add(
    byteCount: Register<U32>, from source: Register<U32>, to destination: Register<U64>, file: String = #fileID,
    line: Int = #line
  ) {
    at(file, line)
    let (byteCount, source, destination) = checked(byteCount, source, destination)
    emit(.bulkCopy(.add(byteCount: byteCount, source: source, destination: destination)))
  }

  private func checked(
    _ byteCount: Register<U32>, _ source: Register<U32>, _ destination: Register<U64>
  ) -> (Operand, RegisterID, RegisterID) {
    check(byteCount)
    check(source)
    check(destination)
    return (byteCount.operand, source.id, destination.id)
  }

  /// Makes a group of the copies from shared memory that this thread has started since the last.
  public func commitBulkCopies(file: String = #fileID, line: Int = #line) {
    at(file, line)
    emit(.bulkCopy(.commit))
  }

  /// Waits until at most `pending` of this thread's newest groups are under way: until the copy engine has read their
  /// sources, so that these may be written again, or until all is where it belongs.
  public func waitForBulkCopies(
    pending: Int = 0, untilRead: Bool = false, file: String = #fileID, line: Int = #line
  ) {
    at(file, line)
    if !(0...255).contains(pending) { fail("A wait leaves 0 to 255 groups pending; \(pending) were asked for.") }
    emit(.bulkCopy(.waitGroup(pending: UInt8(clamping: pending), isRead: untilRead)))
  }
}
