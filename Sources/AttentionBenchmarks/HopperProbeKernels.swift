package import PTX

/// Kernels that do one thing only, again and again, on Hopper: what no kernel built on it can beat. Each takes the number
/// of turns as its last parameter.
package enum HopperProbeKernel: Hashable, Sendable {
  /// Products by `wgmma` of two groups a block, 64 x N by k 16, eight a turn: A from shared memory or from registers.
  case products(columns: Int, isFromRegisters: Bool)
  /// Boxes of 32 KB by the copy engine into two halves of a ring of six, of one warp a block; in clusters of two each block
  /// may bring half of each box for both.
  case copies(isMulticast: Bool)
  /// Exponentials of eight chains a thread, of the special-function unit or by a polynomial of degree 3.
  case exponentials(isPolynomial: Bool)
  /// Two groups of four warps that hand a turn to and fro.
  case turns(isByTransactionBarrier: Bool)
  /// Multiply-adds that wait for one another, 4 cycles each, by one warp.
  case chain
  /// Nothing, with four tensor maps.
  case empty

  private static let productsATurn = 8
  private static let (boxRows, ring) = (256, 6)
  package static let boxByteCount = boxRows * 128
  private static let chains = 8
  /// Multiply-adds of a turn.
  package static let chainLength = 64

  /// Threads of a block.
  package var threads: Int {
    switch self {
    case .products, .exponentials, .turns: 256
    case .copies, .chain, .empty: 32
    }
  }

  /// Dynamic shared memory of a block.
  package var sharedByteCount: Int {
    switch self {
    case .products(let columns, _): (64 + columns) * 128
    case .copies: Self.ring * Self.boxByteCount + Self.ring * 8
    case .turns: 16
    case .exponentials, .chain, .empty: 0
    }
  }

  /// Blocks of a cluster.
  package var clusterSize: Int? { if case .copies = self { 2 } else { nil } }

  /// What a block does in a turn: floating-point operations, bytes that arrive, exponentials, hands, or cycles.
  package var workATurn: Double {
    switch self {
    case .products(let columns, _): Double(2 * Self.productsATurn * 2 * 64 * columns * 16)
    case .copies: Double(Self.ring * Self.boxByteCount)
    case .exponentials: Double(256 * Self.chains)
    case .turns: 2
    case .chain: Double(4 * Self.chainLength)
    case .empty: 0
    }
  }

  /// The name of the kernel.
  package var name: String {
    switch self {
    case .products(let columns, let isFromRegisters): "products_n\(columns)_\(isFromRegisters ? "registers" : "shared")"
    case .copies(let isMulticast): isMulticast ? "copies_multicast" : "copies"
    case .exponentials(let isPolynomial): isPolynomial ? "exponentials_polynomial" : "exponentials"
    case .turns(let isByTransactionBarrier): isByTransactionBarrier ? "turns_mbarrier" : "turns_named"
    case .chain: "chain"
    case .empty: "empty_maps"
    }
  }

  /// Parameters: a pointer that is written to never, in truth; for copies a map and the mask of its boxes, for `empty` four
  /// maps; the number of turns.
  package func kernel() throws(KernelError) -> Kernel {
    try Kernel.build("probe_\(name)", threadsPerBlock: threads, clusterSize: clusterSize) { k in
      let result = k.pointer("result")
      switch self {
      case .products(let columns, let isFromRegisters): Self.products(k, result, columns, isFromRegisters)
      case .copies(let isMulticast): Self.copies(k, isMulticast)
      case .exponentials(let isPolynomial): Self.exponentials(k, result, isPolynomial)
      case .turns(let isByTransactionBarrier): Self.turns(k, isByTransactionBarrier)
      case .chain: Self.chain(k, result)
      case .empty:
        for number in 0..<4 { k.prefetch(k.tensorMap("map\(number)")) }
        _ = k.parameter("turns", U32.self)
      }
    }
  }

  private static func turns(_ k: KernelBuilder, _ body: (Register<U32>) -> Void) {
    k.loop(from: k.constant(0, U32.self), to: k.parameter("turns", U32.self), body)
  }

  /// So that nothing is left out: a number that the sum never is.
  private static func keep(_ k: KernelBuilder, _ values: [Register<F32>], _ result: Register<U64>) {
    let total = values.dropFirst().reduce(values[0]) { $0 + $1 }
    k.if(total .== 1.2345678) { k.store(total, global: result) }
  }

  private static func products(
    _ k: KernelBuilder, _ result: Register<U64>, _ columns: Int, _ isFromRegisters: Bool
  ) {
    let shared = k.dynamicShared(alignment: 1024)
    let thread = k.special(.threadX)
    // Numbers of all sizes around 1 that differ from place to place: data decide how much power the tensor cores draw.
    func word(_ seed: Register<U32>) -> Register<U32> {
      (((seed * 0x9e37_79b1) ^ ((seed * 0x85eb_ca6b) >> 13)) & 0x81ff_81ff) | 0x3e00_3e00
    }
    k.loop(from: thread, to: k.constant((64 + columns) * 32, U32.self), by: 256) { place in
      k.store(word(place), shared: shared + place * 4)
    }
    k.proxyFence()
    k.barrier()
    let a = k.descriptor(MatrixTile(rows: 64, columns: 64), at: shared)
    let b = k.descriptor(MatrixTile(rows: columns, columns: 64), at: shared + 64 * 128)
    let registers = (0..<4).map { word(thread + 1000 * ($0 + 1)) }
    let sums = (0..<columns / 2).map { _ in k.variable(k.constant(0)) }
    turns(k) { _ in
      k.warpgroupFence()
      for product in 0..<productsATurn {
        let right = b.step(product % 4)
        if isFromRegisters {
          k.startProduct(.bf16, a: registers, b: right, into: sums)
        } else {
          k.startProduct(.bf16, a: a.step(product % 4), b: right, into: sums)
        }
      }
      k.commitProducts()
      k.waitForProducts(pending: 1)
    }
    k.waitForProducts()
    keep(k, sums, result)
  }

  private static func copies(_ k: KernelBuilder, _ isMulticast: Bool) {
    let map = k.tensorMap("map")
    let mask = k.parameter("box_mask", U32.self)
    let shared = k.dynamicShared(alignment: 1024)
    let barriers = shared + ring * boxByteCount
    let (lane, rank) = (k.special(.lane), k.special(.clusterRank))
    k.if(lane .== 0) {
      for stage in 0..<ring { k.initialize(transactionBarrier: barriers, offset: stage * 8, arrivals: 1) }
      k.barrierInitializationFence()
    }
    k.clusterBarrier()
    // The boxes of a cluster, one after the other; neighbours begin elsewhere.
    let box = k.variable((k.special(.blockX) / 2) * 37)
    let zero = k.constant(0, S32.self)
    let both = k.halves(k.constant(3, U32.self)).low
    func fill(_ stages: Range<Int>) {
      k.if(lane .== 0) {
        for stage in stages {
          let barrier = barriers + stage * 8
          let place = shared + stage * boxByteCount
          let row = ((box + stage) & mask) * boxRows
          k.arrive(transactionBarrier: barrier, expecting: boxByteCount)
          for half in 0..<2 {
            let (first, destination) = (row + half * boxRows / 2, place + half * boxByteCount / 2)
            func copy(multicast: Register<B16>?) {
              k.copy(
                map, [zero, first.reinterpreted(as: S32.self)], to: destination, barrier: barrier, multicast: multicast)
            }
            if isMulticast {
              k.if(rank .== half) { copy(multicast: both) }
            } else {
              copy(multicast: nil)
            }
          }
        }
      }
    }
    let (first, second) = (0..<ring / 2, ring / 2..<ring)
    fill(first)
    fill(second)
    let parity = k.variable(k.constant(0, U32.self))
    turns(k) { _ in
      k.set(box, to: box + ring)
      for stages in [first, second] {
        for stage in stages { k.wait(transactionBarrier: barriers, offset: stage * 8, parity: parity) }
        // Nobody fills a stage again before both blocks have what was in it; meanwhile the other half arrives.
        k.clusterBarrier()
        fill(stages)
      }
      k.set(parity, to: parity ^ 1)
    }
    for stage in 0..<ring { k.wait(transactionBarrier: barriers, offset: stage * 8, parity: parity) }
    k.clusterBarrier()
  }

  private static func exponentials(_ k: KernelBuilder, _ result: Register<U64>, _ isPolynomial: Bool) {
    let start = k.float(k.special(.threadX)) * (1.0 / 256)
    let values = (0..<chains).map { k.variable(start + Float($0) / 16) }
    // 1.5 * 2^23, whose sum with x has x's whole part in its last bits.
    let magic = k.constant(12_582_912)
    turns(k) { _ in
      for value in values {
        if isPolynomial {
          let x = -value
          let shifted = x + magic
          let fraction = x - (shifted - magic)
          var sum = k.constant(0.077_119)
          for c: Float in [0.227_564, 0.695_146, 1] { sum = k.multiplyAdd(sum, fraction, k.constant(c)) }
          let bits = sum.reinterpreted(as: U32.self) + (shifted.reinterpreted(as: U32.self) << 23)
          k.set(value, to: bits.reinterpreted(as: F32.self))
        } else {
          k.set(value, to: k.exp2(-value))
        }
      }
    }
    keep(k, values, result)
  }

  private static func turns(_ k: KernelBuilder, _ isByTransactionBarrier: Bool) {
    let shared = k.dynamicShared(alignment: 16)
    let thread = k.special(.threadX)
    let isFirst = thread .< 128
    if isByTransactionBarrier {
      k.if(thread .== 0) {
        for barrier in 0..<2 { k.initialize(transactionBarrier: shared, offset: barrier * 8, arrivals: 4) }
      }
      k.barrier()
      let (ofFirst, ofSecond) = (
        BarrierRing(k, stages: 1, at: shared, as: .consumer), BarrierRing(k, stages: 1, at: shared + 8, as: .consumer)
      )
      func arrive(_ ring: BarrierRing) {
        // The others of the warp must have left their wait.
        k.warpBarrier()
        k.if(k.special(.lane) .== 0) { ring.arrive() }
      }
      turns(k) { _ in
        k.if(isFirst) {
          arrive(ofFirst)
          ofSecond.wait()
        } else: {
          ofFirst.wait()
          arrive(ofSecond)
        }
        ofFirst.advance()
        ofSecond.advance()
      }
    } else {
      turns(k) { _ in
        k.if(isFirst) {
          k.arrive(id: 1, threads: 256)
          k.barrier(id: 2, threads: 256)
        } else: {
          k.barrier(id: 1, threads: 256)
          k.arrive(id: 2, threads: 256)
        }
      }
    }
  }

  private static func chain(_ k: KernelBuilder, _ result: Register<U64>) {
    let x = k.variable(k.float(k.special(.threadX)))
    turns(k) { _ in
      for _ in 0..<chainLength { k.set(x, to: k.multiplyAdd(x, k.constant(0.999), k.constant(0.001))) }
    }
    keep(k, [x], result)
  }
}
