package import FlashAttention

/// A random problem for gradients: that of a `VerificationCase`, or for every third number packed sequences with its sizes, a
/// gradient of the output and, for every other number, one of the log-sum-exp. NaN in rows of no sequence. Half may be added up in any
/// order.
package struct GradientCase: Sendable {
  package let base: VerificationCase
  package let problem: AttentionProblem
  /// Where each sequence is, where they are packed.
  package let sequences: [PackedSequence]?

  /// - Parameter kernels: as of `VerificationCase`.
  package init(seed: UInt64, number: Int, kernels: Int? = nil) {
    base = VerificationCase(seed: seed, number: number, kernels: kernels)
    let own = base.problem
    // On a GPU there are gradients up to D 256, and of some that are wider.
    let isDivided = [own.dimension, own.valueDimension].allSatisfy { $0 % 64 == 0 && $0 <= 320 }
    func dimension(_ d: Int) -> Int { kernels != nil && d > 256 && !isDivided ? d - 256 : d }
    var random = RandomSource(seed: seed, stream: UInt64(number) | 1 << 41)
    var sequences: [PackedSequence]?
    if number % 3 == 2 {
      var (query, key) = (random.int(0...5), random.int(0...5))
      var all: [PackedSequence] = []
      for _ in 0..<own.batch + 1 {
        let next = (random.int(0...own.queries), random.int(0...own.keys))
        all.append(PackedSequence(queries: query..<query + next.0, keys: key..<key + next.1))
        (query, key) = (query + next.0, key + next.1)
      }
      sequences = all
    }
    self.sequences = sequences
    // Every draw is valid; one that is not is a mistake here.
    var problem = try! AttentionProblem(
      batch: sequences?.count ?? own.batch, queries: own.queries,
      packedQueries: sequences.map { $0.last!.queries.upperBound + random.int(0...5) }, queryHeads: own.queryHeads,
      keyValueHeads: own.keyValueHeads, dimension: dimension(own.dimension),
      valueDimension: dimension(own.valueDimension),
      keys: sequences.map { .packed(total: $0.last!.keys.upperBound + random.int(0...5), longest: own.keys) }
        ?? .whole(length: own.keys),
      scalarType: own.scalarType, mask: own.mask, scale: own.scale, softcap: own.softcap)
    (problem.sinkType, problem.ranges) = (own.sinkType, own.ranges)
    problem.gradientOrder = number / 4 % 2 == 0 ? .any : .fixed
    self.problem = problem
  }

  /// The command that runs this case alone.
  package func command(device: Device) -> String { base.command(device: device) + " --backward" }

  /// Computes the case on a device, the forward pass first, and compares with the 64-bit reference.
  package func run(on device: Device) throws(AttentionError) -> CaseOutcome {
    let type = problem.scalarType
    let surroundings: Float = base.isPoisoned ? .nan : 7
    func input(_ shape: TensorShape, _ placement: CaseTensor.Placement) -> CaseTensor {
      CaseTensor(shape, type, placement, surroundings: surroundings)
    }
    let (q, k) = (input(problem.queryShape, base.queryPlacement), input(problem.keyShape, base.keyPlacement))
    let v = input(problem.valueShape, base.valuePlacement)
    base.fill(q, k, v, magnitude: 2)
    let (output, given) = (
      input(problem.outputShape, base.outputPlacement), input(problem.outputShape, base.queryPlacement)
    )
    var random = RandomSource(seed: base.seed, stream: UInt64(base.number) | 1 << 42)
    given.fill { _, _, _, _ in random.normal() }
    if let sequences {
      for (tensor, rows) in [
        (q, sequences.map(\.queries)), (given, sequences.map(\.queries)), (k, sequences.map(\.keys)),
        (v, sequences.map(\.keys)),
      ] { tensor.spoil(rowsOutside: rows) }
    }
    let hasGradientOfLogSumExp = base.number % 2 == 1
    var (logSumExp, ofLogSumExp) = (
      [Float](repeating: .nan, count: problem.logSumExpCount),
      (0..<(hasGradientOfLogSumExp ? problem.logSumExpCount : 0)).map { _ in random.normal() }
    )
    let untouched: Float = -12544
    var placement = base.outputPlacement
    func result(_ shape: TensorShape) -> CaseTensor {
      placement.isBackward.toggle()
      return CaseTensor(shape, type, placement, surroundings: untouched)
    }
    let (dq, dk, dv) = (result(problem.queryShape), result(problem.keyShape), result(problem.valueShape))
    let entries = CacheEntries<HostMemory>(
      queryStarts: sequences.map { $0.map(\.queries.lowerBound) + [$0.last!.queries.upperBound] },
      keyStarts: sequences.map { $0.map(\.keys.lowerBound) + [$0.last!.keys.upperBound] },
      sinks: problem.exampleSinks, ranges: problem.exampleRanges)
    var ofSinks = [Float](repeating: untouched, count: problem.sinkType == nil ? 0 : problem.queryHeads)
    let plan = try GradientPlan(problem, device: device)
    try logSumExp.withUnsafeMutableBufferPointer { (logSumExp) throws(AttentionError) in
      try AttentionPlan(problem, device: device).run(
        queries: q.view.readOnly, keys: k.view.readOnly, values: v.view.readOnly, output: output.view,
        logSumExp: logSumExp, entries: entries)
      try ofLogSumExp.withUnsafeMutableBufferPointer { (ofLogSumExp) throws(AttentionError) in
        try ofSinks.withUnsafeMutableBufferPointer { (ofSinks) throws(AttentionError) in
          let tensors = GradientTensors<HostMemory>(
            queries: q.view.readOnly, keys: k.view.readOnly, values: v.view.readOnly, output: output.view.readOnly,
            logSumExp: logSumExp, outputGradient: given.view.readOnly,
            logSumExpGradient: hasGradientOfLogSumExp ? ofLogSumExp : nil, queryGradient: dq.view,
            keyGradient: dk.view, valueGradient: dv.view, sinkGradient: problem.sinkType == nil ? nil : ofSinks,
            entries: entries)
          if let gpu = plan.gpu {
            try Self.run(plan, tensors, inputs: [q, k, v, output, given], results: [dq, dk, dv], on: gpu)
          } else {
            try plan.run(tensors)
          }
        }
      }
    }
    let yardstick = try GradientYardstick(
      problem, sequences: sequences,
      GradientInputs(
        queries: q.view.readOnly, keys: k.view.readOnly, values: v.view.readOnly, outputGradient: given.view.readOnly,
        logSumExpGradient: hasGradientOfLogSumExp ? ofLogSumExp : nil, sinks: problem.exampleSinks,
        ranges: problem.exampleRanges),
      sums: plan.gpu == nil ? nil : .cut)
    var comparisons = yardstick.judge(queries: dq.values, keys: dk.values, values: dv.values)
    var failures: [String] = []
    if problem.sinkType != nil {
      comparisons.append(yardstick.judge(sinks: ofSinks.map(Double.init)))
      if !comparisons[3].passes { failures.append("dsink: \(comparisons[3])") }
    }
    for (name, comparison, tensor) in zip3(["dq", "dk", "dv"], comparisons, [dq, dk, dv]) {
      if !comparison.passes { failures.append("\(name): \(comparison)") }
      if tensor.count(of: untouched) != tensor.gapCount {
        failures.append("\(name) was written outside its elements, or not all of them were written")
      }
    }
    return CaseOutcome(
      ratio: comparisons.map(\.ratio).max()!, failure: failures.isEmpty ? nil : failures.joined(separator: "; "))
  }

  /// In a GPU's memory, gaps and all: the whole memory of each tensor is copied there, and that of the results back.
  private static func run(
    _ plan: GradientPlan, _ tensors: GradientTensors<HostMemory>, inputs: [CaseTensor], results: [CaseTensor],
    on gpu: GPU
  ) throws(AttentionError) {
    var buffers: [GPUBuffer] = []
    func upload(_ bytes: UnsafeRawBufferPointer) throws(AttentionError) -> UInt64 {
      let buffer = try GPUBuffer(byteCount: max(bytes.count, 16), on: gpu)
      try buffer.copy(from: bytes)
      buffers.append(buffer)
      return buffer.address
    }
    func upload(_ tensor: CaseTensor) throws(AttentionError) -> DeviceTensorView {
      let address = try tensor.withBytes { (bytes) throws(AttentionError) in
        try upload(UnsafeRawBufferPointer(bytes))
      }
      return DeviceTensorView(
        address: address + UInt64(tensor.byteOffset), scalarType: tensor.view.scalarType, shape: tensor.view.shape,
        strides: tensor.view.strides)
    }
    func upload(_ list: [Int]?) throws(AttentionError) -> UInt64? {
      guard let words = list?.map({ Int32(clamping: $0) }) else { return nil }
      return try words.withUnsafeBufferPointer { (words) throws(AttentionError) in
        try upload(UnsafeRawBufferPointer(words))
      }
    }
    let written = try results.map { (tensor) throws(AttentionError) in try upload(tensor) }
    let read = try inputs.map { (tensor) throws(AttentionError) in try upload(tensor) }
    let entries = try tensors.entries.moved(to: GPUMemory.self, numbers: upload) { _ in
      nil
    } factors: { _ in
      nil
    } sinks: { (sinks) throws(AttentionError) in
      try sinks.map { (sinks) throws(AttentionError) in
        try sinks.withUnsafeBufferPointer { (sinks) throws(AttentionError) in
          try upload(UnsafeRawBufferPointer(sinks))
        }
      }
    }
    let ofSinks = try tensors.sinkGradient.map { (floats) throws(AttentionError) in
      try upload(UnsafeRawBufferPointer(floats))
    }
    try plan.launch(
      GradientTensors<GPUMemory>(
        queries: read[0], keys: read[1], values: read[2], output: read[3],
        logSumExp: try upload(UnsafeRawBufferPointer(tensors.logSumExp)), outputGradient: read[4],
        logSumExpGradient: try tensors.logSumExpGradient.map { (floats) throws(AttentionError) in
          try upload(UnsafeRawBufferPointer(floats))
        }, queryGradient: written[0], keyGradient: written[1], valueGradient: written[2],
        sinkGradient: ofSinks, entries: entries))
    if let address = ofSinks, let floats = tensors.sinkGradient {
      try buffers.first { $0.address == address }?.copy(to: UnsafeMutableRawBufferPointer(floats))
    }
    for (tensor, buffer) in zip(results, buffers) {
      try tensor.withBytes { (bytes) throws(AttentionError) in try buffer.copy(to: bytes) }
    }
  }
}

private func zip3<A, B, C>(_ a: [A], _ b: [B], _ c: [C]) -> [(A, B, C)] {
  a.indices.map { (a[$0], b[$0], c[$0]) }
}

extension CaseTensor {
  /// NaN in rows that belong to nobody.
  func spoil(rowsOutside ranges: [Range<Int>]) {
    for b in 0..<view.shape.batch {
      for h in 0..<view.shape.heads {
        for n in 0..<view.shape.length where !ranges.contains(where: { $0.contains(n) }) {
          let row = view.row(batch: b, head: h, token: n)
          for d in 0..<view.shape.dimension { view.scalarType.store(.nan, to: row, at: d) }
        }
      }
    }
  }
}
