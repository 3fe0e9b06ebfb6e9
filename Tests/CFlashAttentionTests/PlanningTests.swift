import AttentionKernels
import FlashAttentionHeader
import PTX
import Testing

@testable import CFlashAttention
@testable import FlashAttention

/// Planning for GPUs that are not here, from parameters as C gives them: whatever the numbers are, a plan or a
/// sentence, soon.
@Suite struct PlanningTests {
  /// All that are described, a part of one as MIG makes it among them.
  static let gpus = GPULimits.described

  private static let calls = 100_000
  private static let seeds = 20

  /// Numbers that are mostly those of a small problem, and some of any size.
  private struct Numbers {
    var state: UInt64

    init(seed: Int) { state = (UInt64(seed) + 1) &* 0x9e37_79b9_7f4a_7c15 }

    mutating func draw(_ limit: Int) -> Int {
      state ^= state << 13
      state ^= state >> 7
      state ^= state << 17
      return Int(state >> 33) % limit
    }

    private static let nasty: [Int64] = [
      0, 1, 3, -1, -7, 9, 17, 255, 1 << 15, 1 << 20, 1 << 27, 1 << 30, 1 << 31, 1 << 33, 1 << 40, 1 << 61, 1 << 62,
      .max, .min,
      .max - 1,
    ]

    /// One of the choices; in one of 16 cases any number.
    mutating func pick(_ choices: Int64...) -> Int64 {
      draw(16) == 0 ? Self.nasty[draw(Self.nasty.count)] : choices[draw(choices.count)]
    }

    mutating func code(_ choices: Int32...) -> Int32 {
      draw(64) == 0 ? Int32(truncatingIfNeeded: Self.nasty[draw(Self.nasty.count)]) : choices[draw(choices.count)]
    }

    /// An address that nobody reads, or none.
    mutating func pointer(oneIn count: Int, isAligned: Bool = true) -> UnsafeMutableRawPointer? {
      draw(count) == 0 ? UnsafeMutableRawPointer(bitPattern: isAligned || draw(8) > 0 ? 4096 : 4098) : nil
    }

    mutating func list(oneIn count: Int) -> UnsafePointer<Int32>? {
      pointer(oneIn: count).map { UnsafePointer($0.assumingMemoryBound(to: Int32.self)) }
    }

    mutating func tensor(_ heads: Int64, _ length: Int64, _ dimension: Int64) -> fa_tensor {
      let row = max(dimension, 1) &* max(heads, 1)
      return fa_tensor(
        data: UnsafeMutableRawPointer(bitPattern: draw(16) == 0 ? 8 : 4096), batch_stride: pick(row &* length),
        token_stride: pick(row), head_stride: pick(dimension))
    }

    mutating func scores() -> fa_scores {
      var s = fa_scores()
      s.mask = code(0, 1, 2)
      (s.window_left, s.window_right, s.chunk) = (pick(-1, 0, 100), pick(-1, 0, 5), pick(0, 0, 0, 64))
      if draw(4) == 0 { (s.scale_is_given, s.scale) = (1, [0.1, 0, -1, .infinity, .nan, 1e300][draw(6)]) }
      if draw(8) == 0 { s.softcap = [50, -1, .nan, 1e-300][draw(4)] }
      return s
    }
  }

  private static func forward(_ n: inout Numbers) -> fa_forward_params {
    var p = fa_forward_params()
    p.type = n.code(1, 2)
    (p.batch, p.queries, p.keys) = (n.pick(1, 3, 64), n.pick(1, 77, 8192), n.pick(0, 1, 500, 8192))
    (p.query_heads, p.key_value_heads) = (n.pick(8, 32), n.pick(1, 2, 8))
    (p.dimension, p.value_dimension) = (n.pick(64, 128, 72, 256, 1024), n.pick(0, 0, 64, 128))
    p.scores = n.scores()
    let width = p.value_dimension == 0 ? p.dimension : p.value_dimension
    (p.q, p.k) = (n.tensor(p.query_heads, p.queries, p.dimension), n.tensor(p.key_value_heads, p.keys, p.dimension))
    (p.v, p.o) = (n.tensor(p.key_value_heads, p.keys, width), n.tensor(p.query_heads, p.queries, width))
    return p
  }

  private static func sequences(_ n: inout Numbers) -> fa_sequences_params {
    var p = fa_sequences_params()
    p.type = n.code(1, 2)
    (p.query_type, p.cache_type) = (p.type, p.type)
    if n.draw(6) == 0 { p.cache_type = n.code(3) }
    if n.draw(12) == 0 { p.query_type = n.code(3) }
    p.cache = n.code(0, 1, 2)
    (p.batch, p.queries) = (n.pick(1, 3, 64, 1000), n.pick(0, 1, 1, 4, 300))
    (p.query_heads, p.key_value_heads) = (n.pick(8, 32), n.pick(1, 2, 8))
    (p.dimension, p.value_dimension) = (n.pick(64, 128, 80, 256), n.pick(0, 0, 64, 128))
    p.cache_batch = n.pick(1000, 4000)
    p.cache_tokens = p.cache == 1 ? n.pick(16, 48, 1) : n.pick(1, 300, 16384)
    (p.pages_per_sequence, p.longest) = (n.pick(1, 10, 1000), n.pick(0, 300, 16384))
    (p.query_starts, p.total_queries) = (n.list(oneIn: 4), n.pick(0, 700, 3000))
    p.left_padding = n.list(oneIn: 5)
    if n.draw(3) == 0 {
      p.new_keys = n.pick(1, 4)
      p.new_k = n.tensor(p.key_value_heads, p.new_keys, p.dimension)
      p.new_v = p.new_k
      (p.new_key_starts, p.total_new_keys) = (n.list(oneIn: 4), n.pick(0, 9, 3000))
      if n.draw(2) == 0 {
        (p.rotary_dimension, p.rotary_positions) = (n.pick(16, 64), n.pick(1, 500, 20000))
        p.rotary_interleaved = n.code(0, 1)
      }
    }
    p.keys_per_split = n.draw(4) == 0 ? n.pick(64, 100, 1, Int64(FA_ALL_KEYS)) : 0
    if n.draw(12) == 0 { p.leaves_parts = n.code(0, 1) }
    p.scores = n.scores()
    let width = p.value_dimension == 0 ? p.dimension : p.value_dimension
    (p.q, p.k) = (
      n.tensor(p.query_heads, p.queries, p.dimension), n.tensor(p.key_value_heads, p.cache_tokens, p.dimension)
    )
    (p.v, p.o) = (n.tensor(p.key_value_heads, p.cache_tokens, width), n.tensor(p.query_heads, p.queries, width))
    return p
  }

  /// Everything that a call does before it needs a driver.
  private static func plan(_ p: fa_forward_params, on gpu: GPULimits) throws(AttentionError) {
    let problem = try p.problem
    let plan = try KernelPlan(problem, on: gpu)
    _ = "\(plan)"
    let tensors = AttentionTensors<GPUMemory>(
      queries: try p.q.deviceView("queries", problem.queryShape, problem.scalarType),
      keys: try p.k.deviceView("keys", problem.keyShape, problem.scalarType),
      values: try p.v.deviceView("values", problem.valueShape, problem.scalarType),
      output: try p.o.deviceView("output", problem.outputShape, problem.scalarType))
    try tensors.check(problem)
    fill(plan, tensors)
  }

  private static func fill(_ plan: KernelPlan, _ tensors: AttentionTensors<GPUMemory>) {
    let call = KernelCall(tensors, workspace: 4096)
    for arguments in plan.launches.launches.map(\.arguments) {
      // Calls without maps run by other kernels.
      if arguments.mappedTensors(call).allSatisfy({ arguments.map(of: $0) != nil }) { _ = arguments.arguments(call) }
    }
  }

  private static func plan(_ p: fa_sequences_params, on gpu: GPULimits) throws(AttentionError) {
    let problem = try p.problem
    let plan = try KernelPlan(problem, on: gpu)
    _ = "\(plan)"
    _ = plan.splits(lengths: [0, .max, .min, problem.keys])
    fill(plan, try p.tensors(problem))
  }

  @Test(arguments: 0..<seeds) func anyNumbersGiveAPlanOrASentence(seed: Int) {
    var numbers = Numbers(seed: seed)
    var (planned, refused) = ([0, 0], Set<String>())
    let start = ContinuousClock.now
    for call in 0..<Self.calls / Self.seeds {
      let gpu = Self.gpus[call / 2 % Self.gpus.count]
      do throws(AttentionError) {
        if call % 2 == 0 {
          try Self.plan(Self.forward(&numbers), on: gpu)
        } else {
          try Self.plan(Self.sequences(&numbers), on: gpu)
        }
        planned[call % 2] += 1
      } catch {
        #expect("\(error)".hasSuffix("."))
        refused.insert(String("\(error)".prefix(12)))
      }
    }
    // Not all are refused at the door, and for more than one reason.
    #expect(planned[0] > Self.calls / Self.seeds / 20 && planned[1] > Self.calls / Self.seeds / 20, "\(planned)")
    #expect(refused.count > 10)
    #expect(ContinuousClock.now - start < .seconds(120))
  }
}
