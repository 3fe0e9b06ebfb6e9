package import Attention
internal import PTX

extension Matrix.Inputs {
  /// - Throws: `AttentionError.typeOnDevice` for f32.
  init(of type: ScalarType) throws(AttentionError) {
    switch type {
    case .f16: self = .f16
    case .bf16: self = .bf16
    case .f32, .e4m3: throw .typeOnDevice(type, device: "GPU", possible: "f16 and bf16")
    }
  }
}

/// What every kernel here asks of a problem.
extension GPULimits {
  /// Head dimensions are multiples of this: 16 bytes.
  static let dimensionMultiple = 8
  /// The most queries times group, and the most keys: positions are 32-bit numbers with a sign, and differences of two
  /// must be too.
  static let lengthLimit = 1 << 30

  /// - Throws: `AttentionError.dimension` for head dimensions that are no multiples of 16 bytes, or beyond the limit.
  static func check(dimension: Int, valueDimension: Int, path: String, limit: Int) throws(AttentionError) {
    for (tensor, value) in [("queries and keys", dimension), ("values", valueDimension)] {
      guard value % dimensionMultiple == 0 && value <= limit else {
        throw .dimension(tensor: tensor, value: value, path: path, multiple: dimensionMultiple, limit: limit)
      }
    }
  }

  /// - Throws: `AttentionError.dimension` for a cache of bytes whose rows are no multiples of 16 bytes.
  static func check(bytesOf problem: AttentionProblem, limit: Int) throws(AttentionError) {
    if problem.cacheType != .e4m3 { return }
    for (tensor, value) in [("queries and keys", problem.dimension), ("values", problem.valueDimension)]
    where value % 16 != 0 {
      throw .dimension(tensor: tensor, value: value, path: "GPU path over e4m3 caches", multiple: 16, limit: limit)
    }
  }

  /// - Throws: `AttentionError.lengthOnDevice` for more rows than a grid has threads for.
  package static func check(combining problem: PartialResultsProblem) throws(AttentionError) {
    try check(counts: [
      ("rows x chunks of 4 columns", [problem.rows, problem.dimension / 4]), ("parts", [problem.parts]),
    ])
  }

  /// - Throws: `AttentionError.lengthOnDevice` for rows, sequences or pages that 32-bit numbers in lists have no room
  ///   for.
  static func check(placesOf problem: AttentionProblem) throws(AttentionError) {
    try check(counts: [
      ("batch x heads", [problem.batch, problem.queryHeads]), ("the page size", [problem.pages?.size ?? 1]),
      ("the number of sequences or pages of the cache", [problem.keyShape.batch]),
      ("the number of packed queries", [problem.packedQueries ?? 0]),
      ("the number of packed keys", [problem.hasPackedKeys ? problem.keyShape.length : 0]),
      ("the number of packed new keys", [problem.newKeys?.packedTotal ?? 0]),
    ])
  }

  /// - Throws: `AttentionError.lengthOnDevice` for counts that 32-bit positions have no room for.
  ///
  /// - Parameter counts: products of factors that are 0 or more; they need not fit an `Int`.
  static func check(
    counts: [(what: String, factors: [Int])], limit: Int = lengthLimit
  ) throws(AttentionError) {
    for (what, factors) in counts {
      // Kernels are told the factors, too, whatever the others are.
      let count = max(factors.contains(0) ? 0 : checkedProduct(factors) ?? .max, factors.max() ?? 0)
      if count > limit {
        throw .lengthOnDevice(tensor: what, length: count, device: "GPU", limit: limit)
      }
    }
  }
}
