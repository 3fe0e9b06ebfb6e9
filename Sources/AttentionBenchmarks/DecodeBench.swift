internal import AttentionVerification
package import FlashAttention

/// Measures decoding on a GPU: one cache, large enough for all cases, of numbers that repeat every few megabytes.
package final class DecodeBench {
  /// A case, with all samples.
  package struct Result: Encodable {
    package let problem: String
    package let batch, context, queries, queryHeads, kvHeads, dimension: Int
    package let bytes: Double
    package let seconds: [Double]
    package let floorSeconds: Double
    package let errorRatio: Double?
    package let registers: Int?
    /// The blocks that divide the keys of a sequence.
    package let splits: Int
    /// What others need for the same, where a file of theirs was given: seconds by name.
    package var peers: [String: Double] = [:]
  }

  package let readGigabytesPerSecond: Double
  package let emptySeconds: Double
  /// What a quarter of the L2 cache takes to be read again, and after the eviction.
  package let reading: (again: Double, evicted: Double)
  private let gpu: GPU
  private let probe: GPUProbe
  private let keys, values: GPUBuffer
  /// Numbers that the caches repeat, and how many bytes later V begins in them than K.
  private let block: Tensor
  private let valueShift: Int

  package init(_ plans: [AttentionPlan]) throws {
    gpu = plans[0].gpu!
    probe = try GPUProbe(gpu)
    readGigabytesPerSecond = try probe.readGigabytesPerSecond()
    emptySeconds = try probe.emptyKernelSeconds()
    reading = try probe.reading()
    let type = plans[0].problem.cacheType
    let byteCount = plans.map { $0.problem.keyShape.elementCount * type.byteCount }.max()!
    var random = RandomSource(seed: 2)
    // Not a power of two, so that sequences differ.
    block = try Tensor.normal(
      TensorShape(batch: 1, heads: 1, length: 40009, dimension: 128), type, from: &random)
    valueShift = block.shape.elementCount / 256 * 256
    (keys, values) = (try GPUBuffer(byteCount: byteCount, on: gpu), try GPUBuffer(byteCount: byteCount, on: gpu))
    try block.withBytes { bytes in
      for offset in stride(from: 0, to: byteCount, by: bytes.count) {
        let part = UnsafeRawBufferPointer(rebasing: bytes[..<min(bytes.count, byteCount - offset)])
        try keys.copy(from: part, at: offset)
        // V is another part of the same numbers.
        let shift = valueShift
        let first = UnsafeRawBufferPointer(rebasing: bytes[shift..<min(bytes.count, shift + byteCount - offset)])
        try values.copy(from: first, at: offset)
        let left = min(shift, byteCount - offset - first.count)
        if left > 0 {
          try values.copy(from: UnsafeRawBufferPointer(rebasing: bytes[..<left]), at: offset + first.count)
        }
      }
    }
    try gpu.synchronize()
  }

  /// Whether reading what was evicted takes longer than reading it again.
  package var isEvicted: Bool { reading.evicted > 1.1 * reading.again }

  /// - Parameter isChecked: whether the result stands beside the 64-bit reference, which takes the CPU longer than all
  ///   else.
  package func measure(
    _ plan: AttentionPlan, context: Int, iterations: Int, isChecked: Bool = true
  ) throws -> Result {
    let problem = plan.problem
    try plan.prepare()
    var random = RandomSource(seed: 1)
    let queries = try Tensor.normal(problem.queryShape, problem.scalarType, layout: .bnhd, from: &random)
    func upload<T: BitwiseCopyable>(_ elements: [T]) throws -> GPUBuffer {
      try elements.withUnsafeBytes { bytes in
        let buffer = try GPUBuffer(byteCount: max(bytes.count, 16), on: gpu)
        try buffer.copy(from: bytes)
        return buffer
      }
    }
    let q = try queries.withBytes { bytes in
      let buffer = try GPUBuffer(byteCount: bytes.count, on: gpu)
      try buffer.copy(from: bytes)
      return buffer
    }
    let o = try GPUBuffer(byteCount: problem.outputShape.elementCount * 2, on: gpu)
    let statistics = try GPUBuffer(byteCount: problem.logSumExpCount * 4, on: gpu)
    let newCount = problem.newKeys?.count ?? 0
    // Captured with other lengths than those that it is measured with, but where that would write other keys.
    let lengths = try upload([Int32](repeating: newCount > 0 ? Int32(context - newCount) : 1, count: problem.batch))
    var pageTable: GPUBuffer?
    if let perSequence = problem.pages?.perSequence {
      // Pages in a mixed order.
      var pages = (0..<Int32(problem.batch * perSequence)).map { $0 }
      for i in stride(from: pages.count - 1, to: 0, by: -1) { pages.swapAt(i, random.int(0...i)) }
      pageTable = try upload(pages)
    }
    let workspace = try plan.makeWorkspace()
    func view(_ buffer: GPUBuffer, _ shape: TensorShape, _ type: ScalarType) -> DeviceTensorView {
      DeviceTensorView(address: buffer.address, scalarType: type, shape: shape, layout: .bnhd)
    }
    let type = problem.scalarType
    let entries = CacheEntries<GPUMemory>(lengths: lengths.address, pageTable: pageTable?.address)
    var tensors = AttentionTensors<GPUMemory>(
      queries: view(q, problem.queryShape, type), keys: view(keys, problem.keyShape, problem.cacheType),
      values: view(values, problem.valueShape, problem.cacheType), output: view(o, problem.outputShape, type),
      logSumExp: statistics.address, entries: entries)
    // New keys are the cache's last ones over again, so that what is attended to is known.
    var new: [GPUBuffer] = []
    if newCount > 0 {
      for (shift, shape) in [(0, problem.newKeyShape), (valueShift, problem.newValueShape)] {
        let rowBytes = problem.keyValueHeads * shape.dimension * 2
        new.append(
          try block.withBytes { bytes in
            try upload(
              (0..<problem.batch).flatMap { b in
                let first = shift + (b * problem.keys + context - newCount) * rowBytes
                return (0..<newCount * rowBytes).map { bytes[(first + $0) % bytes.count] }
              })
          })
      }
      tensors = AttentionTensors(
        queries: tensors.queries, keys: tensors.keys, values: tensors.values,
        appending: NewKeyTensors(
          keys: view(new[0], problem.newKeyShape, type), values: view(new[1], problem.newValueShape, type)),
        output: tensors.output, logSumExp: statistics.address, entries: entries)
    }
    defer { withExtendedLifetime(new) {} }
    let graph = try GPUGraph(on: gpu) { (stream) throws(AttentionError) in
      try plan.launch(tensors, workspace: workspace.address, stream: stream)
    }
    try graph.launch()
    try [Int32](repeating: Int32(context - newCount), count: problem.batch).withUnsafeBufferPointer {
      try lengths.copy(from: UnsafeRawBufferPointer($0))
    }
    let seconds = try probe.seconds(iterations: iterations) { () throws(AttentionError) in try graph.launch() }
    let bytes =
      2.0 * Double(problem.batch * context * problem.keyValueHeads * problem.dimension * problem.cacheType.byteCount)
    let ratio =
      isChecked && pageTable == nil && context <= 16384 ? try error(of: o, statistics, problem, queries, context) : nil
    return Result(
      problem: "\(problem)", batch: problem.batch, context: context, queries: problem.queries,
      queryHeads: problem.queryHeads, kvHeads: problem.keyValueHeads, dimension: problem.dimension, bytes: bytes,
      seconds: seconds, floorSeconds: bytes / readGigabytesPerSecond / 1e9 + emptySeconds, errorRatio: ratio,
      registers: plan.compiled?.registers,
      splits: plan.splits(lengths: [Int](repeating: context, count: problem.batch))?.max() ?? 1)
  }

  /// The error of the first sequence's last group of heads.
  private func error(
    of output: GPUBuffer, _ statistics: GPUBuffer, _ problem: AttentionProblem, _ queries: Tensor, _ context: Int
  ) throws -> Double {
    let (heads, d, type) = (problem.keyValueHeads, problem.dimension, problem.scalarType)
    let (group, rows) = (problem.groupSize, problem.queries)
    let numbers = block.floats
    func cached(_ start: Int) throws -> Tensor {
      try Tensor(
        shape: TensorShape(batch: 1, heads: 1, length: context, dimension: d), scalarType: type
      ) { _, _, n, c in numbers[(start + (n * heads + heads - 1) * d + c) % numbers.count] }
    }
    let first = problem.queryHeads - group
    let one = try AttentionProblem(
      queries: TensorShape(batch: 1, heads: group, length: rows, dimension: d),
      keys: TensorShape(batch: 1, heads: 1, length: context, dimension: d),
      values: TensorShape(batch: 1, heads: 1, length: context, dimension: d), scalarType: type, mask: problem.mask)
    let q = try Tensor(shape: one.queryShape, scalarType: type) { _, h, n, c in queries[0, first + h, n, c] }
    let (k, v) = (try cached(0), try cached(valueShift / problem.cacheType.byteCount))
    var words = [UInt8](repeating: 0, count: output.byteCount)
    try words.withUnsafeMutableBytes { try output.copy(to: $0) }
    var logSumExps = [Float](repeating: 0, count: problem.logSumExpCount)
    try logSumExps.withUnsafeMutableBytes { try statistics.copy(to: $0) }
    var (values, ownLogSumExps) = ([Double](), [Double]())
    words.withUnsafeBytes { bytes in
      for h in first..<first + group {
        for n in 0..<rows {
          let row = (n * problem.queryHeads + h) * d
          values += (0..<d).map { Double(type.load(from: bytes.baseAddress!, at: row + $0)) }
          ownLogSumExps.append(Double(logSumExps[h * rows + n]))
        }
      }
    }
    return q.withView { q in
      k.withView { k in
        v.withView { v in
          let yardstick = Yardstick(one, queries: q, keys: k, values: v, sums: .cut)
          return max(yardstick.judge(output: values).ratio, yardstick.judge(logSumExp: ownLogSumExps).ratio)
        }
      }
    }
  }
}
