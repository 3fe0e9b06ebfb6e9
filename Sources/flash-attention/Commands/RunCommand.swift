internal import ArgumentParser
internal import AttentionBenchmarks
internal import AttentionVerification
internal import FlashAttention
internal import TensorFiles

struct RunCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "run",
    abstract: "Compute attention on the tensors of a file.",
    discussion: """
      Reads queries, keys and values from FILE (.safetensors), or each from a .npy file of its own:

        flash-attention run activations.safetensors --causal -o out.safetensors
        flash-attention run --query q.npy --key k.npy --value v.npy -o out.npy

      Where FILE has a tensor `cache_lengths` (int32, a number for each sequence), keys and values are a cache of which so many \
      tokens of each sequence count; beside it, \(CacheRun.listNames) may say which sequence of the cache, where its \
      keys begin, and what e4m3 numbers stand for. \
      With a `page_table` (int32, a row of pages for each sequence), they are pages: with --layout bnhd [pages, page size, \
      heads, dimension].

      Where it has a tensor `sinks` (a number for each query head), these are attention sinks. Where it has a tensor `key_ranges` \
      (int32, [batch or 1, queries, 1 or 2, 2]), a query sees these ranges of keys, as far as the mask lets it.

      Writes `output` and `lse` (log-sum-exp, natural logarithm) to a .safetensors file; to a .npy file, the output, \
      and the log-sum-exp beside it with -lse before the .npy. With --gradients, `dq`, `dk` and `dv` (and `dsinks`) are written \
      to the .safetensors file, too.
      """)

  @Argument(help: "A .safetensors file.", completion: .file(extensions: ["safetensors"]))
  var file: String?

  @Option(help: "Tensor of the queries, or a .npy file.", completion: .file())
  var query = "q"

  @Option(help: "Tensor of the keys, or a .npy file.", completion: .file())
  var key = "k"

  @Option(help: "Tensor of the values, or a .npy file.", completion: .file())
  var value = "v"

  @Option(
    name: .customLong("layout"),
    help: "Order of the axes: bhnd (batch, heads, tokens, dimension) or bnhd. (default: what FILE says, or bhnd)")
  var givenLayout: TensorLayout?

  @OptionGroup(title: "Attention") var options: MaskOptions

  @Option(help: "Convert the inputs to f32, f16 or bf16 first. (default: the type that they have)")
  var dtype: ScalarType?

  @Option(help: "Where to compute: auto, cpu, gpu, or gpu:1 for another one.")
  var device = Device.auto

  @Option(
    name: [.customShort("o"), .long], help: "File to write the output and the log-sum-exp to.", completion: .file())
  var output: String?

  @Option(
    help: ArgumentHelp(
      "Also compute gradients: the tensor of FILE that is the gradient of the output; NAME_lse, if it is there, is that of the log-sum-exp.",
      valueName: "NAME"))
  var gradients: String?

  @Option(help: "Compare with this tensor of FILE (the output, or the log-sum-exp by its shape); exit 1 if it differs.")
  var compare: String?

  @Option(
    help: "Take the --compare tensor from this file instead; for a .npy file, --compare is not needed.",
    completion: .file())
  var compareFile: String?

  @Option(help: JSONReport.helpWithoutSamples)
  var json: JSONReport?

  private var isNPY: Bool { file == nil }

  private var inputFiles: [String] {
    [file, compareFile].compactMap { $0 } + (isNPY ? [query, key, value] : [])
  }

  func validate() throws {
    let sources = [query, key, value]
    if isNPY && !sources.allSatisfy({ $0.hasSuffix(".npy") }) {
      throw ValidationError("Give a .safetensors FILE, or .npy files by --query, --key and --value.")
    }
    if !isNPY, let array = sources.first(where: { $0.hasSuffix(".npy") }) {
      throw ValidationError("'\(array)' is a file; give all three by --query, --key and --value, and no FILE.")
    }
    if let output, !output.hasSuffix(".safetensors") && !output.hasSuffix(".npy") {
      throw ValidationError("The output '\(output)' must end in .safetensors or .npy.")
    }
    if gradients != nil && (isNPY || output?.hasSuffix(".safetensors") != true) {
      throw ValidationError("--gradients reads a .safetensors FILE and writes one; give both FILE and --output.")
    }
    if compare != nil && isNPY && compareFile == nil {
      throw ValidationError("--compare names a tensor of FILE; with .npy inputs, give --compare-file.")
    }
    if let compareFile, compareFile.hasSuffix(".npy") && compare != nil {
      throw ValidationError("A .npy file holds one array; leave out --compare.")
    }
    if compareFile.map({ $0.hasSuffix(".npy") }) == false && compare == nil {
      throw ValidationError("--compare-file also needs --compare, the name of the tensor in it.")
    }
  }

  func run() throws {
    let passed = try reportingFileErrors {
      if let output { try checkOutput(output) }
      try checkReport()
      let container = try file.map { try Self.open($0) }
      let layout = givenLayout ?? container?.metadata["layout"].flatMap(TensorLayout.init) ?? .bhnd
      let inputs = try readInputs(container, layout)
      if let container, !container.names.contains("cache_lengths"),
        let stray = CacheRun.lists.first(where: { container.names.contains($0) })
      {
        throw AttentionError.unsupported(
          "\(file!) has a tensor '\(stray)', which belongs to a cache, but no 'cache_lengths'; give the lengths too, or leave it out."
        )
      }
      if let container, container.names.contains("cache_lengths") {
        if gradients != nil {
          throw AttentionError.unsupported(
            "\(file!) has 'cache_lengths', and caches of keys and values have no gradients; leave out --gradients.")
        }
        let run = try CacheRun(
          container, path: file!, queries: inputs.queries, keys: inputs.keys, values: inputs.values, options, dtype)
        let plan = try AttentionPlan(run.problem, device: device)
        let (result, seconds) = try run.compute(plan)
        var report = RunReport(problem: "\(run.problem)", plan: "\(plan)", seconds: [seconds])
        json.say(fields([("problem", report.problem), ("plan", report.plan), ("time", duration(seconds))]))
        if let output {
          report.written = try write(result, batch: run.problem.batch, heads: run.problem.queryHeads, to: output)
        }
        return try finish(report, try readExpected(of: run.problem.outputShape, layout)) { expected in
          try run.compare(
            result,
            with: expected.isLogSumExp
              ? expected.array.floats.map(Double.init) : try expected.array.tensor(layout: layout)!.inHeadOrder,
            isLogSumExp: expected.isLogSumExp, isOnGPU: plan.gpu != nil)
        }
      }
      let (queries, keys, values) = (
        try inputs.queries.converted(to: dtype ?? inputs.queries.scalarType),
        try inputs.keys.converted(to: dtype ?? inputs.keys.scalarType),
        try inputs.values.converted(to: dtype ?? inputs.values.scalarType)
      )
      var problem = try AttentionProblem(
        queries: queries, keys: keys, values: values, mask: options.mask, scale: options.scale,
        softcap: options.softcap)
      let sinks = try container.flatMap { try Self.sinks($0, path: file!, heads: problem.queryHeads) }
      let ranges = try container.flatMap {
        try Self.ranges($0, path: file!, batch: problem.batch, queries: problem.queries)
      }
      (problem.sinkType, problem.ranges) = (sinks == nil ? nil : .f32, ranges?.form)
      let plan = try AttentionPlan(problem, device: device)
      let expected = try readExpected(of: problem.outputShape, layout)
      var progress = Progress()
      progress.show("run: \(problem)", isSure: true)
      defer { progress.clear() }

      var result: AttentionResult?
      var times = [
        try elapsedSeconds {
          result = try plan.run(
            queries: queries, keys: keys, values: values, sinks: sinks, ranges: ranges)
        }
      ]
      // Short runs are repeated, so that the time means something.
      while times.reduce(0, +) < 0.2 && times.count < 20 {
        times.append(
          try elapsedSeconds {
            _ = try plan.run(
              queries: queries, keys: keys, values: values, sinks: sinks, ranges: ranges)
          })
      }
      let made = try gradients.map { name in
        try RunGradients(container!, path: file!, name, layout, problem).compute(
          of: result!, queries: queries, keys: keys, values: values, sinks: sinks, ranges: ranges, plan)
      }
      progress.clear()
      var report = report(plan, times)
      if let output {
        progress.show("run: writing \(output)", isSure: true)
        report.written = try write(
          result!, batch: problem.batch, heads: problem.queryHeads, to: output,
          beside: try made.map {
            [("dq", StoredArray($0.queries)), ("dk", StoredArray($0.keys)), ("dv", StoredArray($0.values))]
              + (try $0.sinks.map { [("dsinks", try StoredArray(extents: [$0.count], floats: $0))] } ?? [])
          } ?? [])
      }
      progress.clear()
      return try finish(report, expected) { expected in
        progress.show("run: comparing with the 64-bit reference", isSure: true)
        defer { progress.clear() }
        return try compare(
          result!, with: expected, problem, layout, inputs, sinks, ranges, isOnGPU: plan.gpu != nil)
      }
    }
    if !passed { throw ExitCode.comparisonFailed }
  }

  // MARK: - Files

  /// - Throws: where the output cannot be written, or would take the place of what is read.
  private func checkOutput(_ output: String) throws {
    try OutputFile.check(output)
    for written in output.hasSuffix(".npy") ? [output, Self.besideNPY(output)] : [output] {
      if let input = inputFiles.first(where: { OutputFile.isSame($0, written) }) {
        throw ValidationError("The output '\(written)' is the input '\(input)'; write to another file.")
      }
    }
  }

  /// - Throws: where the report cannot be written, or would take the place of what is read, or of what is written beside it.
  private func checkReport() throws {
    try json?.check()
    guard let report = json?.file else { return }
    let written = output.map { $0.hasSuffix(".npy") ? [$0, Self.besideNPY($0)] : [$0] } ?? []
    if let other = (inputFiles + written).first(where: { $0 == report || OutputFile.isSame($0, report) }) {
      throw ValidationError("The report '\(report)' would take the place of '\(other)'; write to another file.")
    }
  }

  /// Where the log-sum-exp beside a .npy file goes.
  private static func besideNPY(_ path: String) -> String { path.dropLast(4) + "-lse.npy" }

  private func readInputs(_ container: SafetensorsFile?, _ layout: TensorLayout) throws -> Inputs {
    func tensor(_ name: String, _ option: String) throws -> Tensor {
      let array: StoredArray
      do {
        array = try container.map { try $0.array(name) } ?? NPYFile.read(path: name)
      } catch TensorFileError.missing(let path, name, let available, _) {
        throw TensorFileError.missing(
          path: path, name: name, available: available, remedy: "Give the name of the tensor by \(option).")
      }
      guard let tensor = try array.tensor(layout: layout) else {
        throw TensorFileError.rank(
          path: file ?? name, name: file == nil ? nil : name, extents: array.extents,
          expected: "four axes are needed: "
            + (layout == .bhnd ? "batch, heads, tokens, dimension" : "batch, tokens, heads, dimension"))
      }
      return tensor
    }
    return Inputs(
      queries: try tensor(query, "--query"), keys: try tensor(key, "--key"), values: try tensor(value, "--value"))
  }

  /// Attention sinks, `[H_q]`; nil where the file has none.
  static func sinks(_ container: SafetensorsFile, path: String, heads: Int) throws -> [Float]? {
    guard container.names.contains("sinks") else { return nil }
    let array = try container.array("sinks")
    guard array.extents == [heads] else {
      throw TensorFileError.rank(
        path: path, name: "sinks", extents: array.extents, expected: "one number for each of \(heads) query heads")
    }
    return array.floats
  }

  /// Ranges of keys, int32 `[batch or 1, queries, 1 or 2, 2]`; nil where the file has none.
  static func ranges(_ container: SafetensorsFile, path: String, batch: Int, queries: Int) throws -> KeyRanges? {
    guard container.names.contains("key_ranges") else { return nil }
    let (extents, values) = try container.integers("key_ranges")
    guard extents.count == 4, [1, batch].contains(extents[0]), extents[1] == queries, 1...2 ~= extents[2],
      extents[3] == 2
    else {
      throw TensorFileError.rank(
        path: path, name: "key_ranges", extents: extents,
        expected:
          "[\(batch) or 1, \(queries), 1 or 2, 2] is needed: the first key of a range, and the key behind its last")
    }
    return KeyRanges(.given(count: extents[2], isShared: extents[0] == 1), values)
  }

  private static func open(_ path: String) throws -> SafetensorsFile {
    if path.hasSuffix(".npy") {
      throw ValidationError("'\(path)' holds one array; give three by --query, --key and --value instead.")
    }
    guard path.hasSuffix(".safetensors") else { throw TensorFileError.unknownFormat(path: path) }
    return try SafetensorsFile(path: path)
  }

  /// What the result is to be compared with; its shape is that of the output or of the log-sum-exp.
  private func readExpected(of output: TensorShape, _ layout: TensorLayout) throws -> Expected? {
    let name: String?
    let array: StoredArray
    if let compareFile, compareFile.hasSuffix(".npy") {
      (name, array) = (nil, try NPYFile.read(path: compareFile))
    } else {
      guard let compare else { return nil }
      (name, array) = (compare, try Self.open(compareFile ?? file!).array(compare))
    }
    let lseExtents = [output.batch, output.heads, output.length]
    let outputExtents = layout.extents(of: output)
    guard array.extents == lseExtents || array.extents == outputExtents else {
      throw TensorFileError.rank(
        path: compareFile ?? file!, name: name, extents: array.extents,
        expected: "the output has \(outputExtents), the log-sum-exp \(lseExtents)")
    }
    return Expected(name: name ?? compareFile!, array: array, isLogSumExp: array.extents == lseExtents)
  }

  /// - Returns: the files, and the tensors in each.
  private func write(
    _ result: AttentionResult, batch: Int, heads: Int, to path: String, beside others: [(String, StoredArray)] = []
  ) throws -> [String: [String]] {
    let output = StoredArray(result.output)
    let lse = try StoredArray(extents: [batch, heads, result.output.shape.length], floats: result.logSumExp)
    if path.hasSuffix(".npy") {
      try OutputFile.write([
        (path, NPYFile.pieces(of: output)), (Self.besideNPY(path), NPYFile.pieces(of: lse)),
      ])
      return [path: ["output"], Self.besideNPY(path): ["lse"]]
    }
    let tensors = [("output", output), ("lse", lse)] + others
    try SafetensorsFile.write(tensors, metadata: ["layout": result.output.layout.rawValue], to: path)
    return [path: tensors.map(\.0)]
  }

  // MARK: - Reports

  private func report(_ plan: AttentionPlan, _ times: [Double]) -> RunReport {
    let time = median(times)
    let runs = times.count == 1 ? "" : " (median of \(times.count) runs)"
    let (gigaflops, gigabytes) = (plan.problem.flops / time / 1e9, plan.problem.bytes / time / 1e9)
    json.say(
      fields([
        ("problem", "\(plan.problem)"),
        ("plan", "\(plan)"),
        ("time", duration(time) + runs),
        (
          "speed",
          "\(fixed(gigaflops, 1)) GFLOPS, \(fixed(gigabytes, 2)) GB/s"
        ),
        (
          "memory", "\(megabytes(peakMemory())) at most in use; \(megabytes(plan.scratchByteCount)) of scratch a thread"
        ),
      ]))
    return RunReport(
      problem: "\(plan.problem)", plan: "\(plan)", seconds: times, gigaflops: gigaflops,
      gigabytesPerSecond: gigabytes, peakBytes: peakMemory(), scratchBytesPerThread: plan.scratchByteCount)
  }

  /// Says what was written, compares where something is expected, and writes the report.
  /// - Returns: whether nothing differs.
  private func finish(
    _ report: RunReport, _ expected: Expected?, compare: (Expected) throws -> Comparison
  ) throws -> Bool {
    var report = report
    for (path, tensors) in report.written.sorted(by: { $0.key < $1.key }) {
      json.say(fields([("written", "\(path): \(tensors.joined(separator: ", "))")]))
    }
    let comparison = try expected.map(compare)
    if let expected, let comparison {
      json.say(fields([("compare", "\(expected.name): \(comparison.passes ? "passes" : "FAILS")\n\(comparison)")]))
      report.comparison = RunReport.Compared(expected.name, comparison)
    }
    try json?.write(report)
    return comparison?.passes ?? true
  }

  /// Compares the output, or the log-sum-exp where the expected tensor has its shape. The allowance is what the plain
  /// computation on the converted inputs errs against the 64-bit one on the inputs of the file.
  private func compare(
    _ result: AttentionResult, with expected: Expected, _ problem: AttentionProblem, _ layout: TensorLayout,
    _ inputs: Inputs, _ sinks: [Float]?, _ ranges: KeyRanges?, isOnGPU: Bool
  ) throws -> Comparison {
    let yardstick = try inputs.converted(to: problem.scalarType).withViews { q, k, v in
      inputs.withViews {
        Yardstick(
          problem, queries: q, keys: k, values: v, exact: ($0, $1, $2), sums: isOnGPU ? .cut : nil, sinks: sinks,
          ranges: ranges?.numbers)
      }
    }
    return expected.isLogSumExp
      ? yardstick.judge(
        logSumExp: result.logSumExp.map(Double.init), expected: expected.array.floats.map(Double.init))
      : yardstick.judge(
        output: result.output.inHeadOrder, expected: try expected.array.tensor(layout: layout)!.inHeadOrder)
  }
}

/// What a result should be.
private struct Expected {
  let name: String
  let array: StoredArray
  let isLogSumExp: Bool
}

/// The tensors of a file.
private struct Inputs {
  let queries: Tensor
  let keys: Tensor
  let values: Tensor

  func converted(to type: ScalarType) throws -> Inputs {
    Inputs(
      queries: try queries.converted(to: type), keys: try keys.converted(to: type),
      values: try values.converted(to: type))
  }

  func withViews<Result>(_ body: (TensorView, TensorView, TensorView) -> Result) -> Result {
    queries.withView { q in keys.withView { k in values.withView { v in body(q, k, v) } } }
  }
}

extension Tensor {
  /// All elements in the order batch, head, token, dimension.
  var inHeadOrder: [Double] {
    withView { view in
      var result: [Double] = []
      result.reserveCapacity(shape.elementCount)
      if shape.elementCount == 0 { return result }
      for b in 0..<shape.batch {
        for h in 0..<shape.heads {
          for n in 0..<shape.length {
            let row = view.row(batch: b, head: h, token: n)
            for d in 0..<shape.dimension { result.append(Double(scalarType.load(from: row, at: d))) }
          }
        }
      }
      return result
    }
  }
}
