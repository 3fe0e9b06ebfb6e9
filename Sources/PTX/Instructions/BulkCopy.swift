/// Copies by the copy engine, which one thread starts (sections 9.7.9.27, cp.async.bulk and cp.async.bulk.tensor, and
/// 9.7.9.28, cp.reduce.async.bulk).
///
/// Loads count their bytes at a transaction barrier; stores are made groups, which the thread that started them waits
/// for. They are made in the asynchronous proxy: see `Synchronization.proxyFence`, which is for
/// shared memory: nothing here orders ordinary stores to global memory with copies of the same kernel that read them.
public enum BulkCopy: Hashable, Sendable {
  /// A box of a tensor, the coordinates of its first element innermost first, to shared memory.
  case loadTensor(
    map: RegisterID, coordinates: RegisterList, destination: RegisterID, barrier: RegisterID, multicast: RegisterID?,
    policy: RegisterID?)
  /// A box from shared memory to a tensor; what lies outside is dropped.
  case storeTensor(map: RegisterID, coordinates: RegisterList, source: RegisterID, policy: RegisterID?)
  /// The same, added to what is there, in the map's type.
  case addTensor(map: RegisterID, coordinates: RegisterList, source: RegisterID)
  /// So many bytes, a multiple of 16, from global to shared memory.
  case load(
    byteCount: Operand, source: RegisterID, destination: RegisterID, barrier: RegisterID, multicast: RegisterID?)
  /// So many bytes from shared to global memory.
  case store(byteCount: Operand, source: RegisterID, destination: RegisterID)
  /// So many bytes of f32, added to what is there.
  case add(byteCount: Operand, source: RegisterID, destination: RegisterID)
  /// Makes a group of this thread's stores since the last.
  case commit
  /// Waits until at most `pending` of this thread's newest groups are under way: until their sources have been read, or
  /// until all is written.
  case waitGroup(pending: UInt8, isRead: Bool)
  /// Fetches a tensor map, which a copy will need soon.
  case prefetchMap(map: RegisterID)
  /// What L2 should do with what is copied.
  case makePolicy(Policy, d: RegisterID)

  /// How long L2 should keep something.
  public enum Policy: String, Hashable, Sendable, CaseIterable {
    /// Read once: the first to go.
    case evictFirst = "evict_first"
    /// Read again and again: the last to go.
    case evictLast = "evict_last"
  }

  func text(_ name: TextNames) -> String {
    func box(_ map: RegisterID, _ coordinates: RegisterList) -> String { "[\(name(map)), \(name(coordinates))]" }
    func list(_ parts: [String?]) -> String { parts.compactMap { $0 }.joined(separator: ", ") }
    func place(_ address: RegisterID) -> String { "[\(name(address))]" }
    switch self {
    case .loadTensor(let map, let coordinates, let destination, let barrier, let multicast, let policy):
      return "cp.async.bulk.tensor.\(coordinates.count)d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        + (multicast == nil ? "" : ".multicast::cluster") + (policy == nil ? "" : ".L2::cache_hint") + " "
        + list([
          place(destination), box(map, coordinates), place(barrier), multicast.map { name($0) },
          policy.map { name($0) },
        ])
    case .storeTensor(let map, let coordinates, let source, let policy):
      return "cp.async.bulk.tensor.\(coordinates.count)d.global.shared::cta.tile.bulk_group"
        + (policy == nil ? "" : ".L2::cache_hint") + " "
        + list([box(map, coordinates), place(source), policy.map { name($0) }])
    case .addTensor(let map, let coordinates, let source):
      return "cp.reduce.async.bulk.tensor.\(coordinates.count)d.global.shared::cta.add.tile.bulk_group "
        + list([box(map, coordinates), place(source)])
    case .load(let byteCount, let source, let destination, let barrier, let multicast):
      return "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
        + (multicast == nil ? "" : ".multicast::cluster") + " "
        + list([
          place(destination), place(source), name(byteCount, .u32), place(barrier), multicast.map { name($0) },
        ])
    case .store(let byteCount, let source, let destination):
      return "cp.async.bulk.global.shared::cta.bulk_group "
        + list([place(destination), place(source), name(byteCount, .u32)])
    case .add(let byteCount, let source, let destination):
      return "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 "
        + list([place(destination), place(source), name(byteCount, .u32)])
    case .commit: return "cp.async.bulk.commit_group"
    case .waitGroup(let pending, let isRead): return "cp.async.bulk.wait_group\(isRead ? ".read" : "") \(pending)"
    case .prefetchMap(let map): return "prefetch.tensormap \(place(map))"
    case .makePolicy(let policy, let d): return "createpolicy.fractional.L2::\(policy.rawValue).b64 \(name(d)), 1.0"
    }
  }
}

extension BulkCopy {
  func mapOperands(_ change: (Operand) -> Operand) -> BulkCopy {
    switch self {
    case .load(let byteCount, let source, let destination, let barrier, let multicast):
      .load(
        byteCount: change(byteCount), source: source, destination: destination, barrier: barrier, multicast: multicast)
    case .store(let byteCount, let source, let destination):
      .store(byteCount: change(byteCount), source: source, destination: destination)
    case .add(let byteCount, let source, let destination):
      .add(byteCount: change(byteCount), source: source, destination: destination)
    case .loadTensor, .storeTensor, .addTensor, .commit, .waitGroup, .prefetchMap, .makePolicy: self
    }
  }
}
