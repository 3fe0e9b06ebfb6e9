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

    /// A tile that is there for all, by one barrier, number 0.
    func loadedTile() {
      makeBarriers([1])
      k.if(isFirst) {
        k.arrive(transactionBarrier: barrier(0), expecting: Self.tileBytes)
        load(0, at: barrier(0))
      }
      ring(0, as: .consumer).wait()
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

  private static let pipelines: [HopperFault] = [
    HopperFault("the producer does not wait until a stage is free", .race, .copyUnderWay, .transactionBarrier) { s in
      s.pipeline(producerWaits: !s.isFaulty)
    },
    HopperFault("the consumer does not wait for its tile", .copyUnderWay, .uninitialized, .race) { s in
      s.pipeline(consumerWaits: !s.isFaulty)
    },
    HopperFault("the consumer begins with the producer's parity", .copyUnderWay, .uninitialized, .race) { s in
      s.pipeline(consumerSide: s.isFaulty ? .producer : .consumer)
    },
    HopperFault("the producer begins with the consumer's parity", .deadlock) { s in
      s.pipeline(producerSide: s.isFaulty ? .consumer : .producer)
    },
    HopperFault("less bytes are expected than come", .deadlock, .copyUnderWay) { s in
      s.pipeline(expecting: Setting.tileBytes / (s.isFaulty ? 2 : 1))
    },
    HopperFault("more bytes are expected than come", .deadlock) { s in
      s.pipeline(expecting: Setting.tileBytes + (s.isFaulty ? 128 : 0))
    },
    HopperFault("a stage is given back before the product that reads it is waited for", .race) { s in
      s.pipeline(freesEarly: s.isFaulty)
    },
    HopperFault("a stage is never given back", .deadlock) { s in s.pipeline(frees: !s.isFaulty) },
    HopperFault("all lanes give a stage back, where one of each warp is counted", .transactionBarrier) { s in
      s.pipeline(freesByAll: s.isFaulty)
    },
    HopperFault(
      "one warp is counted of the four that give a stage back", .race, .transactionBarrier, .copyUnderWay, .deadlock
    ) {
      s in
      s.pipeline(arrivals: s.isFaulty ? 1 : 4)
    },
    HopperFault("five warps are counted of the four that give a stage back", .deadlock) { s in
      s.pipeline(arrivals: s.isFaulty ? 5 : 4)
    },
    HopperFault("the consumer's ring stays where it is", .deadlock, .copyUnderWay, .race, .uninitialized) { s in
      s.pipeline(advances: !s.isFaulty)
    },
    HopperFault("two groups use a stage, and one gives it back", .race) { s in
      // Both groups multiply; the eighth warp's leader brings the next tile when those who are counted are done.
      s.makeBarriers([1, s.isFaulty ? 4 : 8])
      let (full, empty) = (s.ring(0, as: .consumer), s.ring(1, as: .producer))
      let sums = s.k.accumulators(32)
      for step in 0..<2 {
        s.k.if(s.thread .== 224) {
          empty.wait()
          full.arrive(expecting: Setting.tileBytes)
          s.load(0, at: s.barrier(0), row: step * 64)
        }
        full.wait()
        s.product(sums)
        s.k.if(s.isLeader & (s.isFaulty ? s.isConsumer : s.warp .< 8)) { s.k.arrive(transactionBarrier: s.barrier(1)) }
        full.advance()
        empty.advance()
      }
      s.store(sums)
    },
  ]

  private static let barriers: [HopperFault] = [
    HopperFault("a transaction barrier is made without a fence for the copy engine", .missingFence) { s in
      s.makeBarriers([1], fences: !s.isFaulty)
      s.k.if(s.isFirst) {
        s.k.arrive(transactionBarrier: s.barrier(0), expecting: Setting.tileBytes)
        s.load(0, at: s.barrier(0))
      }
      s.ring(0, as: .consumer).wait()
    },
    HopperFault("a transaction barrier is used before others know that it was made", .race, .transactionBarrier) { s in
      s.makeBarriers([256], waits: !s.isFaulty)
      s.k.arrive(transactionBarrier: s.barrier(0))
      s.ring(0, as: .consumer).wait()
    },
    HopperFault("a transaction barrier is made twice", .transactionBarrier) { s in
      s.makeBarriers([1])
      if s.isFaulty { s.makeBarriers([1]) }
    },
    HopperFault("a whole warp makes a transaction barrier", .transactionBarrier) { s in
      s.k.if(s.isFaulty ? s.warp .== 0 : s.isFirst) { s.k.initialize(transactionBarrier: s.barrier(0), arrivals: 1) }
    },
    HopperFault("nobody made the transaction barrier", .transactionBarrier) { s in
      s.makeBarriers([256])
      s.k.arrive(transactionBarrier: s.isFaulty ? s.barrier(1) : s.barrier(0))
    },
    HopperFault("an ordinary store hits a transaction barrier", .transactionBarrier) { s in
      s.makeBarriers([256])
      s.k.if(s.isFirst) { s.k.store(s.thread, shared: s.barrier(s.isFaulty ? 0 : 1), offset: 4) }
    },
    HopperFault("more threads arrive than are counted", .transactionBarrier) { s in
      s.makeBarriers([s.isFaulty ? 255 : 256])
      s.k.arrive(transactionBarrier: s.barrier(0))
    },
    HopperFault("a leader goes on while lanes of its warp may still wait, and ends the next phase", .transactionBarrier)
    { s in
      // Ping-pong of two warps' leaders; the other lanes wait too.
      s.makeBarriers([1, 1])
      let (ping, pong) = (s.ring(0, as: .consumer), s.ring(1, as: .consumer))
      s.k.if(s.warp .== 0) {
        for _ in 0..<3 {
          s.k.if(s.isLeader) { ping.arrive() }
          pong.wait()
          s.k.warpBarrier()
          pong.advance()
        }
      } else: {
        s.k.if(s.warp .== 1) {
          for _ in 0..<3 {
            ping.wait()
            if !s.isFaulty { s.k.warpBarrier() }
            s.k.if(s.isLeader) { pong.arrive() }
            ping.advance()
          }
        }
      }
    },
    HopperFault("bytes are expected, and nobody is counted for them", .deadlock) { s in
      s.makeBarriers([1])
      s.k.if(s.isFirst) {
        if s.isFaulty {
          s.k.expect(transactionBarrier: s.barrier(0), byteCount: Setting.tileBytes)
        } else {
          s.k.arrive(transactionBarrier: s.barrier(0), expecting: Setting.tileBytes)
        }
        s.load(0, at: s.barrier(0))
      }
      s.ring(0, as: .consumer).wait()
    },
    HopperFault("bytes are expected that nobody brings", .transactionBarrier) { s in
      s.makeBarriers([1])
      s.k.if(s.isFirst) { s.k.arrive(transactionBarrier: s.barrier(0), expecting: s.isFaulty ? 64 : 0) }
    },
    HopperFault("the wait is for another barrier than the copy's", .copyUnderWay, .race) { s in
      s.makeBarriers([1, 1])
      s.k.if(s.isFirst) {
        for number in 0..<2 {
          s.k.arrive(transactionBarrier: s.barrier(number), expecting: Setting.tileBytes)
          s.load(number, at: s.barrier(number))
        }
      }
      s.ring(s.isFaulty ? 1 : 0, as: .consumer).wait()
      s.k.store(s.k.load(U32.self, shared: s.tile(0) + s.thread * 4), global: s.output + s.k.multiplyWide(s.thread, 4))
      s.ring(s.isFaulty ? 0 : 1, as: .consumer).wait()
    },
    HopperFault("only the lane that waited knows of the tile, and others read it", .race) { s in
      s.makeBarriers([1])
      s.k.if(s.isFirst) {
        s.k.arrive(transactionBarrier: s.barrier(0), expecting: Setting.tileBytes)
        s.load(0, at: s.barrier(0))
      }
      s.k.if(s.isLeader) { s.ring(0, as: .consumer).wait() }
      if !s.isFaulty { s.k.warpBarrier() }
      s.k.store(s.k.load(U32.self, shared: s.tile(0) + s.thread * 4), global: s.output + s.k.multiplyWide(s.thread, 4))
    },
    HopperFault("who copied by cp.async arrives without waiting for the copies", .copyUnderWay) { s in
      s.makeBarriers([256])
      s.k.copyAsync(to: s.tile(0) + s.thread * 16, from: s.targetPlace + s.k.multiplyWide(s.thread, 16))
      if s.isFaulty {
        s.k.arrive(transactionBarrier: s.barrier(0))
      } else {
        s.k.arriveAfterCopies(transactionBarrier: s.barrier(0))
      }
      s.ring(0, as: .consumer).wait()
      s.k.store(
        s.k.load(U32.self, shared: s.tile(0) + (s.thread ^ 32) * 16), global: s.output + s.k.multiplyWide(s.thread, 4))
      if s.isFaulty {
        s.k.commitCopies()
        s.k.waitForCopies(pending: 0)
      }
    },
    HopperFault("the block ends while a copy is under way", .unfinishedCopy, needsLuck: true) { s in
      s.makeBarriers([1])
      s.k.if(s.isFirst) {
        s.k.arrive(transactionBarrier: s.barrier(0), expecting: Setting.tileBytes)
        s.load(0, at: s.barrier(0))
        if !s.isFaulty { s.ring(0, as: .consumer).wait() }
      }
    },
    HopperFault("a whole warp starts a copy", .undefined) { s in
      s.makeBarriers([1])
      s.k.if(s.isFaulty ? s.warp .== 0 : s.isFirst) { s.load(0, at: s.barrier(0)) }
      s.k.if(s.isFirst) { s.k.arrive(transactionBarrier: s.barrier(0), expecting: Setting.tileBytes) }
      s.ring(0, as: .consumer).wait()
    },
    HopperFault("a tile begins in the middle of the swizzle's pattern", .misaligned) { s in
      s.makeBarriers([1])
      s.k.if(s.isFirst) {
        s.k.arrive(transactionBarrier: s.barrier(0), expecting: Setting.tileBytes)
        s.load(0, at: s.barrier(0), to: s.shared + (s.isFaulty ? 512 : 1024))
      }
      s.ring(0, as: .consumer).wait()
    },
    HopperFault("a box is given less coordinates than the tensor has dimensions", .undefined) { s in
      s.makeBarriers([1])
      s.k.if(s.isFirst) {
        s.k.arrive(transactionBarrier: s.barrier(0), expecting: Setting.tileBytes)
        let zero = s.k.constant(0, S32.self)
        s.k.copy(s.map, s.isFaulty ? [zero] : [zero, zero], to: s.tile(0), barrier: s.barrier(0))
      }
      s.ring(0, as: .consumer).wait()
    },
    HopperFault("a box begins beside a multiple of 16 bytes", .misaligned) { s in
      s.makeBarriers([1])
      s.k.if(s.isFirst) {
        s.k.arrive(transactionBarrier: s.barrier(0), expecting: Setting.tileBytes)
        let (zero, first) = (s.k.constant(0, S32.self), s.k.constant(s.isFaulty ? 3 : -8, S32.self))
        s.k.copy(s.map, [first, zero], to: s.tile(0), barrier: s.barrier(0))
      }
      s.ring(0, as: .consumer).wait()
    },
    HopperFault("a copy leads out of shared memory", .outOfBounds) { s in
      s.makeBarriers([1])
      s.k.if(s.isFirst) {
        s.k.arrive(transactionBarrier: s.barrier(0), expecting: Setting.tileBytes)
        s.load(0, at: s.barrier(0), to: s.isFaulty ? s.shared + 4 * Setting.tileBytes : s.tile(1))
      }
      s.ring(0, as: .consumer).wait()
    },
  ]

  private static let products: [HopperFault] = [
    HopperFault("there is no fence before the first product", .missingFence) { s in
      s.loadedTile()
      let sums = s.k.accumulators(32)
      if !s.isFaulty { s.k.warpgroupFence() }
      s.start(sums)
      s.k.commitProducts()
      s.k.waitForProducts()
      s.store(sums)
    },
    HopperFault("sums are cleared behind the fence", .missingFence) { s in
      s.loadedTile()
      let sums = (0..<32).map { _ in s.k.variable(s.k.constant(0)) }
      s.k.warpgroupFence()
      if s.isFaulty { s.k.set(sums[5], to: s.k.constant(1)) }
      s.start(sums, sum: .always)
      s.k.commitProducts()
      s.k.waitForProducts()
      s.store(sums)
    },
    HopperFault("sums are scaled between two products without a fence", .missingFence) { s in
      s.loadedTile()
      let sums = s.k.accumulators(32)
      s.product(sums)
      s.k.set(sums[0], to: sums[0] * 2)
      if !s.isFaulty { s.k.warpgroupFence() }
      s.start(sums, sum: .always)
      s.k.commitProducts()
      s.k.waitForProducts()
      s.store(sums)
    },
    HopperFault("sums are read before their product is waited for", .registersUnderWay) { s in
      s.loadedTile()
      let sums = s.k.accumulators(32)
      s.k.warpgroupFence()
      s.start(sums)
      s.k.commitProducts()
      if s.isFaulty { s.store(sums) }
      s.k.waitForProducts()
      if !s.isFaulty { s.store(sums) }
    },
    HopperFault("the wait covers the other group of products", .registersUnderWay) { s in
      s.loadedTile()
      let (first, second) = (s.k.accumulators(32), s.k.accumulators(32))
      s.k.warpgroupFence()
      s.start(s.isFaulty ? second : first)
      s.k.commitProducts()
      s.start(s.isFaulty ? first : second)
      s.k.commitProducts()
      s.k.waitForProducts(pending: 1)
      s.store(first)
      s.k.waitForProducts()
    },
    HopperFault("a product belongs to no group, so that no wait covers it", .registersUnderWay) { s in
      s.loadedTile()
      let sums = s.k.accumulators(32)
      s.k.warpgroupFence()
      s.start(sums)
      if !s.isFaulty { s.k.commitProducts() }
      s.k.waitForProducts()
      s.store(sums)
      if s.isFaulty {
        s.k.commitProducts()
        s.k.waitForProducts()
      }
    },
    HopperFault("A's registers are written while a product reads them", .registersUnderWay) { s in
      s.loadedTile()
      let sums = s.k.accumulators(32)
      let a = (0..<4).map { s.k.variable(s.thread + $0) }
      s.k.warpgroupFence()
      s.k.startProduct(.bf16, a: a, b: s.operand(0), into: sums, sum: .never)
      s.k.commitProducts()
      if s.isFaulty { s.k.set(a[2], to: s.thread) }
      s.k.waitForProducts()
      if !s.isFaulty { s.k.set(a[2], to: s.thread) }
      s.store(sums)
    },
    HopperFault("A's registers are written behind the fence", .missingFence) { s in
      s.loadedTile()
      let sums = s.k.accumulators(32)
      let a = (0..<4).map { s.k.variable(s.thread + $0) }
      if !s.isFaulty { s.k.set(a[1], to: s.thread) }
      s.k.warpgroupFence()
      if s.isFaulty { s.k.set(a[1], to: s.thread) }
      s.k.startProduct(.bf16, a: a, b: s.operand(0), into: sums, sum: .never)
      s.k.commitProducts()
      s.k.waitForProducts()
      s.store(sums)
    },
    HopperFault("sums of a product under way are A of the next", .registersUnderWay) { s in
      s.loadedTile()
      let (sums, more) = (s.k.accumulators(32), s.k.accumulators(32))
      s.k.warpgroupFence()
      s.start(sums)
      s.k.commitProducts()
      if !s.isFaulty { s.k.waitForProducts() }
      let a = stride(from: 0, to: 8, by: 2).map {
        s.k.pack(sums[$0], sums[$0 + 1], as: BF16x2.self).reinterpreted(as: U32.self)
      }
      s.k.warpgroupFence()
      s.k.startProduct(.bf16, a: a, b: s.operand(0, isTransposed: true), into: more, sum: .never)
      s.k.commitProducts()
      s.k.waitForProducts()
      s.store(more)
    },
    HopperFault("products of different sizes add to the same registers", .registersUnderWay) { s in
      s.loadedTile()
      let sums = s.k.accumulators(32)
      s.k.warpgroupFence()
      s.start(sums)
      if !s.isFaulty {
        s.k.commitProducts()
        s.k.waitForProducts()
      }
      s.k.startProduct(.bf16, a: s.operand(0), b: s.operand(0), into: Array(sums[..<16]), sum: .always)
      s.k.commitProducts()
      s.k.waitForProducts()
      s.store(sums)
    },
    HopperFault("the warp ends with a product under way", .unfinishedCopy) { s in
      s.loadedTile()
      s.k.warpgroupFence()
      s.start(s.k.accumulators(32))
      s.k.commitProducts()
      if !s.isFaulty { s.k.waitForProducts() }
    },
    HopperFault("three of four warps issue a product", .divergence) { s in
      s.loadedTile()
      s.k.if(s.warp .< (s.isFaulty ? 3 : 4)) { s.product(s.k.accumulators(32)) }
    },
    HopperFault("half a warp issues a product", .divergence) { s in
      s.loadedTile()
      if s.isFaulty {
        s.k.if(s.lane .< 16) { s.product(s.k.accumulators(32)) }
      } else {
        s.product(s.k.accumulators(32))
      }
    },
    HopperFault("the warps of a group give different descriptors", .divergence) { s in
      s.loadedTile()
      let step = s.isFaulty ? (s.warp % 2) * 32 : s.k.constant(0, U32.self)
      let own = s.k.descriptor(Setting.layout, at: s.shared + step)
      s.k.warpgroupFence()
      s.k.startProduct(.bf16, a: s.operand(0), b: own, into: s.k.accumulators(32), sum: .never)
      s.k.commitProducts()
      s.k.waitForProducts()
    },
    HopperFault("the lanes of a warp give different descriptors", .undefined) { s in
      s.loadedTile()
      let own = s.k.descriptor(
        Setting.layout, at: s.shared + (s.isFaulty ? (s.lane % 2) * 32 : s.k.constant(0, U32.self)))
      s.k.warpgroupFence()
      s.k.startProduct(.bf16, a: s.operand(0), b: own, into: s.k.accumulators(32), sum: .never)
      s.k.commitProducts()
      s.k.waitForProducts()
    },
    HopperFault("an operand begins in the middle of the swizzle's pattern", .misaligned) { s in
      s.loadedTile()
      let own = s.k.descriptor(Setting.layout, at: s.shared + (s.isFaulty ? 128 : 0))
      s.k.warpgroupFence()
      s.k.startProduct(.bf16, a: s.operand(0), b: own, into: s.k.accumulators(32), sum: .never)
      s.k.commitProducts()
      s.k.waitForProducts()
    },
    HopperFault("an operand was never written", .uninitialized) { s in
      s.loadedTile()
      s.product(s.k.accumulators(32), s.isFaulty ? 1 : 0)
    },
  ]

  private static let proxies: [HopperFault] = [
    HopperFault("stores are multiplied without a fence between the proxies", .missingFence) { s in
      s.fill(0)
      if !s.isFaulty { s.k.proxyFence() }
      s.k.barrier()
      s.product(s.k.accumulators(32))
    },
    HopperFault("the reader fences between the proxies, and not the writer", .missingFence) { s in
      s.fill(0)
      if !s.isFaulty { s.k.proxyFence() }
      s.k.barrier()
      if s.isFaulty { s.k.proxyFence() }
      s.product(s.k.accumulators(32))
    },
    HopperFault("the fence between the proxies stands before the stores", .missingFence) { s in
      if s.isFaulty { s.k.proxyFence() }
      s.fill(0)
      if !s.isFaulty { s.k.proxyFence() }
      s.k.barrier()
      s.product(s.k.accumulators(32))
    },
    HopperFault("stores are fenced, and no barrier follows", .race, .uninitialized) { s in
      s.fill(0)
      s.k.proxyFence()
      if !s.isFaulty { s.k.barrier() }
      s.product(s.k.accumulators(32))
    },
    HopperFault("one lane of each warp fences the stores of all", .missingFence) { s in
      s.fill(0)
      if s.isFaulty { s.k.if(s.isLeader) { s.k.proxyFence() } } else { s.k.proxyFence() }
      s.k.barrier()
      s.product(s.k.accumulators(32))
    },
    HopperFault("an operand is overwritten while a product reads it", .race) { s in
      s.loadedTile()
      s.k.warpgroupFence()
      s.start(s.k.accumulators(32))
      s.k.commitProducts()
      if s.isFaulty { s.fill(0) }
      s.k.waitForProducts()
      s.k.barrier()
      if !s.isFaulty { s.fill(0) }
    },
    HopperFault("an operand is overwritten when the own product has ended, and others' may not", .race) { s in
      s.loadedTile()
      s.product(s.k.accumulators(32))
      if !s.isFaulty { s.k.barrier() }
      s.fill(0)
    },
    HopperFault("what ordinary loads read is overwritten by a copy without a fence", .missingFence) { s in
      s.makeBarriers([1])
      s.fill(0)
      s.k.proxyFence()
      s.k.barrier()
      s.k.store(s.k.load(U32.self, shared: s.tile(0) + s.thread * 4), global: s.output + s.k.multiplyWide(s.thread, 4))
      if !s.isFaulty { s.k.proxyFence() }
      s.k.barrier()
      s.k.if(s.isFirst) {
        s.k.arrive(transactionBarrier: s.barrier(0), expecting: Setting.tileBytes)
        s.load(0, at: s.barrier(0))
      }
      s.ring(0, as: .consumer).wait()
    },
    HopperFault("what ordinary loads read is overwritten by a copy that nothing orders behind", .race) { s in
      s.makeBarriers([1])
      s.fill(0)
      s.k.proxyFence()
      s.k.barrier()
      s.k.store(s.k.load(U32.self, shared: s.tile(0) + s.thread * 4), global: s.output + s.k.multiplyWide(s.thread, 4))
      s.k.proxyFence()
      if !s.isFaulty { s.k.barrier() }
      s.k.if(s.isFirst) {
        s.k.arrive(transactionBarrier: s.barrier(0), expecting: Setting.tileBytes)
        s.load(0, at: s.barrier(0))
      }
      s.ring(0, as: .consumer).wait()
    },
    HopperFault("what cp.async brought is multiplied without a fence", .missingFence) { s in
      for piece in 0..<2 {
        s.k.copyAsync(
          to: s.tile(0) + s.thread * 32, offset: piece * 16, from: s.targetPlace + s.k.multiplyWide(s.thread, 32),
          offset: piece * 16)
      }
      s.k.commitCopies()
      s.k.waitForCopies(pending: 0)
      if !s.isFaulty { s.k.proxyFence() }
      s.k.barrier()
      s.product(s.k.accumulators(32))
    },
    HopperFault("a tile's number in shared memory is overwritten before all have read it", .race) { s in
      // A mailbox, as schedulers have one.
      for number in 0..<2 {
        s.k.if(s.isFirst) { s.k.store(s.thread + number, shared: s.tile(3)) }
        s.k.barrier()
        s.k.store(s.k.load(U32.self, shared: s.tile(3)), global: s.output + s.k.multiplyWide(s.thread, 4))
        if !s.isFaulty { s.k.barrier() }
      }
    },
  ]

  private static let stores: [HopperFault] = [
    HopperFault("stores are sent without a fence between the proxies", .missingFence) { s in
      s.fill(0)
      if !s.isFaulty { s.k.proxyFence() }
      s.k.barrier()
      s.k.if(s.isFirst) {
        s.send()
        s.k.commitBulkCopies()
        s.k.waitForBulkCopies()
      }
    },
    HopperFault("a tile is overwritten before the copy engine has read it", .race) { s in
      s.fill(0)
      s.k.proxyFence()
      s.k.barrier()
      s.k.if(s.isFirst) {
        s.send()
        s.k.commitBulkCopies()
        if !s.isFaulty { s.k.waitForBulkCopies(untilRead: true) }
      }
      s.k.barrier()
      s.fill(0)
      if s.isFaulty { s.k.if(s.isFirst) { s.k.waitForBulkCopies() } }
    },
    HopperFault("another thread waits for the copy than the one that started it", .race, .unfinishedCopy) { s in
      s.fill(0)
      s.k.proxyFence()
      s.k.barrier()
      s.k.if(s.isFirst) {
        s.send()
        s.k.commitBulkCopies()
      }
      s.k.if(s.isFaulty ? s.thread .== 1 : s.isFirst) { s.k.waitForBulkCopies(untilRead: true) }
      s.k.barrier()
      s.fill(0)
    },
    HopperFault("a copy belongs to no group, so that no wait covers it", .race, .unfinishedCopy) { s in
      s.fill(0)
      s.k.proxyFence()
      s.k.barrier()
      s.k.if(s.isFirst) {
        s.send()
        if !s.isFaulty { s.k.commitBulkCopies() }
        s.k.waitForBulkCopies(untilRead: true)
      }
      s.k.barrier()
      s.fill(0)
    },
    HopperFault("the warp ends while the copy engine may still read shared memory", .unfinishedCopy) { s in
      s.fill(0)
      s.k.proxyFence()
      s.k.barrier()
      s.k.if(s.isFirst) {
        s.send()
        s.k.commitBulkCopies()
        if !s.isFaulty { s.k.waitForBulkCopies(untilRead: true) }
      }
    },
    HopperFault("what was sent is read by others as soon as its source was", .race) { s in
      s.fill(0)
      s.k.proxyFence()
      s.k.barrier()
      s.k.if(s.isFirst) {
        s.send()
        s.k.commitBulkCopies()
        s.k.waitForBulkCopies(untilRead: s.isFaulty)
      }
      s.k.barrier()
      s.k.store(
        s.k.load(U32.self, global: s.targetPlace + s.k.multiplyWide(s.thread, 4)),
        global: s.output + s.k.multiplyWide(s.thread, 4))
    },
    HopperFault("a box is stored before the tensor's beginning", .undefined) { s in
      s.fill(0)
      s.k.proxyFence()
      s.k.barrier()
      s.k.if(s.isFirst) {
        let zero = s.k.constant(0, S32.self)
        s.k.copy(from: s.tile(0), to: s.target, [zero, s.isFaulty ? s.k.constant(-1, S32.self) : zero])
        s.k.commitBulkCopies()
        s.k.waitForBulkCopies()
      }
    },
    HopperFault("a matrix is stored, and read without a barrier of the warp", .race) { s in
      let own = s.tile(0) + s.warp * 512 + s.lane * 16
      s.k.storeMatrix([s.thread, s.thread, s.thread, s.thread], shared: own)
      if !s.isFaulty { s.k.warpBarrier() }
      s.k.store(
        s.k.load(U32.self, shared: s.tile(0) + s.warp * 512 + (s.lane ^ 9) * 16),
        global: s.output + s.k.multiplyWide(s.thread, 4))
    },
  ]

  private static let roles: [HopperFault] = [
    HopperFault("more registers are asked for than others give back", .deadlock, threads: 384) { s in
      // 168 a thread when the kernel begins: 504 for a thread of each group.
      s.k.if(s.warp .< 4) {
        s.k.setRegisterCount(s.isFaulty ? 40 : 24, isIncrease: false)
      } else: {
        s.k.setRegisterCount(240, isIncrease: true)
      }
    },
    HopperFault("a decrease of registers is an increase", .registerCount) { s in
      s.k.setRegisterCount(40, isIncrease: false)
      s.k.setRegisterCount(s.isFaulty ? 48 : 32, isIncrease: false)
    },
  ]

  private static let clusters: [HopperFault] = [
    HopperFault(
      "a copy goes to a block that may not have made its barrier yet", .missingFence, .transactionBarrier,
      clusterSize: 2
    ) {
      s in
      s.makeBarriers([1])
      if !s.isFaulty { s.k.clusterBarrier() }
      s.k.if(s.isFirst) {
        s.k.arrive(transactionBarrier: s.barrier(0), expecting: Setting.tileBytes)
        s.k.if(s.k.special(.clusterRank) .== 0) {
          let zero = s.k.constant(0, S32.self)
          s.k.copy(
            s.map, [zero, zero], to: s.tile(0), barrier: s.barrier(0),
            multicast: s.k.halves(s.k.constant(3, U32.self)).low)
        }
      }
      s.ring(0, as: .consumer).wait()
      s.product(s.k.accumulators(32))
      s.k.clusterBarrier()
    },
    HopperFault("a copy goes to a block that the cluster does not have", .undefined, clusterSize: 2) { s in
      s.makeBarriers([1])
      s.k.clusterBarrier()
      s.k.if(s.isFirst) {
        s.k.arrive(transactionBarrier: s.barrier(0), expecting: Setting.tileBytes)
        s.k.if(s.k.special(.clusterRank) .== 0) {
          let zero = s.k.constant(0, S32.self)
          s.k.copy(
            s.map, [zero, zero], to: s.tile(0), barrier: s.barrier(0),
            multicast: s.k.halves(s.k.constant(s.isFaulty ? 6 : 3, U32.self)).low)
        }
      }
      s.ring(0, as: .consumer).wait()
      s.k.clusterBarrier()
    },
    HopperFault("a warp waits for its cluster without having arrived", .barrier, clusterSize: 2) { s in
      if !s.isFaulty { s.k.clusterArrive() }
      s.k.clusterWait()
    },
  ]
}
