package import Attention
package import PTX

/// What the text of a decode kernel is made from, and the key that it is cached by. Lengths, strides, pointers, pages
/// and counts are launch values, or are read by the kernel from the GPU's memory; of sequences the text knows whether there are one, up
/// to 32, or more.
package struct DecodeSpecialization: Hashable, Sendable {
  /// The type of Q, P and O, and of K and V as they are multiplied.
  package var inputs: Matrix.Inputs
  /// The type of K and V in memory.
  package var cache: Cache
  /// D, a multiple of 8.
  package var dimension: Int
  /// D_v, a multiple of 8.
  package var valueDimension: Int
  /// Query heads that share a key/value head; they are packed into the rows of a tile.
  package var groupSize: Int
  /// Which edges of the mask there are.
  package var mask: MaskEdges
  /// Whether scores pass through a softcap.
  package var hasSoftcap: Bool
  /// Whether the scale is below zero.
  package var isScaleNegative: Bool
  /// How the cache is found.
  package var paging: Paging
  /// Whether sequences have lengths of their own.
  package var hasLengths: Bool
  /// How many sequences there are.
  package var sequences: Sequences
  /// Whether sequences begin somewhere inside their caches.
  package var hasLeftPadding: Bool
  /// Whether queries are packed, a sequence behind the other.
  package var hasPackedQueries: Bool
  /// Whether the call brings keys.
  package var hasNewKeys: Bool
  /// Whether numbers are multiplied by scales for each sequence and head.
  package var hasScales: Bool
  /// Whether units are cut into splits of a fixed length.
  package var hasFixedSplits: Bool
  /// Whether another launch must be waited for, which brings keys or turns queries.
  package var waitsForPreparation: Bool
  /// The type of attention sinks; nil where there are none.
  package var sinkType: ScalarType?
  /// How the work is cut.
  package var tiling: DecodeTiling
  /// Whether the results of splits are left to the caller.
  package var leavesParts: Bool
  /// Whether a launch may begin before the one in front of it has ended; from sm_90 on.
  package var overlapsLaunches: Bool

  /// How many sequences a warp looks at to find its work.
  package enum Sequences: Hashable, Sendable {
    /// One, of which every lane knows everything; no more than lanes, each of which knows its own; or any number.
    case one, few, many

    var name: String {
      switch self {
      case .one: "_one"
      case .few: ""
      case .many: "_many"
      }
    }
  }

  /// Who puts together what several blocks made of one unit.
  enum Combination: Hashable, Sendable {
    /// The last of them, in the same launch: for few parts.
    case lastBlock
    /// A launch behind, in which many blocks take a row each.
    case secondLaunch
    /// The same, begun while the first still runs.
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

  var combination: Combination {
    if leavesParts { return .caller }
    switch tiling.combination {
    case .lastBlock: return .lastBlock
    case .launchBehind: return overlapsLaunches ? .dependentLaunch : .secondLaunch
    }
  }

  /// Where a key of a sequence is in the cache.
  package enum Paging: Hashable, Sendable {
    /// In the row of its number.
    case none
    /// On pages whose size is a multiple of the keys that a warp takes at a time: one look into the table for all of
    /// them.
    case wholeSteps
    /// On pages of any size: each row is looked up.
    case anyPage
    /// In the row of its number behind its sequence's first row: packed.
    case packed
  }

  /// What K and V are in memory.
  package enum Cache: Hashable, Sendable {
    /// What they are multiplied as.
    case sameType
    /// e4m3, converted by the GPU (from sm_89 on) or by arithmetic.
    case e4m3(hasConversion: Bool)
  }

  /// What a problem needs, computed with a tiling.
  package init(_ problem: AttentionProblem, inputs: Matrix.Inputs, tiling: DecodeTiling, target: Target) {
    self.inputs = inputs
    cache = problem.cacheType == .e4m3 ? .e4m3(hasConversion: target >= .sm89) : .sameType
    sequences = problem.batch == 1 ? .one : problem.batch <= 32 ? .few : .many
    hasPackedQueries = problem.packedQueries != nil
    hasNewKeys = problem.newKeys != nil
    hasScales = problem.cacheType == .e4m3 || problem.queryType == .e4m3
    hasFixedSplits = problem.keysPerSplit != nil
    (leavesParts, overlapsLaunches) = (problem.leavesParts, target >= .sm90)
    let preparation = PreparationKernel.Specialization(problem, inputs: inputs, isOvertaken: overlapsLaunches)
    waitsForPreparation = preparation?.isOvertaken ?? false
    (dimension, valueDimension) = (problem.dimension, problem.valueDimension)
    groupSize = problem.groupSize
    mask = MaskEdges(problem)
    // With one query, causal hides nothing.
    if let right = problem.mask.reach.right, right >= problem.queries - 1, problem.mask.chunk == nil {
      mask.remove(.right)
    }
    hasSoftcap = problem.softcap != nil
    isScaleNegative = problem.scoreUnits.isNegated
    sinkType = problem.sinkType
    (hasLengths, hasLeftPadding) = (!problem.hasWholeKeys, problem.hasLeftPadding)
    self.tiling = tiling
    // Who does, where nobody does, makes no other kernel.
    if leavesParts { self.tiling.combination = .lastBlock }
    paging =
      switch problem.storage {
      case .contiguous, .whole: .none
      case .packed: .packed
      case .paged(_, let pageSize, _):
        pageSize % tiling.keysPerStep == 0 && !problem.hasLeftPadding ? .wholeSteps : .anyPage
      }
  }

  /// Chunks of 4 columns that a row of O is cut into where parts of it meet.
  var outputChunks: Int { valueDimension / 4 }

  /// Parameters that these kernels have beside those of all.
  var parameterParts: ParameterParts { ParameterParts(sinkType: sinkType, mask) }

  /// The entry point's name.
  package var name: String {
    var name = "decode_\(inputs.rawValue)"
    if case .e4m3(let hasConversion) = cache { name += hasConversion ? "_e4m3" : "_e4m3computed" }
    name += "_d\(dimension)"
    if valueDimension != dimension { name += "_v\(valueDimension)" }
    if groupSize > 1 { name += "_group\(groupSize)" }
    name += mask.name
    if hasSoftcap { name += "_softcap" }
    if isScaleNegative { name += "_negative" }
    if !hasLengths { name += "_whole" }
    name += sequences.name
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
    if let sinkType { name += "_sinks_\(sinkType)" }
    return name + "_" + tiling.name + combination.name
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
