import Attention
import AttentionKernels
import PTX
import PTXEmulator

/// A decoding problem on an emulated GPU: every row of the cache that holds no key is NaN, and the result stands beside the
/// reference.
struct EmulatedDecoding {
  var problem: CachedAttentionProblem
  /// The keys of each sequence, from the cache's start.
  var lengths: [Int]
  /// Where a sequence is in the cache; nil for its own number.
  var batchIndex: [Int]?
  /// The row of each sequence's first key; nil for 0.
  var leftPadding: [Int]?
  var plan: DecodePlan
  var multiprocessors: Int

  init(
    _ type: ScalarType = .bf16, lengths: [Int], heads: Int = 1, group: Int = 4, queries: Int = 1, dimension: Int = 64,
    valueDimension: Int? = nil, pageSize: Int? = nil, capacity: Int = 256, mask: AttentionMask = .causal,
    scale: Double? = nil, softcap: Double? = nil, batchIndex: [Int]? = nil, leftPadding: [Int]? = nil,
    multiprocessors: Int = 5, combination: DecodeSpecialization.Combination? = .lastBlock, changes: String? = nil
  ) throws {
    (self.lengths, self.batchIndex, self.leftPadding) = (lengths, batchIndex, leftPadding)
    self.multiprocessors = multiprocessors
    let sequences = (batchIndex.map { $0.max()! + 1 } ?? lengths.count) + 1
    let cache: CachedAttentionProblem.Cache =
      pageSize.map {
        let perSequence = (capacity + $0 - 1) / $0
        return .paged(pages: perSequence * lengths.count + 3, pageSize: $0, pagesPerSequence: perSequence)
      } ?? .contiguous(sequences: sequences, capacity: capacity)
    problem = try CachedAttentionProblem(
      batch: lengths.count, queries: queries, queryHeads: heads * group, keyValueHeads: heads, dimension: dimension,
      valueDimension: valueDimension, cache: cache, hasLeftPadding: leftPadding != nil, scalarType: type, mask: mask,
      scale: scale, softcap: softcap)
    var gpu = GPULimits.typical(of: .sm90)
    gpu.multiprocessors = multiprocessors
    plan = try DecodePlan(problem, on: gpu, combination: combination, changes: changes)
  }

  /// A number from -2 to 2 that looks random, exact in both types.
  private func element(_ tensor: Int, _ b: Int, _ h: Int, _ n: Int, _ d: Int) -> Float {
    var x = UInt64(tensor) &+ UInt64(b) << 12 &+ UInt64(h) << 24 &+ UInt64(n) << 36 &+ UInt64(d) << 52
    x = (x ^ x >> 31) &* 0x7fb5_d329_728e_a185
    x = (x ^ x >> 27) &* 0x81da_def4_bc2d_d44d
    return Float(Int((x ^ x >> 33) & 0xff) - 128) / 64
  }

  /// The keys that a sequence has.
  private func keys(of b: Int) -> Int { max(0, lengths[b] - (leftPadding?[b] ?? 0)) }

  struct Outcome {
    let counters: Counters
    let output, logSumExp: Comparison
    let bits: [UInt16]
    var passes: Bool { output.passes && logSumExp.passes }
  }

  /// The page of a sequence's number `i`: scattered over the cache.
  private func page(_ b: Int, _ i: Int, perSequence: Int, pages: Int) -> Int {
    let count = perSequence * lengths.count
    return pages - 1 - (b * perSequence + i) * 7 % (count % 7 == 0 ? count + 1 : count)
  }

  /// - Parameter calls: how often the kernel runs on the same workspace.
  /// - Throws: `Hazard`.
  func run(
    _ program: Program? = nil, _ schedule: Schedule = .roundRobin, calls: Int = 1, combine: Program? = nil
  ) throws(Hazard) -> Outcome {
    let memory = GlobalMemory()
    let type = problem.scalarType
    func bits(_ value: Float) -> UInt16 { type == .f16 ? Float16(value).bitPattern : BFloat16(value).bitPattern }
    func words(_ name: String, _ values: [Int]?) -> UInt64 {
      values.map { memory.allocate(name, $0.map { UInt32(bitPattern: Int32($0)) }, access: .readOnly) } ?? 0
    }
    let (heads, queries) = (problem.queryHeads, problem.queries)

    // Queries and output: [B, s_q, H, D].
    func rowsPlace(_ name: String, _ dimension: Int, isOutput: Bool) -> ForwardLaunch.Place {
      let strides = TensorStrides(batch: queries * heads * dimension, heads: dimension, length: heads * dimension)
      let count = max(problem.batch * queries * heads * dimension, 1)
      let base = memory.allocate(name, byteCount: count * 2, access: isOutput ? .readWrite : .readOnly)
      if !isOutput {
        for b in 0..<problem.batch {
          for n in 0..<queries {
            for h in 0..<heads {
              memory.write(
                (0..<dimension).map { bits(element(1, b, h, n, $0)) },
                to: base + UInt64(2 * strides.offset(batch: b, head: h, token: n)))
            }
          }
        }
      }
      return ForwardLaunch.Place(address: base, strides: strides)
    }
    // The cache: [sequences or pages, rows, H_kv, D]; NaN where no key is.
    func cachePlace(_ name: String, _ tensor: Int, _ dimension: Int) -> ForwardLaunch.Place {
      let (first, rows): (Int, Int)
      switch problem.cache {
      case .contiguous(let sequences, let capacity): (first, rows) = (sequences, capacity)
      case .paged(let pages, let pageSize, _): (first, rows) = (pages, pageSize)
      }
      let heads = problem.keyValueHeads
      let strides = TensorStrides(batch: rows * heads * dimension, heads: dimension, length: heads * dimension)
      let base = memory.allocate(
        name, [UInt16](repeating: 0x7fff, count: first * strides.batch), access: .readOnly)
      for b in 0..<problem.batch {
        for n in 0..<keys(of: b) {
          for h in 0..<heads {
            var (place, row) = (batchIndex?[b] ?? b, n + (leftPadding?[b] ?? 0))
            if case .paged(let pages, let pageSize, let perSequence) = problem.cache {
              (place, row) = (page(b, row / pageSize, perSequence: perSequence, pages: pages), row % pageSize)
            }
            memory.write(
              (0..<dimension).map { bits(element(tensor, b, h, n, $0)) },
              to: base + UInt64(2 * strides.offset(batch: place, head: h, token: row)))
          }
        }
      }
      return ForwardLaunch.Place(address: base, strides: strides)
    }
    let output = rowsPlace("o", problem.valueDimension, isOutput: true)
    let workspace = memory.allocate(
      "workspace", byteCount: plan.launch.workspaceByteCount, access: .readWrite)
    memory.write([UInt8](repeating: 0, count: plan.launch.arrivalByteCount), to: workspace)
    var places = DecodeLaunch.Places(
      queries: rowsPlace("q", problem.dimension, isOutput: false), keys: cachePlace("k", 2, problem.dimension),
      values: cachePlace("v", 3, problem.valueDimension), output: output, lengths: words("lengths", lengths),
      workspace: workspace)
    let statisticsCount = problem.batch * heads * queries
    places.logSumExp = memory.allocate("lse", byteCount: max(statisticsCount, 1) * 4, access: .readWrite)
    places.batchIndex = words("batch_index", batchIndex)
    places.leftPadding = words("left_padding", leftPadding)
    if case .paged(let pages, let pageSize, let perSequence) = problem.cache {
      // Only the pages that hold keys are named; the others' entries would lead anywhere.
      places.pageTable = words(
        "page_table",
        (0..<problem.batch).flatMap { b in
          (0..<perSequence).map {
            $0 * pageSize < lengths[b] ? page(b, $0, perSequence: perSequence, pages: pages) : 1 << 30
          }
        })
    }
    let launch = Launch(
      blocks: (plan.launch.blocks, 1, 1), dynamicSharedByteCount: plan.launch.sharedByteCount,
      arguments: plan.launch.arguments(places))
    var counters = Counters()
    for _ in 0..<calls {
      counters = try Emulator.run(
        program ?? Program(try! plan.kernel()), launch, memory: memory, schedule: schedule,
        residentBlocks: plan.launch.blocks)
      if plan.launch.combineBlocks > 0 {
        let second = Launch(
          blocks: (plan.launch.combineBlocks, 1, 1), arguments: launch.arguments,
          isDependent: plan.specialization.combination == .dependentLaunch)
        let also = try Emulator.run(
          combine ?? Program(try! plan.combineKernel()!), second, memory: memory, schedule: schedule)
        counters.bankConflicts += also.bankConflicts
        counters.traffic["o"]!.bytesWritten += also.traffic["o"]!.bytesWritten
      }
    }

    var (reference, plain) = ((output: [Double](), lse: [Double]()), (output: [Double](), lse: [Double]()))
    for b in 0..<problem.batch {
      let one = try! problem.sequence(length: keys(of: b))
      func tensor(_ number: Int, _ shape: TensorShape) -> Tensor {
        Tensor(shape: shape, scalarType: type) { _, h, n, d in element(number, b, h, n, d) }
      }
      let (q, k, v) = (tensor(1, one.queryShape), tensor(2, one.keyShape), tensor(3, one.valueShape))
      q.withView { q in
        k.withView { k in
          v.withView { v in
            for h in 0..<heads {
              let exact = ReferenceAttention.head(h, batch: 0, of: one, queries: q, keys: k, values: v)
              reference.output += exact.output
              reference.lse += exact.logSumExp
              let rounded = PlainAttention.head(h, batch: 0, of: one, queries: q, keys: k, values: v)
              plain.output += rounded.output
              plain.lse += rounded.logSumExp
            }
          }
        }
      }
    }
    var (values, words16) = ([Double](), [UInt16]())
    for b in 0..<problem.batch {
      for h in 0..<heads {
        for n in 0..<queries {
          let row = output.address + UInt64(2 * output.strides.offset(batch: b, head: h, token: n))
          let read =
            memory.read(UInt16.self, count: problem.valueDimension, from: row)
            ?? [UInt16](repeating: 0x7fff, count: problem.valueDimension)
          words16 += read
          values += read.map {
            Double(type == .f16 ? Float(Float16(bitPattern: $0)) : Float(BFloat16(bitPattern: $0)))
          }
        }
      }
    }
    let statistics =
      memory.read(Float.self, count: statisticsCount, from: places.logSumExp)
      ?? [Float](repeating: .nan, count: statisticsCount)
    return Outcome(
      counters: counters,
      output: Comparison(actual: values, plain: plain.output, reference: reference.output, type: type),
      logSumExp: Comparison(
        actual: statistics.map(Double.init), plain: plain.lse, reference: reference.lse, type: .f32), bits: words16)
  }
}
