public import Attention
public import PTX

/// What the text of a forward kernel is made from, and the key that it is cached by. Lengths, strides, pointers, scale and
/// counts are not here: they are launch values, so that one kernel serves all of them.
public struct ForwardSpecialization: Hashable, Sendable {
  /// The type of Q, K, V and O.
  public var inputs: Matrix.Inputs
  /// D, a multiple of 8.
  public var dimension: Int
  /// D_v, a multiple of 8.
  public var valueDimension: Int
  /// Query heads that share a key/value head; they are packed into the rows of a tile.
  public var groupSize: Int
  /// Which edges of the mask there are.
  public var mask: MaskEdges
  /// Whether scores pass through `cap * tanh(score / cap)`.
  public var hasSoftcap: Bool
  /// Whether the scale is below zero: the kernel then negates Q, so that a row's largest score is its largest product.
  public var isScaleNegative: Bool
  /// How the work is cut.
  public var tiling: ForwardTiling

  /// The sides on which a mask may hide keys that exist.
  public struct MaskEdges: OptionSet, Hashable, Sendable {
    /// One bit a side.
    public let rawValue: UInt8
    /// The sides by their bits.
    public init(rawValue: UInt8) { self.rawValue = rawValue }
    /// Keys too far before the diagonal.
    public static let left = MaskEdges(rawValue: 1)
    /// Keys too far behind the diagonal.
    public static let right = MaskEdges(rawValue: 2)
  }

  /// What a problem needs, computed with a tiling.
  public init(_ problem: AttentionProblem, inputs: Matrix.Inputs, tiling: ForwardTiling) {
    self.inputs = inputs
    dimension = problem.dimension
    valueDimension = problem.valueDimension
    groupSize = problem.groupSize
    let (left, right) = problem.mask.reach
    mask = (left == nil ? [] : MaskEdges.left).union(right == nil ? [] : .right)
    hasSoftcap = problem.softcap != nil
    isScaleNegative = problem.scale < 0 && problem.softcap == nil
    self.tiling = tiling
  }

  /// Columns of a row of Q and K in shared memory: D up to the next k step of the tensor cores, zeros beyond D.
  public var paddedDimension: Int { (dimension + 15) / 16 * 16 }

  /// Columns of O that a warp computes: D_v, or where warps share rows, its part, in whole panels.
  var columnsPerWarp: Int {
    let warps = tiling.columnWarps
    return warps == 1 ? valueDimension : (valueDimension + 64 * warps - 1) / (64 * warps) * 64
  }

  /// The entry point's name.
  public var name: String {
    var name = "attention_\(inputs.rawValue)_d\(dimension)"
    if valueDimension != dimension { name += "_v\(valueDimension)" }
    if groupSize > 1 { name += "_group\(groupSize)" }
    if mask.contains(.left) { name += "_left" }
    if mask.contains(.right) { name += "_right" }
    if hasSoftcap { name += "_softcap" }
    if isScaleNegative { name += "_negative" }
    return name + "_" + tiling.name
  }
}

/// How a forward kernel cuts its work: rows of queries over warps, keys into tiles.
public struct ForwardTiling: Hashable, Sendable {
  /// What the warps of a block divide.
  public enum WarpTiling: Hashable, Sendable {
    /// The rows: each warp has rows of its own ("split-Q").
    case queries
    /// Rows, and the keys of a tile and columns of O: this many warps share rows, exchange maxima and weights through
    /// shared memory, and each has a part of O's columns ("split-KV" of FlashAttention 1). For head dimensions whose O does
    /// not fit the registers of a warp.
    case queriesAndKeys(columns: Int)
  }

  /// Warps of a block.
  public var warps: Int
  /// What they divide.
  public var warpTiling: WarpTiling
  /// 16-row tiles of a warp: with 2, each fragment of K and V that is read from shared memory is used twice.
  public var rowTilesPerWarp: Int
  /// Keys of a tile, a multiple of 16.
  public var tileKeys: Int
  /// Tiles of K and V in shared memory at once, 2 or more.
  public var stages: Int
  /// Whether the fragments of Q stay in registers, or are read again for each tile.
  public var keepsQueries: Bool
  /// Blocks that should fit a multiprocessor; it bounds the registers.
  public var blocksPerMultiprocessor: Int

  /// A tiling of the given sizes.
  public init(
    warps: Int = 4, warpTiling: WarpTiling = .queries, rowTilesPerWarp: Int = 2, tileKeys: Int = 64, stages: Int = 2,
    keepsQueries: Bool = true,
    blocksPerMultiprocessor: Int = 2
  ) {
    self.warps = warps
    self.warpTiling = warpTiling
    self.rowTilesPerWarp = rowTilesPerWarp
    self.tileKeys = tileKeys
    self.stages = stages
    self.keepsQueries = keepsQueries
    self.blocksPerMultiprocessor = blocksPerMultiprocessor
  }

  /// Packed query rows of a block.
  public var rows: Int { warps / columnWarps * rowsPerWarp }
  /// Warps that share rows.
  var columnWarps: Int { if case .queriesAndKeys(let columns) = warpTiling { columns } else { 1 } }
  /// Keys of a tile whose scores a warp computes.
  var keysPerWarp: Int { tileKeys / columnWarps }
  /// Packed query rows of a warp.
  public var rowsPerWarp: Int { rowTilesPerWarp * 16 }
  /// Threads of a block.
  public var threads: Int { warps * 32 }

  /// The keys of a tile in the pieces that scores are computed in: enough for eight independent products. Q that is read
  /// again is read for all keys at once.
  var scorePieces: [Range<Int>] {
    let enough = 64 / rowTilesPerWarp
    let piece = !keepsQueries ? keysPerWarp : keysPerWarp % enough == 0 ? enough : 16
    return stride(from: 0, to: keysPerWarp, by: piece).map { $0..<$0 + piece }
  }

  /// Registers that a thread may take, so that as many blocks fit as planned: of 65536 a multiprocessor, in eights, 255 at
  /// most.
  public var registerBudget: Int { min(255, 65536 / (threads * blocksPerMultiprocessor) / 8 * 8) }

  var name: String {
    "\(rows)x\(tileKeys)_warps\(warps)" + (columnWarps == 1 ? "_stages\(stages)" : "_columns\(columnWarps)")
      + (keepsQueries ? "_q" : "")
  }
}

extension ForwardTiling: CustomStringConvertible {
  /// The cut in words.
  public var description: String {
    "tiles of \(rows) rows x \(tileKeys) keys, \(warps) warps, "
      + (columnWarps == 1 ? "\(stages) stages" : "\(columnWarps) of them sharing rows") + ", Q in "
      + (keepsQueries ? "registers" : "shared memory")
  }
}
