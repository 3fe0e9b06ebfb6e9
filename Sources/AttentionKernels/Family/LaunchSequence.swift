package import PTX

/// What a call launches, one kernel behind the other, and the memory that they work in.
package struct LaunchSequence: Sendable {
  /// The launch of a kernel.
  package struct Launch: Sendable {
    /// What the kernel is made from.
    package let kernel: any KernelSource
    /// Blocks of the grid; one without blocks is left out.
    package let blocks: Int
    /// Threads of a block, and its dynamic shared memory.
    package let threads, sharedByteCount: Int
    /// Registers that a thread may take, so that as many blocks fit a multiprocessor as planned: of 65536, in eights,
    /// 255 at most.
    package let registerBudget: Int
    /// Whether it may begin before the launch in front of it has ended: its kernel then waits where it must.
    package let overtakes: Bool
    /// Gradients of which one at least must be asked for, or it is left out; empty where it never is.
    package let gradients: [CallValue]
    /// The arguments, but for what only a call knows.
    package let arguments: ArgumentTemplate

    package init(
      _ kernel: some KernelSource, blocks: Int, threads: Int, sharedByteCount: Int = 0,
      blocksPerMultiprocessor: Int = 1, overtakes: Bool = false, gradients: [CallValue] = [],
      arguments: ArgumentTemplate
    ) {
      (self.kernel, self.blocks, self.threads, self.sharedByteCount) = (kernel, blocks, threads, sharedByteCount)
      (self.overtakes, self.gradients, self.arguments) = (overtakes, gradients, arguments)
      registerBudget = min(255, 65536 / (threads * blocksPerMultiprocessor) / 8 * 8)
    }

    /// Whether it has something to do in a call.
    package func isNeeded(by call: borrowing KernelCall) -> Bool {
      if gradients.isEmpty { return true }
      return call.wants(gradients)
    }
  }

  /// Whether there are counters but no workspace: a caller need not know of them.
  package var hasOwnCounters: Bool { workspaceByteCount == 0 && counterByteCount > 0 }

  /// In their order.
  package let launches: [Launch]
  /// Which of them computes the attention; of gradients, those of keys and values.
  package let main: Int
  /// Bytes that a call works in; 0 where it needs none.
  package let workspaceByteCount: Int
  /// Bytes of the counters, which are zero between calls; 0 where there are none. They are at the workspace's start, apart
  /// from it, or, without a workspace, the library's own.
  package let counterByteCount: Int
  /// Whether the counters are where those of other such calls are, so that one workspace serves all of them.
  package let sharesWorkspaces: Bool
  /// How the work is shared out over blocks, where the lengths decide; nil where they do not.
  package let sharing: WorkSharing?

  package init(
    _ launches: [Launch], main: Int = 0, workspaceByteCount: Int = 0, counterByteCount: Int = 0,
    sharesWorkspaces: Bool = true, sharing: WorkSharing? = nil
  ) {
    (self.launches, self.main, self.workspaceByteCount) = (launches, main, workspaceByteCount)
    (self.counterByteCount, self.sharesWorkspaces, self.sharing) = (counterByteCount, sharesWorkspaces, sharing)
  }

  /// The same in a workspace, and with counters, that would do for others as well.
  func withRoom(for others: LaunchSequence) -> LaunchSequence {
    LaunchSequence(
      launches, main: main, workspaceByteCount: max(workspaceByteCount, others.workspaceByteCount),
      counterByteCount: max(counterByteCount, others.counterByteCount),
      sharesWorkspaces: sharesWorkspaces && others.sharesWorkspaces, sharing: sharing)
  }

  /// The launch that computes the attention; of gradients, those of keys and values.
  package var attention: Launch { launches[main] }

  /// Calls of up to so many units (batch x key/value heads x blocks of rows) have their counters in the same place of a
  /// workspace.
  package static let sharedUnits = 65536

  /// The room for the counters of so many units.
  static func sharedCounterByteCount(units: Int) -> Int { (max(units, sharedUnits) * 4 + 15) / 16 * 16 }
}
