import PTX
import PTXEmulator

/// A mistake in a kernel of Hopper's instructions: the same code with the mistake and without.
struct HopperFault: Sendable, CustomStringConvertible {
  /// What a kernel gets: 256 threads, four tiles of 8 KB and some barriers in shared memory, a tensor of 64 columns.
  struct Setting {
    let k: KernelBuilder
    let isFaulty: Bool
    /// bf16 `[4096, 64]`, 1 everywhere, in boxes of 64 x 64; and another that is written.
    let map, target: TensorMapParameter
    /// The written one's address, and 4096 words that nobody wrote.
    let targetPlace, output: Register<U64>
    let shared, thread, lane, warp: Register<U32>

    static let layout = MatrixTile(rows: 64, columns: 64)
    static let tileBytes = layout.byteCount
    static let sharedByteCount = 4 * tileBytes + 256

    func tile(_ number: Int) -> Register<U32> { shared + number * Self.tileBytes }
    func barrier(_ number: Int) -> Register<U32> { shared + (4 * Self.tileBytes + 8 * number) }
    var isFirst: Predicate { thread .== 0 }
    var isLeader: Predicate { lane .== 0 }
    /// The first four warps use, the fifth brings.
    var isConsumer: Predicate { warp .< 4 }
    var isProducer: Predicate { thread .== 128 }

    /// Barriers for so many arrivals each, ready for everybody.
    func makeBarriers(_ arrivals: [Int], fences: Bool = true, waits: Bool = true) {
      k.if(isFirst) {
        for (number, count) in arrivals.enumerated() {
          k.initialize(transactionBarrier: barrier(number), arrivals: count)
        }
        if fences { k.barrierInitializationFence() }
      }
      if waits { k.barrier() }
    }

    func ring(_ number: Int, stages: Int = 1, as side: BarrierRing.Side) -> BarrierRing {
      BarrierRing(k, stages: stages, at: barrier(number), as: side)
    }

    /// Starts to bring a tile; its bytes are expected elsewhere.
    func load(_ number: Int, at barrier: Register<U32>, row: Int = 0, to place: Register<U32>? = nil) {
      k.copy(
        map, [k.constant(0, S32.self), k.constant(row, S32.self)], to: place ?? tile(number), barrier: barrier)
    }

    /// The first thread expects a tile at a barrier, and starts what brings it; then all wait.
    func bring(_ start: () -> Void) {
      k.if(isFirst) {
        k.arrive(transactionBarrier: barrier(0), expecting: Self.tileBytes)
        start()
      }
      ring(0, as: .consumer).wait()
    }

    /// A tile that is there for all, by one barrier, number 0.
    func loadedTile() {
      makeBarriers([1])
      bring { load(0, at: barrier(0)) }
    }

    /// A tile that every thread has written a part of, fenced for the asynchronous proxy, behind a barrier.
    func filledTile() {
      fill(0)
      k.proxyFence()
      k.barrier()
    }

    /// Every thread's word of shared memory goes to the output, by ordinary accesses; of the first tile its own.
    func copyOut(_ place: Register<U32>? = nil) {
      k.store(
        k.load(U32.self, shared: place ?? tile(0) + thread * 4), global: output + k.multiplyWide(thread, 4))
    }

    /// Starts a product of the tile with another operand, and waits for it.
    func product(with own: MatrixDescriptor) {
      k.warpgroupFence()
      k.startProduct(.bf16, a: operand(0), b: own, into: k.accumulators(32), sum: .never)
      k.commitProducts()
      k.waitForProducts()
    }

    /// Every thread writes its 32 bytes of a tile.
    func fill(_ number: Int) {
      let one = k.constant(0x3f80_3f80, U32.self)
      for half in 0..<2 {
        k.store([one, one, one, one], shared: tile(number) + thread * 32, offset: half * 16)
      }
    }

    func operand(_ number: Int, isTransposed: Bool = false) -> MatrixDescriptor {
      k.descriptor(Self.layout, at: tile(number), isTransposed: isTransposed)
    }

    func start(_ sums: [Register<F32>], _ number: Int = 0, sum: KernelBuilder.ProductSum = .never) {
      k.startProduct(.bf16, a: operand(number), b: operand(number), into: sums, sum: sum)
    }

    /// A product of a tile with itself, waited for.
    func product(_ sums: [Register<F32>], _ number: Int = 0, sum: KernelBuilder.ProductSum = .never) {
      k.warpgroupFence()
      start(sums, number, sum: sum)
      k.commitProducts()
      k.waitForProducts()
    }

    func store(_ sums: [Register<F32>]) { k.store(sums[0], global: output + k.multiplyWide(thread, 4)) }

    /// Four tiles through a ring of stages: one thread brings, four warps multiply.
    func pipeline(
      producerWaits: Bool = true, consumerWaits: Bool = true, expecting bytes: Int = tileBytes,
      consumerSide: BarrierRing.Side = .consumer, producerSide: BarrierRing.Side = .producer,
      frees: Bool = true, freesEarly: Bool = false, freesByAll: Bool = false, arrivals: Int = 4, stages: Int = 2,
      advances: Bool = true
    ) {
      makeBarriers([Int](repeating: 1, count: stages) + [Int](repeating: arrivals, count: stages))
      k.if(isConsumer) {
        let (full, empty) = (ring(0, stages: stages, as: consumerSide), ring(stages, stages: stages, as: .consumer))
        let sums = k.accumulators(32)
        func free() { freesByAll ? empty.arrive() : k.if(isLeader) { empty.arrive() } }
        for step in 0..<4 {
          if consumerWaits { full.wait() }
          k.warpgroupFence()
          start(sums, step % stages, sum: step == 0 ? .never : .always)
          k.commitProducts()
          if freesEarly && frees { free() }
          k.waitForProducts()
          if !freesEarly && frees { free() }
          if advances { full.advance() }
          empty.advance()
        }
        store(sums)
      } else: {
        k.if(isProducer) {
          let (full, empty) = (ring(0, stages: stages, as: .consumer), ring(stages, stages: stages, as: producerSide))
          for step in 0..<4 {
            if producerWaits { empty.wait() }
            full.arrive(expecting: bytes)
            load(step % stages, at: full.current, row: step * 64)
            full.advance()
            empty.advance()
          }
        }
      }
    }

    /// Sends a tile to the written tensor.
    func send(_ number: Int = 0) {
      k.copy(from: tile(number), to: target, [k.constant(0, S32.self), k.constant(0, S32.self)])
    }
  }

  let name: String
  let kinds: Set<Hazard.Kind>
  /// Whether luck decides: found in some of the schedules, not in all.
  let needsLuck: Bool
  let clusterSize: Int?
  let threads: Int
  let body: @Sendable (Setting) -> Void

  init(
    _ name: String, _ kinds: Hazard.Kind..., needsLuck: Bool = false, clusterSize: Int? = nil,
    threads: Int = 256, body: @escaping @Sendable (Setting) -> Void
  ) {
    (self.name, self.kinds, self.needsLuck) = (name, Set(kinds), needsLuck)
    (self.clusterSize, self.threads, self.body) = (clusterSize, threads, body)
  }

  var description: String { name }

  func kernel(isFaulty: Bool) throws -> Kernel {
    try Kernel.build("planted", threadsPerBlock: threads, clusterSize: clusterSize) { k in
      let (map, target) = (k.tensorMap("map"), k.tensorMap("target"))
      let (place, output) = (k.pointer("place"), k.pointer("output"))
      let shared = k.dynamicShared(alignment: 1024)
      let (thread, lane) = (k.special(.threadX), k.special(.lane))
      body(
        Setting(
          k: k, isFaulty: isFaulty, map: map, target: target, targetPlace: place, output: output, shared: shared,
          thread: thread, lane: lane, warp: thread / 32))
    }
  }

  func run(_ kernel: Kernel, _ schedule: Schedule) throws(Hazard) {
    let memory = GlobalMemory()
    let input = memory.allocate("input", [UInt16](repeating: 0x3f80, count: 4096 * 64), access: .readOnly)
    let target = memory.allocate("target", [UInt16](repeating: 0, count: 64 * 64), access: .readWrite)
    let output = memory.allocate("output", byteCount: 16384, access: .readWrite)
    func map(_ address: UInt64, _ rows: Int) -> Launch.Argument {
      .tensorMap(
        TensorMap(.bf16, address: address, extents: [64, rows], strides: [128], box: [64, 64], swizzle: .bytes128))
    }
    _ = try Emulator.run(
      Program(kernel),
      Launch(
        blocks: (clusterSize ?? 1, 1, 1), dynamicSharedByteCount: Setting.sharedByteCount,
        arguments: [map(input, 4096), map(target, 64), .pointer(target), .pointer(output)]),
      memory: memory, schedule: schedule, stepLimit: 1_000_000)
  }
}

extension HopperFault {
  static let all = pipelines + barriers + products + proxies + stores + roles + clusters
}
