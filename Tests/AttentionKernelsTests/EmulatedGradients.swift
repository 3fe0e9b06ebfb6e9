import Attention
import AttentionKernels
import AttentionVerification
import PTX
import PTXEmulator

/// Gradients on an emulated GPU: tensors in its memory, gaps filled with NaN, and the result beside the reference.
struct EmulatedGradients {
  var problem: AttentionProblem
  var plan: KernelPlan
  var layout = TensorLayout.bnhd
  /// Elements between rows, all NaN.
  var rowGap = 0
  /// Where each sequence is, where they are packed; nil where they are whole.
  var sequences: [PackedSequence]?
  /// Whether there is a gradient of the log-sum-exp.
  var hasLogSumExpGradient = true
  /// Whether the gradient of the output is one row for all queries and heads (strides of 0).
  var isOutputGradientExpanded = false
  /// Lists in the place of the right ones.
  var spoiledQueryStarts, spoiledKeyStarts: [Int32]?
  /// Ranges of keys in the place of the example's.
  var rangeNumbers: [Int]?
  /// Which of dQ, dK and dV are asked for.
  var wanted = [true, true, true]

  private var ranges: [Int]? { rangeNumbers ?? problem.exampleRanges }

  /// Whole keys.
  init(
    _ problem: AttentionProblem, layout: TensorLayout = .bnhd, rowGap: Int = 0, tiling: String = "",
    sinks: ScalarType? = nil, ranges: KeyRanges.Form? = nil, family: String = BackwardFamily.name,
    on target: Target = .sm90
  ) throws {
    var problem = problem
    (problem.sinkType, problem.ranges) = (sinks, ranges)
    (self.problem, self.layout, self.rowGap) = (problem, layout, rowGap)
    plan = try Self.plan(problem, tiling, family, target)
  }

  /// Packed sequences of so many queries and keys, some rows before the first and behind the last.
  init(
    _ type: ScalarType, packed lengths: [(queries: Int, keys: Int)], heads: Int = 1, group: Int = 1,
    dimension: Int = 64,
    mask: AttentionMask = .none, tiling: String = "", sinks: ScalarType? = nil, ranges: KeyRanges.Form? = nil,
    on target: Target = .sm90
  ) throws {
    var (place, sequences) = ((queries: 3, keys: 5), [PackedSequence]())
    for length in lengths {
      sequences.append(
        PackedSequence(
          queries: place.queries..<place.queries + length.queries, keys: place.keys..<place.keys + length.keys))
      place = (place.queries + length.queries, place.keys + length.keys)
    }
    problem = try AttentionProblem(
      batch: lengths.count, queries: lengths.map(\.queries).max()!, packedQueries: place.queries + 7,
      queryHeads: heads * group, keyValueHeads: heads, dimension: dimension,
      keys: .packed(total: place.keys + 9, longest: lengths.map(\.keys).max()!), scalarType: type, mask: mask)
    (problem.sinkType, problem.ranges) = (sinks, ranges)
    self.sequences = sequences
    plan = try Self.plan(problem, tiling, BackwardFamily.name, target)
  }

  /// The same by five products, with dQ added up in memory.
  func inAnyOrder(_ tiling: String = "", on target: Target = .sm90) throws -> EmulatedGradients {
    var gradients = self
    gradients.problem.gradientOrder = .any
    gradients.plan = try Self.plan(
      gradients.problem, "products=5,dkv-launches=1" + (tiling.isEmpty ? "" : ",") + tiling, BackwardFamily.name,
      target)
    return gradients
  }

  private static func plan(
    _ problem: AttentionProblem, _ tiling: String, _ family: String, _ target: Target
  ) throws -> KernelPlan {
    try KernelPlan(
      problem, on: .typical(of: target),
      options: KernelOptions(family: family, tiling: tiling.isEmpty ? nil : TilingChanges(tiling)),
      families: KernelFamilies.backward)
  }

  /// The kernels that compute gradients, in the order of their launches.
  var kernels: [BackwardKernel] { plan.launches.launches.compactMap { $0.kernel as? BackwardKernel } }

  struct Outcome {
    let counters: Counters
    /// Of dQ, dK and dV.
    let gradients: [Comparison]
    /// What was written, in the same order.
    let values: [[Double]]
    /// Every element of the gradients was written, and nothing between them.
    let isConfined: Bool
    /// Of the sinks; nil where there are none.
    let sinks: Comparison?
    var passes: Bool { gradients.allSatisfy(\.passes) && isConfined && sinks?.passes ?? true }
  }

  private func strides(of shape: TensorShape) -> TensorStrides {
    let pitch = shape.dimension + rowGap
    return layout == .bhnd
      ? TensorStrides(batch: shape.heads * shape.length * pitch, heads: shape.length * pitch, length: pitch)
      : TensorStrides(batch: shape.length * shape.heads * pitch, heads: pitch, length: shape.heads * pitch)
  }

  private func element(_ tensor: Int, _ b: Int, _ h: Int, _ n: Int, _ d: Int) -> Float {
    if tensor == 4 && isOutputGradientExpanded { return scattered(4, 0, 0, 0, d) }
    return scattered(tensor, b, h, n, d)
  }

  /// - Parameter program: what runs in place of a kernel; nil for its own.
  /// - Throws: `Hazard`.
  func run(
    _ schedule: Schedule = .roundRobin, program: (any KernelSource) -> Program? = { _ in nil }
  ) throws(Hazard) -> Outcome {
    let memory = GlobalMemory()
    let type = problem.scalarType
    func bits(_ value: Float) -> UInt16 { type == .f16 ? Float16(value).bitPattern : BFloat16(value).bitPattern }
    /// `values` of (b, h, n); nil for memory that nobody has written.
    func place(
      _ name: String, _ shape: TensorShape, _ values: ((Int, Int, Int) -> [Float])?
    ) -> DeviceTensorView {
      let strides = strides(of: shape)
      let base = memory.allocate(
        name, byteCount: max(shape.batch * strides.batch, 1) * 2, access: values == nil ? .readWrite : .readOnly)
      for b in 0..<shape.batch {
        for h in 0..<shape.heads {
          for n in 0..<shape.length {
            let gap = [UInt16](repeating: 0x7fff, count: rowGap)
            let row = values.map { $0(b, h, n).map(bits) + gap } ?? gap
            let skipped = values == nil ? shape.dimension : 0
            memory.write(row, to: base + UInt64((strides.offset(batch: b, head: h, token: n) + skipped) * 2))
          }
        }
      }
      return DeviceTensorView(address: base, scalarType: type, shape: shape, strides: strides)
    }

    func isQuery(_ n: Int) -> Bool { sequences?.contains { $0.queries.contains(n) } ?? true }
    func isKey(_ n: Int) -> Bool { sequences?.contains { $0.keys.contains(n) } ?? true }
    func tensor(_ number: Int, _ shape: TensorShape) -> Tensor {
      try! Tensor(shape: shape, scalarType: type) { element(number, $0, $1, $2, $3) }
    }
    let rowsOfHead = problem.queryShape.length
    let ofLogSumExp = (0..<problem.logSumExpCount).map { row -> Float in
      let head = row / rowsOfHead
      if !isQuery(row % rowsOfHead) { return .nan }
      return hasLogSumExpGradient
        ? scattered(9, head / problem.queryHeads, head % problem.queryHeads, row % rowsOfHead, 0) : 0
    }
    let yardstick = tensor(1, problem.queryShape).withView { q in
      tensor(2, problem.keyShape).withView { k in
        tensor(3, problem.valueShape).withView { v in
          tensor(4, problem.outputShape).withView { given in
            try! GradientYardstick(
              problem, sequences: sequences,
              GradientInputs(
                queries: q, keys: k, values: v, outputGradient: given, logSumExpGradient: ofLogSumExp,
                sinks: problem.exampleSinks, ranges: ranges), sums: nil)
          }
        }
      }
    }
    // What the forward pass made, rounded; NaN in rows of no sequence.
    let output = yardstick.forward.output.map { type.rounded(Float($0)) }
    let logSumExp = yardstick.forward.logSumExp.map { Float($0) }

    func input(
      _ name: String, _ number: Int, _ shape: TensorShape, _ known: @escaping (Int) -> Bool
    ) -> DeviceTensorView {
      place(name, shape) { b, h, n in
        (0..<shape.dimension).map { known(n) ? element(number, b, h, n, $0) : .nan }
      }
    }
    let q = input("q", 1, problem.queryShape, isQuery)
    let (k, v) = (input("k", 2, problem.keyShape, isKey), input("v", 3, problem.valueShape, isKey))
    let shape = problem.outputShape
    let o = place("o", shape) { b, h, n in
      let first = ((b * shape.heads + h) * shape.length + n) * shape.dimension
      return Array(output[first..<first + shape.dimension])
    }
    var given = input("do", 4, shape, isQuery)
    if isOutputGradientExpanded { given.strides = TensorStrides(batch: 0, heads: 0, length: 0) }
    let written = [problem.queryShape, problem.keyShape, problem.valueShape]
    let results = zip(["dq", "dk", "dv"], written).map { place($0, $1, nil) }
    func list(_ name: String, _ starts: [Int], _ spoiled: [Int32]?) -> UInt64 {
      memory.allocate(name, spoiled ?? starts.map(Int32.init), access: .readOnly)
    }
    let entries = CacheEntries<GPUMemory>(
      queryStarts: sequences.map {
        list("cu_q", $0.map(\.queries.lowerBound) + [$0.last!.queries.upperBound], spoiledQueryStarts)
      },
      keyStarts: sequences.map {
        list("cu_k", $0.map(\.keys.lowerBound) + [$0.last!.keys.upperBound], spoiledKeyStarts)
      }, sinks: memory.allocate(sinks: problem), ranges: memory.allocate(ranges: ranges))
    let ofSinks = memory.allocate("dsink", byteCount: problem.queryHeads * 4, access: .readWrite)
    let tensors = GradientTensors<GPUMemory>(
      queries: q, keys: k, values: v, output: o,
      logSumExp: memory.allocate("lse", logSumExp, access: .readOnly), outputGradient: given,
      logSumExpGradient: hasLogSumExpGradient ? memory.allocate("dlse", ofLogSumExp, access: .readOnly) : nil,
      queryGradient: wanted[0] ? results[0] : nil, keyGradient: wanted[1] ? results[1] : nil,
      valueGradient: wanted[2] ? results[2] : nil,
      sinkGradient: problem.sinkType == nil ? nil : ofSinks, entries: entries)
    try! tensors.check(problem)
    let counters = try plan.launches.emulate(KernelCall(tensors), memory: memory, schedule: schedule, program: program)

    var (values, isConfined) = ([[Double]](), true)
    for (view, isWanted) in zip(results, wanted) {
      var all: [Double] = []
      for b in 0..<view.shape.batch {
        for h in 0..<view.shape.heads {
          for n in 0..<view.shape.length {
            let row = view.address + UInt64(view.strides.offset(batch: b, head: h, token: n) * 2)
            let words = memory.read(UInt16.self, count: view.shape.dimension + rowGap, from: row)
            if (words != nil) != isWanted { isConfined = false }
            let known = words ?? [UInt16](repeating: 0, count: view.shape.dimension + rowGap)
            if !known[view.shape.dimension...].allSatisfy({ words == nil || $0 == 0x7fff }) { isConfined = false }
            all += known[..<view.shape.dimension].map {
              Double(type == .f16 ? Float(Float16(bitPattern: $0)) : Float(BFloat16(bitPattern: $0)))
            }
          }
        }
      }
      values.append(all)
    }
    let expected = [yardstick.reference.queries, yardstick.reference.keys, yardstick.reference.values]
    let judged = (0..<3).map { wanted[$0] ? values[$0] : expected[$0] }
    return Outcome(
      counters: counters, gradients: yardstick.judge(queries: judged[0], keys: judged[1], values: judged[2]),
      values: values, isConfined: isConfined,
      sinks: problem.sinkType == nil
        ? nil
        : yardstick.judge(
          sinks: memory.read(Float.self, count: problem.queryHeads, from: ofSinks)?.map(Double.init)
            ?? yardstick.reference.sinks.map { _ in .nan }))
  }
}
