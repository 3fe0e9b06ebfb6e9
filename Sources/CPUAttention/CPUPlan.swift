public import Attention
internal import CPUMicrokernels

/// How a problem is computed on the CPU: every choice, made once.
///
/// The query rows that share a key/value head are packed (row r is query `r / group`, head `r % group` of the group),
/// cut into blocks, and each block walks over its keys tile by tile. A unit of work is one block of one
/// (batch, key/value head), or one part of its keys; with few rows of heads whose keys lie side by side, a block each of
/// several heads.
public struct CPUPlan: Sendable {
  /// What lies across the vector lanes.
  public enum Path: String, Sendable {
    /// Query rows across vector lanes; for many rows.
    case panels
    /// As panels, on products of bfloat16 pairs.
    case pairPanels
    /// The head dimension across vector lanes; for few rows over many keys.
    case rows
    /// As rows, on products of bfloat16 pairs.
    case pairRows

    /// Whether the head dimension lies across the lanes.
    var isRows: Bool { self == .rows || self == .pairRows }
  }

  /// Head dimensions are multiples of this.
  public static let dimensionMultiple = 8
  /// More threads than any machine has; a bound for what follows from their number.
  static let threadsAtMost = 4096
  /// The largest head dimension; the scratch memory of a thread grows with it.
  public static let dimensionLimit = Int(FA_MAX_DIMENSION)

  /// What is computed.
  public let problem: AttentionProblem
  /// The vectors in use.
  public let instructionSet: InstructionSet
  /// What lies across the lanes.
  public let path: Path
  /// Threads at most.
  public let threads: Int
  /// Packed rows of a block.
  public let blockRows: Int
  /// Keys of a tile.
  public private(set) var tileKeys: Int
  /// Parts that the keys of a block are divided into, computed apart and combined by their log-sum-exps.
  public private(set) var keySplits: Int
  /// Key/value heads that a unit reads together, tile by tile.
  private(set) var headsTogether = 1

  /// - Throws: `AttentionError.dimension` where a head dimension is not a multiple of 8 up to 1024.
  public init(
    _ problem: AttentionProblem, threads: Int = WorkerTeam.processors, instructionSet: InstructionSet = .best
  ) throws(AttentionError) {
    try self.init(problem, hasBytes: false, threads: threads, instructionSet: instructionSet)
  }

  /// - Parameter hasBytes: whether some tensors are of e4m3, and not of the problem's type.
  package init(
    _ problem: AttentionProblem, hasBytes: Bool, threads: Int, instructionSet: InstructionSet = .best
  ) throws(AttentionError) {
    for (tensor, value) in [("queries and keys", problem.dimension), ("values", problem.valueDimension)] {
      guard value % Self.dimensionMultiple == 0 && value <= Self.dimensionLimit else {
        throw .dimension(
          tensor: tensor, value: value, path: "CPU path", multiple: Self.dimensionMultiple,
          limit: Self.dimensionLimit)
      }
    }
    self.problem = problem
    self.instructionSet = instructionSet
    self.threads = min(max(1, threads), Self.threadsAtMost)

    let functions = instructionSet.functions
    let hasPairs = problem.scalarType == .bf16 && instructionSet.hasPairs
    let rows = problem.groupSize * problem.queries
    let dimensions = problem.dimension + problem.valueDimension
    if rows <= PackedRows.fewRows {
      // Pairs take e4m3, too, whose numbers bf16 has.
      let pairs = Int(functions.pointee.pair_rows)
      path = hasPairs && pairs > 0 && rows <= pairs ? .pairRows : .rows
      blockRows = max(rows, 1)
      // Long enough that the cost of a tile's beginning and end is small; measured best of 16 to 256 at D 128
      // (Zen 5, 2026-11-21); and no longer than rows of pairs take.
      tileKeys = dimensions <= 256 ? Int(FA_PAIR_ROW_KEYS) : 64
    } else {
      path = hasPairs && !hasBytes ? .pairPanels : .panels
      // Products of tiles are short where they begin and end with sums in memory and with V packed column by column: of four times as many
      // keys and twice as many rows, as long as all threads have blocks, they are 1.3 to 1.5 times as fast (Intel Xeon, 2026-11-30,
      // Documentation/Benchmarks.md, "AMX").
      let hasTiles = path == .pairPanels && instructionSet.hasTiles
      let heads = problem.batch * problem.keyValueHeads
      let isLong = hasTiles && heads * ((rows + 383) / 384) >= 2 * self.threads
      // Panels of a block share each staged tile; Q and O of all of them stay within 320 KB, or 640.
      let (most, room) = isLong ? (384, 640 * 1024) : (192, 320 * 1024)
      let panelRows = instructionSet.lanes * instructionSet.panelVectors
      let panels = max(1, min(most / panelRows, room / (dimensions * panelRows * 4)))
      let blocks = (rows + panels * panelRows - 1) / (panels * panelRows)
      // Blocks of equal size, whole vectors each.
      let even = (rows + blocks - 1) / blocks
      blockRows = (even + instructionSet.lanes - 1) / instructionSet.lanes * instructionSet.lanes
      // A staged K and V tile of f32 stays within 128 KB, and so within the L2 cache beside the panels.
      let keys = dimensions <= 512 ? 64 : dimensions <= 1024 ? 32 : 16
      tileKeys = hasTiles ? 4 * keys : keys
    }

    keySplits = 1
    keySplits = splits(units: problem.batch * problem.keyValueHeads * blocks)
  }

  /// Into how many parts keys are divided: where there are too few units to keep the threads busy, but into parts worth a
  /// thread's waking up.
  private func splits(units: Int) -> Int {
    let enough = (path.isRows ? 16 : 2) * threads
    return units == 0 || units >= enough ? 1 : min((enough + units - 1) / units, max(1, problem.keys / 512))
  }

  /// The same where keys and values lie as they do. Rows of a head that are not neighbours in memory, because those of other
  /// heads lie between them, are read with these: a few keys of some heads, then of the next keys. Memory then sees one
  /// stream, instead of a line here and there, two rows to a page (Documentation/Benchmarks.md, "Caches").
  func reading(_ keys: KeyRows, _ values: KeyRows) -> CPUPlan {
    guard path.isRows && keys.headsAreBetweenRows && values.headsAreBetweenRows else { return self }
    var together = self
    let heads = problem.keyValueHeads
    var most = Self.headsTogether(problem, keys.scalarType)
    repeat {
      // As even as they get: the last may have less.
      let groups = (heads + most - 1) / most
      together.headsTogether = groups == 0 ? 1 : (heads + groups - 1) / groups
      together.keySplits = splits(units: problem.batch * together.headGroups)
      most = together.headsTogether / 2
    } while most > 1 && together.units < threads
    if together.headsTogether == 1 || together.units < threads { return self }
    together.tileKeys = keysOfHeads
    return together
  }

  /// Keys of a tile of heads that are read together: 8 to 64 were measured (Zen 4, with AVX-512 and AVX2, 2026-11-30:
  /// Documentation/Benchmarks.md, "Caches").
  private var keysOfHeads: Int { path == .pairRows || asksFar ? 32 : 16 }

  /// Whether rows of K are asked for while K of what goes before is at work, and V while V is; otherwise V while K of the same is, and K
  /// while V of what goes before is.
  var asksFar: Bool { fa_prefetches_far(Int32(problem.scalarType.byteCount)) != 0 }

  /// Heads of which a key is 4 KB, a page of memory.
  private static func headsTogether(_ problem: AttentionProblem, _ type: ScalarType) -> Int {
    max(1, min(problem.keyValueHeads, 4096 / (max(problem.dimension, problem.valueDimension) * type.byteCount)))
  }

  /// Groups of the heads that are read together, the last of which may have less.
  var headGroups: Int { (problem.keyValueHeads + headsTogether - 1) / headsTogether }

  /// Operations, with those on pairs that a panel computes for some of its rows alone: of a mask, half a panel's rows for each query,
  /// unless these were all pairs.
  var computedFlops: Double {
    let panelRows = min(blockRows, path.isRows ? 1 : instructionSet.lanes * instructionSet.panelVectors)
    let all = Double(problem.queries) * Double(problem.keys)
    let visible = problem.visiblePairs
    let pairs = min(all, visible + Double(problem.queries * panelRows) / Double(2 * problem.groupSize))
    return visible == 0 ? 0 : problem.flops * pairs / visible
  }

  /// Blocks of one (batch, key/value head).
  var blocks: Int { (problem.groupSize * problem.queries + blockRows - 1) / blockRows }

  /// Units of work: (batch, group of key/value heads, block, split).
  var units: Int { problem.batch * headGroups * blocks * keySplits }
}

extension CPUPlan: CustomStringConvertible {
  /// All choices in one line.
  public var description: String {
    let how =
      switch path {
      case .panels: "queries across lanes"
      case .pairPanels: "queries across lanes, bfloat16 \(instructionSet.hasTiles ? "tiles" : "pairs")"
      case .rows: "dimension across lanes (few query rows)"
      case .pairRows: "dimension across lanes (few query rows), bfloat16 pairs"
      }
    let splits = keySplits == 1 ? "" : ", keys split \(keySplits) ways"
    let most = path.isRows ? Self.headsTogether(problem, problem.scalarType) : 1
    let together =
      headsTogether > 1
      ? ", those of \(headsTogether) heads together"
      : most == 1 ? "" : ", or of \(keysOfHeads) keys of up to \(most) heads where these lie side by side"
    return "CPU, \(instructionSet.name), \(WorkerTeam.description(threads: threads)): \(how), "
      + "blocks of \(blockRows) rows, tiles of \(tileKeys) keys\(together)\(splits)\(Self.debugWarning)"
  }

  /// For a plan of sequences with lengths of their own, each of which gets a plan of this kind when it runs.
  package static func ofSequences(_ how: String, threads: Int) -> String {
    "CPU, \(InstructionSet.best.name), \(WorkerTeam.description(threads: threads)), \(how)\(debugWarning)"
  }

  /// A word of warning where the compiler was told not to optimize.
  package static var debugWarning: String {
    #if DEBUG
      "\nThis is a debug build, in which the CPU's kernels are many times slower: build with -c release."
    #else
      ""
    #endif
  }
}
