public import Attention
public import PTX

/// What the text of a decode kernel is made from, and the key that it is cached by. Lengths, strides, pointers, pages and
/// counts are launch values, or are read by the kernel from the GPU's memory.
public struct DecodeSpecialization: Hashable, Sendable {
  /// The type of Q, P and O, and of K and V as they are multiplied.
  public var inputs: Matrix.Inputs
  /// The type of K and V in memory.
  public var cache: Cache
  /// D, a multiple of 8.
  public var dimension: Int
  /// D_v, a multiple of 8.
  public var valueDimension: Int
  /// Query heads that share a key/value head; they are packed into the rows of a tile.
  public var groupSize: Int
  /// Which edges of the mask there are.
  public var mask: MaskEdges
  /// Whether scores pass through a softcap.
  public var hasSoftcap: Bool
  /// Whether the scale is below zero.
  public var isScaleNegative: Bool
  /// How the cache is found.
  public var paging: Paging
  /// Whether sequences begin somewhere inside their caches.
  public var hasLeftPadding: Bool
  /// Whether queries are packed, a sequence behind the other.
  public var hasPackedQueries: Bool
  /// Whether the call brings keys.
  public var hasNewKeys: Bool
  /// Whether numbers are multiplied by scales for each sequence and head.
  public var hasScales: Bool
  /// Whether units are cut into splits of a fixed length.
  public var hasFixedSplits: Bool
  /// Whether another launch must be waited for, which brings keys or turns queries.
  public var waitsForPreparation: Bool
  /// How the work is cut.
  public var tiling: DecodeTiling
  /// Who puts the parts of a unit together.
  public var combination: Combination

  /// Who puts together what several blocks made of one unit.
  public enum Combination: Hashable, Sendable {
    /// The last of them, in the same launch: for few parts.
    case lastBlock
    /// A launch behind, in which many blocks take a row each.
    case secondLaunch
    /// The same, begun while the first still runs; from sm_90 on.
    case dependentLaunch
    /// Nobody here: the results of splits of a fixed length are left to the caller.
    case caller

    /// Whether a second launch does.
    var hasLaunch: Bool { self == .secondLaunch || self == .dependentLaunch }

    var name: String {
      switch self {
      case .lastBlock: ""
      case .secondLaunch: "_parts"
      case .dependentLaunch: "_parts_first"
      case .caller: "_parts_left"
      }
    }
  }

  /// Where a key of a sequence is in the cache.
  public enum Paging: Hashable, Sendable {
    /// In the row of its number.
    case none
    /// On pages whose size is a multiple of the keys that a warp takes at a time: one look into the table for all of them.
    case wholeSteps
    /// On pages of any size: each row is looked up.
    case anyPage
    /// In the row of its number behind its sequence's first row: packed.
    case packed
  }

  /// What K and V are in memory.
  public enum Cache: Hashable, Sendable {
    /// What they are multiplied as.
    case sameType
    /// e4m3, converted by the GPU (from sm_89 on) or by arithmetic.
    case e4m3(hasConversion: Bool)
  }

  /// What a problem needs, computed with a tiling.
  public init(
    _ problem: CachedAttentionProblem, inputs: Matrix.Inputs, tiling: DecodeTiling, target: Target = .sm90,
    combination: Combination = .lastBlock
  ) {
    self.combination = combination
    self.inputs = inputs
    cache = problem.cacheType == .e4m3 ? .e4m3(hasConversion: target >= .sm89) : .sameType
    hasPackedQueries = problem.packedQueries != nil
    hasNewKeys = problem.newKeys != nil
    hasScales = problem.cacheType == .e4m3 || problem.queryType == .e4m3
    hasFixedSplits = problem.keysPerSplit != nil
    let preparation = PreparationKernel.Specialization(problem, inputs: inputs, isOvertaken: target >= .sm90)
    waitsForPreparation = preparation?.isOvertaken ?? false
    (dimension, valueDimension) = (problem.dimension, problem.valueDimension)
    groupSize = problem.groupSize
    mask = MaskEdges(problem.mask)
    // With one query, causal hides nothing.
    if let right = problem.mask.reach.right, right >= problem.queries - 1, problem.mask.chunk == nil {
      mask.remove(.right)
    }
    hasSoftcap = problem.softcap != nil
    isScaleNegative = problem.scale < 0 && problem.softcap == nil
    hasLeftPadding = problem.hasLeftPadding
    self.tiling = tiling
    paging =
      switch problem.cache {
      case .contiguous: .none
      case .packed: .packed
      case .paged(_, let pageSize, _):
        pageSize % tiling.keysPerStep == 0 && !problem.hasLeftPadding ? .wholeSteps : .anyPage
      }
  }

  /// The entry point's name.
  public var name: String {
    var name = "decode_\(inputs.rawValue)"
    if case .e4m3(let hasConversion) = cache { name += hasConversion ? "_e4m3" : "_e4m3computed" }
    name += "_d\(dimension)"
    if valueDimension != dimension { name += "_v\(valueDimension)" }
    if groupSize > 1 { name += "_group\(groupSize)" }
    name += mask.name
    if hasSoftcap { name += "_softcap" }
    if isScaleNegative { name += "_negative" }
    if hasLeftPadding { name += "_padded" }
    switch paging {
    case .none: break
    case .wholeSteps: name += "_pages"
    case .anyPage: name += "_any_pages"
    case .packed: name += "_packed"
    }
    if hasPackedQueries { name += "_queries" }
    if hasNewKeys { name += "_new" }
    if hasScales { name += "_scaled" }
    if hasFixedSplits { name += "_fixed" }
    if waitsForPreparation { name += "_waits" }
    return name + "_" + tiling.name + combination.name
  }
}

/// How a decode kernel cuts its work: rows (queries x group) over some warps, the keys of a tile over others.
public struct DecodeTiling: Hashable, Sendable {
  /// Warps that have different rows and the same keys.
  public var rowWarps: Int
  /// Groups of warps that have different keys and the same rows.
  public var keyGroups: Int
  /// Keys that a group takes at a time, a multiple of 16.
  public var keysPerStep: Int
  /// Steps of K and V that a group has in shared memory at once, 2 or more.
  public var stages: Int
  /// Blocks that should fit a multiprocessor.
  public var blocksPerMultiprocessor: Int
  /// Whether the fragments of Q stay in registers.
  public var keepsQueries: Bool

  /// A tiling of the given sizes.
  public init(
    rowWarps: Int = 1, keyGroups: Int = 4, keysPerStep: Int = 16, stages: Int = 3,
    blocksPerMultiprocessor: Int = 2, keepsQueries: Bool = true
  ) {
    (self.rowWarps, self.keyGroups) = (rowWarps, keyGroups)
    (self.keysPerStep, self.stages, self.blocksPerMultiprocessor) = (keysPerStep, stages, blocksPerMultiprocessor)
    self.keepsQueries = keepsQueries
  }

  /// Packed query rows of a block.
  public var rows: Int { rowWarps * 16 }
  /// Warps of a block.
  public var warps: Int { rowWarps * keyGroups }
  /// Threads of a block.
  public var threads: Int { warps * 32 }
  /// Threads that copy and read the same keys.
  var groupThreads: Int { rowWarps * 32 }
  /// Keys of a tile, the unit of sharing out work.
  public var tileKeys: Int { keyGroups * keysPerStep }

  var name: String {
    "\(rows)x\(tileKeys)_groups\(keyGroups)_stages\(stages)" + (keepsQueries ? "_q" : "")
  }
}

extension DecodeTiling: CustomStringConvertible {
  /// The cut in words.
  public var description: String {
    "tiles of \(rows) rows x \(tileKeys) keys, \(keyGroups) groups of \(rowWarps) "
      + "\(rowWarps == 1 ? "warp" : "warps") with \(keysPerStep) keys each, \(stages) stages"
  }
}

/// Where everything lies in the shared memory of a decode kernel.
///
///     Q | group 0: K V | K V | ... | group 1: K V | ... | numbers of rows and groups
///     Q | O of group 0 | O of group 1 | ...                  at the end of a piece of work
struct DecodeMemoryPlan: Hashable, Sendable {
  /// Those of K and V count pairs of bytes as elements where the cache is e4m3.
  let queries, keys, values: SharedTile
  private let tiling: DecodeTiling
  /// f32 words from a row of O to the next: so many that neighbouring rows begin 8 banks apart, or 16.
  let rowWords: Int

  init(_ s: DecodeSpecialization) {
    tiling = s.tiling
    queries = SharedTile(rows: tiling.rows, columns: s.dimension)
    let perElement = s.cache == .sameType ? 1 : 2
    keys = SharedTile(rows: tiling.keysPerStep, columns: s.dimension / perElement)
    values = SharedTile(rows: tiling.keysPerStep, columns: s.valueDimension / perElement)
    // Lanes store two neighbouring columns of O, or four.
    rowWords =
      s.cache == .sameType ? (s.valueDimension + 23) / 32 * 32 + 8 : (s.valueDimension + 15) / 32 * 32 + 16
  }

  var ringOffset: Int { queries.byteCount }
  /// From a stage of a group to the next.
  var stageByteCount: Int { keys.byteCount + values.byteCount }
  /// From a group's ring to the next group's.
  var groupByteCount: Int { tiling.stages * stageByteCount }
  /// From O of a group to that of the next.
  var outputByteCount: Int { tiling.rows * rowWords * 4 }
  /// `[2 (maxima, sums), group, row]`, f32; and a word behind.
  var statisticsOffset: Int {
    ringOffset + tiling.keyGroups * max(groupByteCount, outputByteCount)
  }
  var statisticsByteCount: Int { tiling.keyGroups * tiling.rows * 4 }
  /// A word that one thread tells the others.
  var wordOffset: Int { statisticsOffset + 2 * statisticsByteCount }
  var byteCount: Int { wordOffset + 16 }
}
