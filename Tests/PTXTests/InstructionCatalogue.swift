import PTX

/// Kernels that use every instruction of the language at least once.
enum InstructionCatalogue {
  /// All that sm_80 has.
  static func ampere() throws(KernelError) -> Kernel {
    try Kernel.build("ampere", threadsPerBlock: 64, blocksPerMultiprocessor: 1) { k in
      let place = k.pointer("place")
      let (u, s) = (k.parameter("u", U32.self), k.parameter("s", S32.self))
      let (d, f) = (k.parameter("d", U64.self), k.parameter("f", F32.self))
      let shared = k.shared("buffer", byteCount: 4096, alignment: 128)
      let more = k.dynamicShared()

      var words = SpecialRegister.allCases.filter { $0 != .clusterRank }.map { k.special($0) }
      words += [u + u, u - 3, u * u, u / 7, u % u, u & 255, u | u, u ^ 1, u << 3, u >> 3, u >> u]
      words += [k.minimum(u, u), k.maximum(u, u), k.permute(u, u, selector: 0x5410), k.logic3(u, u, u, table: 0xe8)]
      words += [k.select(u .< u, 1, 2, U32.self), k.narrow(d), k.multiplyAdd(u, u, u)]
      words += [
        k.shuffle(u, xor: 1), k.shuffle(u, lane: u, width: 8), k.shuffle(u, .up, by: 1), k.shuffle(u, .down, by: 2),
      ]
      words += [k.ballot(u .== 3), k.select(k.vote(.all, u .>= 2) & !k.vote(.any, u .!= u) | (u .<= u), u, u)]
      let signed = [s + s, s - 1, s * s, s / 3, s % 5, s >> 2, k.minimum(s, s), k.maximum(s, s), k.absolute(s)]
      words += signed.map { $0.reinterpreted(as: U32.self) }
      let longs = [
        d + d, d * 3, d << 2, d >> 1, d & 7, k.multiplyWide(u, u), k.multiplyWide(u, 12), k.wide(s), k.wide(u),
        k.multiplyAdd(d, d, d), k.select(d .> d, d, d), k.minimum(d, d), d / d, d % 3,
      ]
      words += longs.map { k.narrow($0) }

      var floats = [f + f, f - 1, f * f, -f, k.multiplyAdd(f, f, f), k.minimum(f, f), k.maximum(f, f), k.absolute(f)]
      floats += [k.exp2(f), k.reciprocal(f), k.log2(f), k.float(u), k.float(s), k.select(f .> 0, f, 1)]
      floats += [k.select(f .< f, f, f), k.select((f .== 1) | (f .!= 2), f, 0)]
      let halves: Register<F16x2> = k.pack(f, f, as: F16x2.self)
      let brains: Register<BF16x2> = k.pack(f, f, as: BF16x2.self)
      let (low, high) = k.unpack(halves * halves + halves - (-halves))
      floats += [low, high, k.unpack(brains).low, k.unpack(k.exp2(halves)).high]
      floats += [
        k.unpack(k.multiplyAdd(brains, brains, brains)).high,
        k.unpack(k.maximum(halves, k.constant(bits: 0x3c00, F16x2.self))).low,
      ]

      words += [k.integer(f, .nearest, as: U32.self), k.multiplyHigh(u, u), k.word(low: k.f16(f), high: k.bf16(f))]
      words += [k.integer(f, .towardZero, as: S32.self), k.integer(f, .down, as: S32.self), k.multiplyHigh(s, s)].map {
        $0.reinterpreted(as: U32.self)
      }
      words.append(k.integer(f, .up, as: U32.self))
      for (i, value) in words.enumerated() { k.store(value, global: place, offset: 4 * i) }
      for (i, value) in floats.enumerated() { k.store(value, shared: shared, offset: 4 * i) }
      k.store([u, u, u, u], shared: more)
      k.store(k.halves(u).high, global: place, offset: 2048)
      k.store(d, global: place, offset: 2056)
      k.barrier()
      k.barrier(id: 3, threads: 64)
      k.arrive(id: 4, threads: 64)
      k.warpBarrier()
      k.fence(.block)
      k.fence(.device)

      for operation in [AtomicOperation.Operation.add, .min, .max, .and, .or, .xor, .exchange] {
        _ = k.atomic(operation, global: place, u)
        _ = k.atomic(operation, shared: shared, u, ordering: .acquireRelease)
      }
      _ = k.atomic(.add, global: place, offset: 8, d, ordering: .release)
      _ = k.atomic(.add, global: place, f, ordering: .acquire)
      _ = k.atomic(.max, global: place, s)
      k.add([f], global: place, offset: 8)
      _ = k.compareAndSwap(global: place, expected: u, value: u)

      var loaded = k.load(U32.self, count: 4, global: place, hint: .readOnly)
      loaded += k.load(U32.self, count: 2, shared: shared, offset: 8)
      loaded.append(k.load(U32.self, global: place, ordering: .acquire))
      loaded.append(k.load(U32.self, global: place, ordering: .relaxed))
      for hint in [Memory.CacheHint.noL1, .evictFirst, .evictLast] {
        loaded.append(k.load(U32.self, global: place, hint: hint))
      }
      k.store(loaded[0], global: place, ordering: .release)
      k.store(loaded[6], global: place, ordering: .relaxed)
      k.store(k.load(B16.self, global: place, offset: 2), global: place, offset: 4)
      for byteCount in [4, 8, 16] { k.copyAsync(to: more, from: place, byteCount: byteCount, sourceBytes: u & 3) }
      k.copyAsync(to: more, offset: 64, from: place, offset: -16)
      k.commitCopies()
      k.waitForCopies(pending: 0)

      let sums = (0..<4).map { _ in k.variable(f) }
      let halfSums = (0..<2).map { _ in k.variable(halves) }
      for count in [1, 2, 4] { loaded += k.loadMatrix(count: count, shared: shared, isTransposed: count == 2) }
      let (a, b) = (Array(loaded[0..<4]), Array(loaded[4..<6]))
      k.multiplyAdd(.f16, a: a, b: b, into: sums)
      k.multiplyAdd(.bf16, a: a, b: b, into: sums)
      k.multiplyAdd(.f16, a: a, b: b, into: halfSums)
      k.store(sums, global: place, offset: 4096)
      k.store(halfSums, global: place, offset: 4112)

      k.if(u .> 100) {
        k.exit()
      } else: {
        k.when(u .== 7) { k.trap() }
      }
      k.loop(from: s, to: s + 4) { i in k.store(i, global: place) }
    }
  }

  /// What came with sm_89.
  static func ada() throws(KernelError) -> Kernel {
    try Kernel.build("ada", threadsPerBlock: 32) { k in
      let f = k.parameter("f", F32.self)
      k.store(k.unpackE4M3(k.packE4M3(f, f)), global: k.pointer("place"))
    }
  }

  /// What came with sm_90.
  static func hopper() throws(KernelError) -> Kernel {
    try Kernel.build("hopper", threadsPerBlock: 32) { k in
      let f = k.parameter("f", F32.self)
      let pair = k.pack(f, f, as: BF16x2.self)
      k.waitForPrerequisites()
      k.store(k.exp2(pair * pair + pair - pair), global: k.pointer("place"))
      k.launchDependents()
      k.store(k.special(.clusterRank), global: k.pointer("rank"))
      let shared = k.shared("buffer", byteCount: 1024)
      for count in [2, 4] { k.add((0..<count).map { _ in f }, global: k.pointer("sums\(count)"), offset: 16) }
      let word = k.parameter("word", U32.self)
      for count in [1, 2, 4] {
        k.storeMatrix((0..<count).map { _ in word }, shared: shared, offset: 256, isTransposed: count == 2)
      }
    }
  }

  /// What came with PTX 8.0 for sm_90: transaction barriers, the copy engine, clusters.
  static func copies() throws(KernelError) -> Kernel {
    try Kernel.build("copies", threadsPerBlock: 128, clusterSize: 2) { k in
      let maps = (1...5).map { k.tensorMap("map\($0)") }
      let place = k.pointer("place")
      let shared = k.dynamicShared(alignment: 1024)
      let barrier = k.shared("barriers", byteCount: 64, alignment: 8)
      let zero = k.constant(0, S32.self)
      let (mask, size) = (k.halves(k.constant(3, U32.self)).low, k.parameter("size", U32.self))
      k.if(k.elect()) {
        k.initialize(transactionBarrier: barrier, arrivals: 1)
        k.initialize(transactionBarrier: barrier, offset: 8, arrivals: 128)
        k.barrierInitializationFence()
      }
      k.clusterBarrier()
      let (first, last) = (k.policy(.evictFirst), k.policy(.evictLast))
      let full = BarrierRing(k, stages: 4, at: barrier, as: .consumer)
      k.if(k.special(.threadX) .== 0) {
        for (index, map) in maps.enumerated() {
          let coordinates = [Register<S32>](repeating: zero, count: index + 1)
          k.prefetch(map)
          k.copy(map, coordinates, to: shared, barrier: barrier)
          k.copy(map, coordinates, to: shared, barrier: barrier, multicast: mask, policy: first)
          k.copy(map, coordinates, to: shared, barrier: barrier, policy: last)
          k.copy(from: shared, to: map, coordinates)
          k.copy(from: shared, to: map, coordinates, policy: last)
          k.add(from: shared, to: map, coordinates)
        }
        k.copy(byteCount: size, from: place, to: shared, barrier: barrier)
        k.copy(byteCount: size, from: place, to: shared, barrier: barrier, multicast: mask)
        k.copy(byteCount: size, from: shared, to: place)
        k.add(byteCount: size, from: shared, to: place)
        k.commitBulkCopies()
        k.waitForBulkCopies(pending: 1, untilRead: true)
        k.waitForBulkCopies()
        k.expect(transactionBarrier: barrier, byteCount: 64)
        full.arrive(expecting: 4096)
      }
      full.wait()
      full.advance()
      full.arrive()
      k.arriveAfterCopies(transactionBarrier: barrier, offset: 8)
      k.proxyFence()
      k.store(size, shared: shared, isVolatile: true)
    }
  }

  /// What sm_90a alone has: products of four warps, of all sizes and types, and roles.
  static func warpgroups(
    _ inputs: WarpgroupMatrix.Inputs, _ accumulator: Matrix.Accumulator
  ) throws(KernelError) -> Kernel {
    try Kernel.build("warpgroups_\(inputs)_\(accumulator)", threadsPerBlock: 256) { k in
      let place = k.pointer("place")
      let shared = k.dynamicShared(alignment: 1024)
      let size = inputs.byteCount
      func operand(
        _ rows: Int, _ swizzle: TensorMap.Swizzle = .bytes128, isTransposed: Bool = false
      ) -> MatrixDescriptor {
        let tile =
          isTransposed
          ? MatrixTile(rows: 64, columns: rows, elementByteCount: size, swizzle: swizzle)
          : MatrixTile(rows: rows, columns: 128, elementByteCount: size, swizzle: swizzle)
        return k.descriptor(tile, at: shared, isTransposed: isTransposed)
      }
      func products<T: FloatType>(into sums: [Register<T>], columnsEach: Int) {
        let word = k.special(.threadX)
        let registers = (0..<4).map { k.variable(word + $0) }
        func part(_ columns: Int) -> [Register<T>] { Array(sums[..<(columns / columnsEach)]) }
        let few = part(64)
        k.warpgroupFence()
        for columns in stride(from: 8, through: 256, by: 8) {
          k.startProduct(inputs, a: operand(64), b: operand(columns), into: part(columns), sum: .never)
          k.commitProducts()
          k.waitForProducts()
        }
        k.startProduct(inputs, a: registers, b: operand(64), into: few)
        if inputs != .e4m3 { k.startProduct(inputs, a: operand(64), b: operand(64), into: few, negatesA: true) }
        k.startProduct(inputs, a: operand(64), b: operand(64).step(1), into: few, sum: .when(word .== 300))
        if size == 2 {
          for (a, b) in [(true, false), (false, true), (true, true)] {
            k.startProduct(
              inputs, a: operand(64, .bytes64, isTransposed: a), b: operand(64, .bytes32, isTransposed: b), into: few)
          }
          k.startProduct(inputs, a: registers, b: operand(64, isTransposed: true), into: few)
        }
        k.commitProducts()
        k.waitForProducts(pending: 1)
        k.waitForProducts()
        for (i, sum) in sums.enumerated() { k.store(sum, global: place, offset: i * 4) }
      }
      k.roles([
        WarpRole("producer", registers: 24) { group in k.store(group, global: place) },
        WarpRole("consumer", registers: 240) { _ in
          if accumulator == .f32 {
            products(into: k.accumulators(128), columnsEach: 2)
          } else {
            products(into: (0..<64).map { _ in k.constant(bits: 0, F16x2.self) }, columnsEach: 4)
          }
        },
      ])
    }
  }
}
