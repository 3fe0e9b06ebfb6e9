public import PTX

/// C = A B^T, or C = A B, as Hopper does it: the example of the copy engine, of products by four warps, and of roles.
///
///     producer, one thread:  for each tile of C, for each slice of K:
///                              wait until the stage is empty;  start the copies of A's and B's slice
///     consumers, each 64 rows of the tile:
///                            for each tile of C:
///                              for each slice:  wait until the stage is full;  C += A B^T, four products
///                                               wait for the products of the slice before, and give its stage back
///                              wait for the last;  round, and write the tile to shared memory;  start its copy to C
///
/// A is [M, K], row-major; B [N, K], or [K, N]; C [M, N]; all of one 16-bit type, with f32 sums; M, N and K multiples of 8,
/// addresses of 16 bytes. Beyond the matrices the copy engine brings zeros and writes nothing.
///
/// A block takes tile after tile (a persistent grid), so that the copies of the next begin while the last is stored: 64
/// rows for each group of consumers by `columns`. Budget of the default, 128 x 256: a stage of 64 of K has 16 KB of A and
/// 32 KB of B, four of them and 16 KB a group for C are 224 KB; 128 accumulators a thread of 240 registers.
public struct HopperGEMMKernel: Hashable, Sendable, CustomStringConvertible {
  /// How B lies in memory.
  public enum Right: String, Hashable, Sendable, CaseIterable {
    /// [N, K]: C = A B^T.
    case transposed
    /// [K, N]: C = A B.
    case plain
  }

  /// The type of A, B and C: f16 or bf16.
  public var inputs: WarpgroupMatrix.Inputs
  /// How B lies.
  public var right: Right
  /// Groups of four warps that multiply.
  public var groups: Int
  /// Columns of a tile: 128 or 256.
  public var columns: Int
  /// Slices under way at once.
  public var stages: Int

  /// A kernel of these sizes.
  public init(
    _ inputs: WarpgroupMatrix.Inputs = .bf16, right: Right = .transposed, groups: Int = 2, columns: Int = 256,
    stages: Int = 4
  ) {
    (self.inputs, self.right, self.groups, self.columns, self.stages) = (inputs, right, groups, columns, stages)
  }

  /// Those that the tests hand to ptxas.
  public static var shipped: [HopperGEMMKernel] {
    [WarpgroupMatrix.Inputs.bf16, .f16].flatMap { inputs in
      Right.allCases.flatMap { right in
        [
          HopperGEMMKernel(inputs, right: right),
          HopperGEMMKernel(inputs, right: right, groups: 3, columns: 128),
        ]
      }
    }
  }

  /// The kernel's name.
  public var description: String { "hopper_gemm_\(inputs)_\(right.rawValue)_\(groups * 64)x\(columns)_stages\(stages)" }

  // MARK: - Shared memory

  /// Of K in a slice: a row of 128 bytes.
  static let depth = 64
  /// Columns of C that are sent at once, as slabs of 64.
  private static let slabs = 2

  /// Threads of a block.
  public var threads: Int { 128 * (groups + 1) }

  private var rows: Int { groups * 64 }
  private var tileA: MatrixTile { MatrixTile(rows: rows, columns: Self.depth) }
  private var tileB: MatrixTile {
    right == .transposed
      ? MatrixTile(rows: columns, columns: Self.depth) : MatrixTile(rows: Self.depth, columns: columns)
  }
  /// What a group of consumers sends at once.
  private var tileC: MatrixTile { MatrixTile(rows: 64, columns: Self.slabs * 64) }
  private var stageByteCount: Int { tileA.byteCount + tileB.byteCount }
  private var barriersOffset: Int { stages * stageByteCount + groups * tileC.byteCount }
  /// Dynamic shared memory of a launch.
  public var sharedByteCount: Int { barriersOffset + 2 * stages * BarrierRing.byteCount }

  // MARK: - Launches

  /// Why there is no such product, as a sentence; nil where there is.
  public func obstacle(rows: Int, columns: Int, depth: Int) -> String? {
    for (name, value) in [("M", rows), ("N", columns), ("K", depth)] where value < 8 || value % 8 != 0 {
      return "\(name) is \(value); this product takes multiples of 8 from 8 on."
    }
    return nil
  }

  /// A product, ready to be launched.
  ///
  /// - Parameters:
  ///   - a, b, c: addresses of the matrices.
  ///   - blocks: at most so many, as many as the GPU has multiprocessors.
  /// - Returns: the arguments, and how many blocks there are.
  public func launch(
    rows: Int, columns: Int, depth: Int, a: UInt64, b: UInt64, c: UInt64, blocks: Int
  ) -> (arguments: [Kernel.Argument], blocks: Int) {
    let element: TensorMap.Element = inputs == .f16 ? .f16 : .bf16
    func map(_ address: UInt64, _ rows: Int, _ columns: Int, box: Int) -> Kernel.Argument {
      .tensorMap(
        TensorMap(
          element, address: address, extents: [columns, rows], strides: [columns * 2], box: [64, box],
          swizzle: .bytes128))
    }
    let tiles = ((rows + self.rows - 1) / self.rows, (columns + self.columns - 1) / self.columns)
    return (
      [
        map(a, rows, depth, box: self.rows),
        right == .transposed ? map(b, columns, depth, box: self.columns) : map(b, depth, columns, box: Self.depth),
        map(c, rows, columns, box: 64), .u32(UInt32(tiles.0)), .u32(UInt32(tiles.1)),
        .u32(UInt32((depth + Self.depth - 1) / Self.depth)),
      ], min(blocks, tiles.0 * tiles.1)
    )
  }

  // MARK: - The kernel

  /// Parameters: maps of A, B and C; tiles of C along M and N; slices of K.
  public func kernel() throws(KernelError) -> Kernel {
    try Kernel.build(description, threadsPerBlock: threads) { k in
      let (mapA, mapB, mapC) = (k.tensorMap("a"), k.tensorMap("b"), k.tensorMap("c"))
      let tiles = TileOrder(k, rows: k.parameter("tile_rows", U32.self), columns: k.parameter("tile_columns", U32.self))
      let slices = k.parameter("slices", U32.self)
      let shared = k.dynamicShared(alignment: 1024)
      let stage = StagePlace(shared, stageByteCount, tileA.byteCount)
      let barriers = shared + barriersOffset

      k.if(k.special(.threadX) .== 0) {
        for number in 0..<stages {
          k.initialize(transactionBarrier: barriers, offset: number * 8, arrivals: 1)
          k.initialize(transactionBarrier: barriers, offset: (stages + number) * 8, arrivals: 4 * groups)
        }
        k.barrierInitializationFence()
      }
      k.barrier()
      // Consumers only arrive at `empty`, and the producer only at `full`.
      func rings() -> (full: BarrierRing, empty: BarrierRing) {
        (
          BarrierRing(k, stages: stages, at: barriers, as: .consumer),
          BarrierRing(k, stages: stages, at: barriers + stages * 8, as: .producer)
        )
      }
      k.roles([
        WarpRole("consumers", warpgroups: groups, registers: groups == 2 ? 240 : 160) { group in
          consume(k, group, rings(), tiles, slices, stage, mapC, staging: shared + stages * stageByteCount)
        },
        WarpRole("producer", registers: groups == 2 ? 24 : 32) { _ in
          // One lane, of which ptxas knows that it is one.
          k.if((k.special(.threadX) / 32) .== groups * 4) {
            k.if(k.elect()) { produce(k, rings(), tiles, slices, stage, mapA, mapB) }
          }
        },
      ])
    }
  }

  private func produce(
    _ k: KernelBuilder, _ rings: (full: BarrierRing, empty: BarrierRing), _ tiles: TileOrder, _ slices: Register<U32>,
    _ stage: StagePlace, _ mapA: TensorMapParameter, _ mapB: TensorMapParameter
  ) {
    k.prefetch(mapA)
    k.prefetch(mapB)
    tiles.forEach { tileRow, tileColumn in
      let row = (tileRow * rows).reinterpreted(as: S32.self)
      let column = (tileColumn * columns).reinterpreted(as: S32.self)
      k.loop(from: k.constant(0, U32.self), to: slices) { slice in
        let depth = (slice * Self.depth).reinterpreted(as: S32.self)
        rings.empty.wait()
        rings.full.arrive(expecting: stageByteCount)
        k.copy(mapA, [depth, row], to: stage.a(rings.full.stage), barrier: rings.full.current)
        let b = stage.b(rings.full.stage)
        if right == .transposed {
          k.copy(mapB, [depth, column], to: b, barrier: rings.full.current)
        } else {
          for slab in 0..<tileB.slabs {
            k.copy(mapB, [column + slab * 64, depth], to: b + slab * tileB.slabByteCount, barrier: rings.full.current)
          }
        }
        rings.full.advance()
        rings.empty.advance()
      }
    }
  }

  private func consume(
    _ k: KernelBuilder, _ group: Register<U32>, _ rings: (full: BarrierRing, empty: BarrierRing), _ tiles: TileOrder,
    _ slices: Register<U32>, _ stage: StagePlace, _ mapC: TensorMapParameter, staging: Register<U32>
  ) {
    let sums = k.accumulators(columns / 2)
    let store = TileStore(k, tileC, inputs, group, at: staging + group * tileC.byteCount, mapC)
    let isLeader = k.special(.lane) .== 0
    func giveBack() {
      k.if(isLeader) { rings.empty.arrive() }
      rings.empty.advance()
    }
    tiles.forEach { tileRow, tileColumn in
      k.loop(from: k.constant(0, U32.self), to: slices) { slice in
        rings.full.wait()
        // The group's 64 rows of A.
        let a = k.descriptor(tileA, at: stage.a(rings.full.stage) + group * (64 * 128))
        let b = k.descriptor(tileB, at: stage.b(rings.full.stage), isTransposed: right == .plain)
        let isLater = slice .> 0
        k.warpgroupFence()
        for step in 0..<Self.depth / 16 {
          k.startProduct(
            inputs, a: a.step(step), b: b.step(step), into: sums, sum: step == 0 ? .when(isLater) : .always)
        }
        k.commitProducts()
        rings.full.advance()
        k.waitForProducts(pending: 1)
        k.if(isLater) { giveBack() }
      }
      k.waitForProducts()
      giveBack()
      for first in stride(from: 0, to: columns, by: tileC.columns) {
        store.send(
          sums[first / 2..<(first + tileC.columns) / 2], row: tileRow * rows + group * 64,
          column: tileColumn * columns + first)
      }
    }
    store.finish()
  }
}

/// Where a stage's parts lie.
private struct StagePlace {
  private let shared: Register<U32>
  private let byteCount, offsetOfB: Int

  init(_ shared: Register<U32>, _ byteCount: Int, _ offsetOfB: Int) {
    (self.shared, self.byteCount, self.offsetOfB) = (shared, byteCount, offsetOfB)
  }

  func a(_ stage: Register<U32>) -> Register<U32> { shared + stage * byteCount }
  func b(_ stage: Register<U32>) -> Register<U32> { a(stage) + offsetOfB }
}

/// The tiles of C in the order in which blocks take them: columns of eight tiles, one after the other, so that blocks that
/// run at the same time share what they read of A and B in L2.
private struct TileOrder {
  private static let height = 8
  private let k: KernelBuilder
  private let rows, columns: Register<U32>

  init(_ k: KernelBuilder, rows: Register<U32>, columns: Register<U32>) {
    (self.k, self.rows, self.columns) = (k, rows, columns)
  }

  /// The tiles of this block: its row and column, counted in tiles.
  func forEach(_ body: (Register<U32>, Register<U32>) -> Void) {
    let count = rows * columns
    let tile = k.variable(k.special(.blockX)).named("tile")
    // A block has one at least.
    k.loop {
      let band = columns * Self.height
      let firstRow = (tile / band) * Self.height
      let place = tile % band
      let height = k.minimum(rows - firstRow, k.constant(Self.height, U32.self))
      body(firstRow + place % height, place / height)
      k.set(tile, to: tile + k.special(.blocksX))
      return tile .< count
    }
  }
}

/// A group's part of a tile of C on its way out: rounded, through shared memory, by the copy engine.
private struct TileStore {
  let k: KernelBuilder
  let tile: MatrixTile
  let inputs: WarpgroupMatrix.Inputs
  /// The group's named barrier, of its 128 threads.
  let barrier: Register<U32>
  let place: Register<U32>
  let map: TensorMapParameter
  /// The thread that starts copies, and so the one that can wait for them.
  let isSender: Predicate
  /// Of a lane: where its row of matrices lies that are stored together, before their column.
  let row: Register<U32>
  let chunk: Register<U32>

  init(
    _ k: KernelBuilder, _ tile: MatrixTile, _ inputs: WarpgroupMatrix.Inputs, _ group: Register<U32>,
    at place: Register<U32>, _ map: TensorMapParameter
  ) {
    (self.k, self.tile, self.inputs, self.place, self.map) = (k, tile, inputs, place, map)
    barrier = group + 1
    let thread = k.special(.threadX) % 128
    isSender = thread .== 0
    // Lanes 0-7 and 8-15 give rows of the left eight columns, the others of the right.
    let lane = k.special(.lane)
    row = (place + ((thread / 32) * 16 + lane % 16) * 128).named("row")
    chunk = ((lane / 16) ^ (lane % 8)).named("chunk")
  }

  /// Sends the sums of as many columns as the tile has.
  func send(_ sums: ArraySlice<Register<F32>>, row first: Register<U32>, column: Register<U32>) {
    let sums = Array(sums)
    k.if(isSender) { k.waitForBulkCopies(untilRead: true) }
    k.barrier(id: barrier, threads: 128)
    for pair in 0..<tile.columns / 16 {
      let (slab, within) = (pair / 4, pair % 4)
      let words = (0..<4).map { i in pack(sums[pair * 8 + i * 2], sums[pair * 8 + i * 2 + 1]) }
      k.storeMatrix(words, shared: row + (chunk ^ (within * 2)) * 16, offset: slab * tile.slabByteCount)
    }
    k.proxyFence()
    k.barrier(id: barrier, threads: 128)
    k.if(isSender) {
      for slab in 0..<tile.slabs {
        k.copy(
          from: place + slab * tile.slabByteCount, to: map,
          [(column + slab * 64).reinterpreted(as: S32.self), first.reinterpreted(as: S32.self)])
      }
      k.commitBulkCopies()
    }
  }

  /// Before the block ends.
  func finish() { k.if(isSender) { k.waitForBulkCopies(untilRead: true) } }

  private func pack(_ a: Register<F32>, _ b: Register<F32>) -> Register<U32> {
    inputs == .f16
      ? k.pack(a, b, as: F16x2.self).reinterpreted(as: U32.self)
      : k.pack(a, b, as: BF16x2.self).reinterpreted(as: U32.self)
  }
}
