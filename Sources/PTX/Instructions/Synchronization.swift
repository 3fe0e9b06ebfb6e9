/// Barriers, fences and the order of launches (sections 9.7.13.1 to 9.7.13.4 and 9.7.13.13).
public enum Synchronization: Hashable, Sendable {
  /// Waits for the threads of the block, or for `threads` of them, at barrier `id`.
  case barrier(id: Operand, threads: UInt16?)
  /// Counts this warp's threads at barrier `id` without waiting.
  case arrive(id: Operand, threads: UInt16)
  /// Waits for the lanes of the warp and orders their memory accesses.
  case warpBarrier
  /// Orders this thread's accesses of the block's shared memory by ordinary instructions before with those after of the
  /// asynchronous proxy, that is of the copy engine and `wgmma`, and the other way round (section 9.7.13.4, fence.proxy.async). Of
  /// all state spaces, not this one alone, ptxas makes it wait for the whole GPU's memory (`MEMBAR.ALL.GPU`).
  case proxyFence
  /// Lets the cluster, and the copy engine, see transaction barriers that this thread made.
  case barrierInitializationFence
  /// Counts this thread at the barrier of its cluster (section 9.7.13.3, barrier.cluster).
  case clusterArrive
  /// Waits for all threads of the cluster.
  case clusterWait
  /// Orders this thread's accesses before and after, for the threads of a scope.
  case fence(Scope)
  /// The launch behind this one may begin (section 9.7.13.13, griddepcontrol).
  case launchDependents
  /// Waits until the launch before this one has ended and its memory can be seen; the same section.
  case waitForPrerequisites

  /// The threads that a fence speaks to.
  public enum Scope: String, Hashable, Sendable, CaseIterable {
    case block = "cta"
    case device = "gpu"
  }

  func text(_ name: TextNames) -> String {
    switch self {
    case .barrier(let id, let threads): "bar.sync \(name(id, .u32))\(threads.map { ", \($0)" } ?? "")"
    case .arrive(let id, let threads): "bar.arrive \(name(id, .u32)), \(threads)"
    case .warpBarrier: "bar.warp.sync 0xffffffff"
    case .fence(let scope): "fence.acq_rel.\(scope.rawValue)"
    case .proxyFence: "fence.proxy.async.shared::cta"
    case .barrierInitializationFence: "fence.mbarrier_init.release.cluster"
    case .clusterArrive: "barrier.cluster.arrive.release.aligned"
    case .clusterWait: "barrier.cluster.wait.acquire.aligned"
    case .launchDependents: "griddepcontrol.launch_dependents"
    case .waitForPrerequisites: "griddepcontrol.wait"
    }
  }
}
