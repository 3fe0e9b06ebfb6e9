import Attention
import AttentionKernels
import AttentionVerification
import PTX
import PTXEmulator

/// A problem on an emulated GPU: tensors in its memory, gaps filled with NaN, and the result beside the reference.
struct EmulatedAttention {
  var problem: AttentionProblem
  var layout = TensorLayout.bhnd
  /// Tokens behind the last of each sequence, and elements between rows: all NaN.
  var tail = 0
  var rowGap = 0
  /// The distance between batches in elements, where it is not what the layout makes it.
  var batchStride: Int?
  var plan: KernelPlan
  /// Whether the kernel is given a place for the log-sum-exp.
  var wantsLogSumExp = true
  /// Whether a kernel that hands out its work by a counter is given one.
  var givesCounters = true
  /// Column 0 of each query and of each key, where these are not as random as all others.
  var firstColumns: (query: (Int) -> Float, key: (Int) -> Float)?
  /// Ranges of keys in the place of the example's.
  var rangeNumbers: [Int]?
  /// One NaN in query 0 of every head.
  var hasNaNInFirstQuery = false

  init(
    _ problem: AttentionProblem, layout: TensorLayout = .bhnd, tail: Int = 0, rowGap: Int = 0, batchStride: Int? = nil,
    tiling: String = "", family: String = ForwardFamily.name, multiprocessors: Int? = nil, sinks: ScalarType? = nil,
    ranges: KeyRanges.Form? = nil,
    on target: Target = .sm90
  ) throws {
    var problem = problem
    (problem.sinkType, problem.ranges) = (sinks, ranges)
    (self.problem, self.layout, self.tail, self.rowGap, self.batchStride) = (problem, layout, tail, rowGap, batchStride)
    var gpu = GPULimits.typical(of: target)
    if let multiprocessors { gpu.multiprocessors = multiprocessors }
    plan = try KernelPlan(
      problem, on: gpu,
      options: KernelOptions(family: family, tiling: tiling.isEmpty ? nil : TilingChanges(tiling)))
  }

  /// The same computed with another tiling, and in another type.
  func with(_ tiling: ForwardTiling, _ type: ScalarType, on target: Target = .sm90) throws -> EmulatedAttention {
    var other = self
    other.problem = try AttentionProblem(
      queries: problem.queryShape, keys: problem.keyShape, values: problem.valueShape, scalarType: type,
      mask: problem.mask, scale: problem.scale, softcap: problem.softcap)
    other.plan = try KernelPlan(other.problem, on: .typical(of: target), tiling, of: ForwardFamily.self)
    return other
  }

  /// Whether no access of the kernel to shared memory has bank conflicts.
  var isConflictFree: Bool {
    (plan.launches.attention.kernel as? ForwardKernel).map { SharedMemoryPlan($0.specialization).isConflictFree }
      ?? false
  }

  private func strides(of shape: TensorShape) -> TensorStrides {
    let pitch = shape.dimension + rowGap
    let tokens = shape.length + tail
    var strides =
      layout == .bhnd
      ? TensorStrides(batch: shape.heads * tokens * pitch, heads: tokens * pitch, length: pitch)
      : TensorStrides(batch: tokens * shape.heads * pitch, heads: pitch, length: shape.heads * pitch)
    if let batchStride { strides.batch = batchStride }
    return strides
  }

  private func element(_ tensor: Int, _ b: Int, _ h: Int, _ n: Int, _ d: Int) -> Float {
    if hasNaNInFirstQuery && tensor == 1 && n == 0 && d == 3 { return .nan }
    if let firstColumns, d == 0, tensor < 3 { return tensor == 1 ? firstColumns.query(n) : firstColumns.key(n) }
    return scattered(tensor, b, h, n, d)
  }

  struct Outcome {
    let counters: Counters
    let output, logSumExp: Comparison
    /// Every element of the output was written, and nothing between them; counters are zero again.
    let isConfined: Bool
    var passes: Bool { output.passes && logSumExp.passes && isConfined }
  }

  /// - Throws: `Hazard`.
  func run(_ program: Program? = nil, _ schedule: Schedule = .roundRobin) throws(Hazard) -> Outcome {
    let memory = GlobalMemory()
    let type = problem.scalarType
    func bits(_ value: Float) -> UInt16 { type == .f16 ? Float16(value).bitPattern : BFloat16(value).bitPattern }
    func place(
      _ name: String, _ number: Int, _ shape: TensorShape, _ access: GlobalMemory.Access
    ) -> DeviceTensorView {
      let strides = strides(of: shape)
      let count = max(
        (shape.batch - 1) * strides.batch
          + (layout == .bhnd ? shape.heads * strides.heads : (shape.length + tail) * strides.length), 1)
      let base = memory.allocate(name, byteCount: count * 2, access: access)
      let pitch = shape.dimension + rowGap
      for b in 0..<shape.batch {
        for h in 0..<shape.heads {
          for n in 0..<shape.length + tail {
            var row = (0..<pitch).map { d in
              n < shape.length && d < shape.dimension && access == .readOnly
                ? bits(element(number, b, h, n, d)) : 0x7fff
            }
            // What the kernel writes, nobody has written before; the gaps hold a mark.
            if access == .readWrite { row = n < shape.length ? Array(row[shape.dimension...]) : row }
            let offset = strides.offset(batch: b, head: h, token: n)
            let skipped = access == .readWrite && n < shape.length ? shape.dimension : 0
            memory.write(row, to: base + UInt64((offset + skipped) * 2))
          }
        }
      }
      return DeviceTensorView(address: base, scalarType: type, shape: shape, strides: strides)
    }
    let ranges = rangeNumbers ?? problem.exampleRanges
    let (q, k) = (place("q", 1, problem.queryShape, .readOnly), place("k", 2, problem.keyShape, .readOnly))
    let (v, o) = (place("v", 3, problem.valueShape, .readOnly), place("o", 4, problem.outputShape, .readWrite))
    let lse = memory.allocate("lse", byteCount: max(problem.logSumExpCount, 1) * 4, access: .readWrite)
    let tensors = AttentionTensors<GPUMemory>(
      queries: q, keys: k, values: v, output: o, logSumExp: wantsLogSumExp ? lse : nil,
      entries: CacheEntries(sinks: memory.allocate(sinks: problem), ranges: memory.allocate(ranges: ranges)))
    let own = givesCounters && plan.launches.hasOwnCounters
    let draws = own ? memory.allocate("counters", [UInt8](repeating: 0, count: 4), access: .readWrite) : nil
    let counters = try plan.launches.emulate(
      KernelCall(tensors, counters: draws), memory: memory, schedule: schedule
    ) { $0 is CombineKernel ? nil : program }

    func tensor(_ number: Int, _ shape: TensorShape) -> Tensor {
      try! Tensor(shape: shape, scalarType: type) { element(number, $0, $1, $2, $3) }
    }
    let (tq, tk, tv) = (tensor(1, problem.queryShape), tensor(2, problem.keyShape), tensor(3, problem.valueShape))
    var (reference, plain) = (AttentionValues(for: problem), AttentionValues(for: problem))
    tq.withView { qs in
      tk.withView { ks in
        tv.withView { vs in
          for b in 0..<problem.batch {
            for h in 0..<problem.queryHeads {
              reference.set(
                ReferenceAttention.head(
                  h, batch: b, of: problem, queries: qs, keys: ks, values: vs, sinks: problem.exampleSinks,
                  ranges: ranges),
                batch: b, head: h, of: problem)
              plain.set(
                PlainAttention.head(
                  h, batch: b, of: problem, queries: qs, keys: ks, values: vs,
                  sums: (plan.tiling as? ForwardTiling)?.sums == .f16 ? .half : .rounded,
                  sinks: problem.exampleSinks, ranges: ranges), batch: b, head: h, of: problem)
            }
          }
        }
      }
    }
    var (values, isConfined) = ([Double](), true)
    if let draws { isConfined = memory.read(UInt32.self, count: 1, from: draws) == [0] }
    for b in 0..<problem.batch {
      for h in 0..<problem.queryHeads {
        for n in 0..<problem.queries + tail {
          let row = o.address + UInt64(o.strides.offset(batch: b, head: h, token: n) * 2)
          let pitch = problem.valueDimension + rowGap
          guard let words = memory.read(UInt16.self, count: pitch, from: row) else {
            isConfined = false
            continue
          }
          let gap = n < problem.queries ? words[problem.valueDimension...] : words[...]
          if !gap.allSatisfy({ $0 == 0x7fff }) { isConfined = false }
          if n < problem.queries {
            values += words[..<problem.valueDimension].map {
              Double(type == .f16 ? Float(Float16(bitPattern: $0)) : Float(BFloat16(bitPattern: $0)))
            }
          }
        }
      }
    }
    let statistics =
      wantsLogSumExp
      ? memory.read(Float.self, count: problem.logSumExpCount, from: lse) ?? []
      : reference.logSumExp.map { Float($0) }
    let isWhole = values.count == reference.output.count && statistics.count == reference.logSumExp.count
    return Outcome(
      counters: counters,
      output: Comparison(
        actual: isWhole ? values : reference.output.map { _ in .nan }, plain: plain.output, reference: reference.output,
        type: type),
      logSumExp: Comparison(
        actual: isWhole ? statistics.map(Double.init) : reference.logSumExp.map { _ in .nan }, plain: plain.logSumExp,
        reference: reference.logSumExp, type: .f32),
      isConfined: isConfined && isWhole)
  }
}

extension GlobalMemory {
  /// The example sinks of a problem in their type; nil where there are none.
  func allocate(sinks problem: AttentionProblem) -> UInt64? {
    guard let type = problem.sinkType, let sinks = problem.exampleSinks else { return nil }
    switch type {
    case .f32, .e4m3: return allocate("sinks", sinks, access: .readOnly)
    case .f16: return allocate("sinks", sinks.map { Float16($0).bitPattern }, access: .readOnly)
    case .bf16: return allocate("sinks", sinks.map { BFloat16($0).bitPattern }, access: .readOnly)
    }
  }
}

/// A number from -2 to 2 that looks random, exact in both types.
func scattered(_ tensor: Int, _ b: Int, _ h: Int, _ n: Int, _ d: Int) -> Float {
  var x = UInt64(tensor) &+ UInt64(b) << 12 &+ UInt64(h) << 24 &+ UInt64(n) << 36 &+ UInt64(d) << 52
  x = (x ^ x >> 31) &* 0x7fb5_d329_728e_a185
  x = (x ^ x >> 27) &* 0x81da_def4_bc2d_d44d
  return Float(Int((x ^ x >> 33) & 0xff) - 128) / 64
}

/// A problem in few words.
func problem(
  _ type: ScalarType = .f16, batch: Int = 1, heads: Int = 1, group: Int = 1, queries: Int = 70, keys: Int = 150,
  dimension: Int = 64, valueDimension: Int? = nil, mask: AttentionMask = .none, scale: Double? = nil,
  softcap: Double? = nil
) throws -> AttentionProblem {
  let keyShape = TensorShape(batch: batch, heads: heads, length: keys, dimension: dimension)
  var valueShape = keyShape
  valueShape.dimension = valueDimension ?? dimension
  return try AttentionProblem(
    queries: TensorShape(batch: batch, heads: heads * group, length: queries, dimension: dimension), keys: keyShape,
    values: valueShape, scalarType: type, mask: mask, scale: scale, softcap: softcap)
}

extension KernelPlan {
  /// The kernel that computes the attention.
  func kernel() throws(KernelError) -> Kernel { try launches.attention.kernel.kernel() }
  /// The kernel that puts parts together; nil where there is none.
  func combineKernel() throws(KernelError) -> Kernel? {
    for launch in launches.launches where launch.kernel is CombineKernel { return try launch.kernel.kernel() }
    return nil
  }
}
