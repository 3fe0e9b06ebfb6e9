/// How a decode kernel cuts its work: rows (queries x group) over some warps, the keys of a tile over others.
package struct DecodeTiling: Hashable, Sendable {
  /// Warps that have different rows and the same keys.
  package var rowWarps: Int
  /// Groups of warps that have different keys and the same rows.
  package var keyGroups: Int
  /// Keys that a group takes at a time, a multiple of 16.
  package var keysPerStep: Int
  /// Steps of K and V that a group has in shared memory at once, 2 or more.
  package var stages: Int
  /// Blocks that should fit a multiprocessor.
  package var blocksPerMultiprocessor: Int
  /// Blocks for each place on a multiprocessor, one after the other, which the GPU starts wherever one has ended: where
  /// sequences are alike and have so many units that each block still has whole ones.
  package var waves: Int
  /// Whether the fragments of Q stay in registers.
  package var keepsQueries: Bool
  /// Who puts together what several blocks made of one unit.
  package var combination: Combination

  /// Who puts parts together.
  package enum Combination: String, Hashable, Sendable, CaseIterable {
    /// The last block that has one, which reads all of them: for few parts.
    case lastBlock = "last"
    /// A launch behind with a block for each row, or for some.
    case launchBehind = "behind"
  }

  /// A tiling of the given sizes.
  package init(
    rowWarps: Int = 1, keyGroups: Int = 4, keysPerStep: Int = 16, stages: Int = 3,
    blocksPerMultiprocessor: Int = 2, waves: Int = 1, keepsQueries: Bool = true,
    combination: Combination = .lastBlock
  ) {
    (self.rowWarps, self.keyGroups) = (rowWarps, keyGroups)
    (self.keysPerStep, self.stages, self.blocksPerMultiprocessor) = (keysPerStep, stages, blocksPerMultiprocessor)
    (self.waves, self.keepsQueries, self.combination) = (waves, keepsQueries, combination)
  }

  /// Packed query rows of a block.
  package var rows: Int { rowWarps * 16 }
  /// Warps of a block.
  package var warps: Int { rowWarps * keyGroups }
  /// Threads of a block.
  package var threads: Int { warps * 32 }
  /// Threads that copy and read the same keys.
  var groupThreads: Int { rowWarps * 32 }
  /// Keys of a tile, the unit of sharing out work.
  package var tileKeys: Int { keyGroups * keysPerStep }

  /// Blocks of a grid on a GPU.
  func blocks(on gpu: GPULimits) -> Int { gpu.multiprocessors * blocksPerMultiprocessor * waves }

  var name: String {
    "\(rows)x\(tileKeys)_groups\(keyGroups)_stages\(stages)" + (keepsQueries ? "_q" : "")
      + (waves > 1 ? "_waves\(waves)" : "")
  }
}

extension DecodeTiling: CustomStringConvertible {
  /// The cut in words.
  package var description: String {
    "tiles of \(rows) rows x \(tileKeys) keys, \(keyGroups) groups of \(rowWarps) "
      + "\(rowWarps == 1 ? "warp" : "warps") with \(keysPerStep) keys each, \(stages) stages"
  }
}
