internal import AttentionBenchmarks
internal import AttentionVerification
internal import FlashAttention
internal import TensorFiles

/// `run` over a cache: the tensors of a file that has `cache_lengths`.
struct CacheRun {
  let problem: AttentionProblem
  private let entries: CacheEntries<HostMemory>
  private let queries, keys, values: Tensor

  /// The tensors of a file that say something of its cache, beside `cache_lengths`.
  static var listNames: String { lists.map { "`\($0)`" }.joined(separator: ", ") }
  static let lists = ["page_table", "left_padding", "batch_index", "k_scale", "v_scale"]

  /// - Throws: `TensorFileError` or `AttentionError` where the tensors do not fit each other.
  init(
    _ file: SafetensorsFile, path: String, queries: Tensor, keys: Tensor, values: Tensor, _ options: MaskOptions,
    _ dtype: ScalarType?
  ) throws {
    let type = dtype ?? queries.scalarType
    self.queries = try queries.converted(to: type)
    // e4m3 numbers stay what they are.
    (self.keys, self.values) = (
      keys.scalarType == .e4m3 ? keys : try keys.converted(to: type),
      values.scalarType == .e4m3 ? values : try values.converted(to: type)
    )
    func list(_ name: String) throws -> [Int]? {
      if !file.names.contains(name) { return nil }
      let (extents, values) = try file.integers(name)
      guard extents == [queries.shape.batch] else {
        throw TensorFileError.rank(
          path: path, name: name, extents: extents,
          expected: "one number for each of the \(queries.shape.batch) sequences is needed")
      }
      return values
    }
    func scales(_ name: String) throws -> [Float]? { file.names.contains(name) ? try file.array(name).floats : nil }
    var table: [[Int]]?
    let shape = keys.shape
    var cache = AttentionProblem.KeyStorage.contiguous(sequences: shape.batch, capacity: shape.length)
    if file.names.contains("page_table") {
      let (extents, pages) = try file.integers("page_table")
      guard extents.count == 2, extents[0] == queries.shape.batch else {
        throw TensorFileError.rank(
          path: path, name: "page_table", extents: extents,
          expected: "a row of pages for each of the \(queries.shape.batch) sequences is needed")
      }
      table = (0..<extents[0]).map { Array(pages[$0 * extents[1]..<($0 + 1) * extents[1]]) }
      cache = .paged(pages: shape.batch, pageSize: shape.length, pagesPerSequence: extents[1])
    }
    let padding = try list("left_padding")
    var problem = try AttentionProblem(
      batch: queries.shape.batch, queries: queries.shape.length, queryHeads: queries.shape.heads,
      keyValueHeads: shape.heads, dimension: queries.shape.dimension, valueDimension: values.shape.dimension,
      keys: cache,
      hasLeftPadding: padding != nil, scalarType: type, cacheType: self.keys.scalarType, mask: options.mask,
      scale: options.scale, softcap: options.softcap)
    let ranges = try RunCommand.ranges(file, path: path, batch: queries.shape.batch, queries: queries.shape.length)
    entries = CacheEntries(
      lengths: try list("cache_lengths"), batchIndex: try list("batch_index"), leftPadding: padding, pageTable: table,
      keyScales: try scales("k_scale"), valueScales: try scales("v_scale"),
      sinks: try RunCommand.sinks(file, path: path, heads: queries.shape.heads), ranges: ranges?.numbers)
    (problem.sinkType, problem.ranges) = (entries.sinks == nil ? nil : .f32, ranges?.form)
    self.problem = problem
  }

  /// Computes by a plan of the problem.
  func compute(_ plan: AttentionPlan) throws(AttentionError) -> (result: AttentionResult, seconds: Double) {
    var statistics = [Float](repeating: 0, count: problem.logSumExpCount)
    let begin = ContinuousClock.now
    let output = try Tensor(shape: problem.outputShape, scalarType: problem.scalarType, layout: queries.layout) {
      (o) throws(AttentionError) in
      try statistics.withUnsafeMutableBufferPointer { (lse) throws(AttentionError) in
        try queries.withView { (q) throws(AttentionError) in
          try keys.withView { (k) throws(AttentionError) in
            try values.withView { (v) throws(AttentionError) in
              try plan.run(queries: q, keys: k, values: v, output: o, logSumExp: lse, entries: entries)
            }
          }
        }
      }
    }
    let seconds = (ContinuousClock.now - begin) / .seconds(1)
    return (AttentionResult(output: output, logSumExp: statistics), seconds)
  }

  /// Compares with what is expected, in the order batch, head, query; the allowance is that of a plain computation.
  func compare(
    _ result: AttentionResult, with expected: [Double], isLogSumExp: Bool, isOnGPU: Bool
  ) throws -> Comparison {
    var (reference, plain, other) = ([Double](), [Double](), [Double]())
    for b in 0..<problem.batch {
      let first = entries.firstRow(of: b)
      let one = try problem.sequence(length: max(0, entries.lengths![b] - first))
      func cached(_ tensor: Tensor, _ shape: TensorShape, _ scales: [Float]?) throws -> Tensor {
        try Tensor(shape: shape, scalarType: tensor.scalarType == .e4m3 ? .f32 : tensor.scalarType) { _, h, n, d in
          var (place, row) = (entries.batchIndex?[b] ?? b, n + first)
          if let table = entries.pageTable {
            (place, row) = (table[b][row / tensor.shape.length], row % tensor.shape.length)
          }
          return tensor[place, h, row, d] * (scales?[b * problem.keyValueHeads + h] ?? 1)
        }
      }
      let q = try Tensor(shape: one.queryShape, scalarType: problem.scalarType) { queries[b + $0, $1, $2, $3] }
      let (k, v) = (
        try cached(keys, one.keyShape, entries.keyScales), try cached(values, one.valueShape, entries.valueScales)
      )
      q.withView { q in
        k.withView { k in
          v.withView { v in
            let yardstick = Yardstick(
              one, queries: q, keys: k, values: v, sums: isOnGPU ? .cut : nil, sinks: entries.sinks,
              ranges: entries.ranges(of: b, problem))
            func numbers(_ values: AttentionValues?) -> [Double] {
              values.map { isLogSumExp ? $0.logSumExp : $0.output } ?? []
            }
            reference += numbers(yardstick.reference)
            plain += numbers(yardstick.plain)
            other += numbers(yardstick.other)
          }
        }
      }
    }
    return Comparison(
      actual: isLogSumExp ? result.logSumExp.map(Double.init) : result.output.inHeadOrder, expected: expected,
      plain: plain, other: isOnGPU ? other : nil, reference: reference, type: isLogSumExp ? .f32 : problem.scalarType)
  }
}
