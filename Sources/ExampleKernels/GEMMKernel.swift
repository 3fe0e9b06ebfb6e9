public import PTX

/// C = A B^T on tensor cores: the example of a pipelined kernel.
///
///     issue the copies of the first stages - 1 slices of A and B
///     for each slice:
///       wait until its copies have landed, for all threads
///       issue the copies of the slice stages - 1 ahead, into the slot that was read last
///       for each k16 step:  load fragments of A and B,  C += A B^T
///     store C
///
/// A is [M, K], B [N, K], C [M, N], row-major; A and B 16-bit, C f32; K and N multiples of 8, everything 16-byte
/// aligned. Beyond M, N and K the copies fill in zeros and read nothing.
///
/// A block of 128 threads computes 64 x 64 of C, a warp 16 x 64. A slice is 64 of K: 8 KB of A and 8 KB of B, rows of
/// 128 bytes whose 16-byte chunks are swizzled (`chunk ^ row % 8`), so that eight rows of one chunk lie in different
/// banks. Budget: 16 KB of shared memory a stage; 32 accumulators a thread, at most 96 registers.
public struct GEMMKernel: Hashable, Sendable {
  /// Slices under way at once, 2 or more.
  public var stages: Int
  /// The type of A and B.
  public var inputs: Matrix.Inputs

  /// Rows and columns of C of a block; also the length of a slice of K.
  public static let tile = 64
  static let rowBytes = 2 * tile
  static let tileBytes = tile * rowBytes
  static let threads = 128

  /// A kernel with this many stages.
  public init(stages: Int = 3, inputs: Matrix.Inputs = .f16) {
    self.stages = stages
    self.inputs = inputs
  }

  /// Dynamic shared memory that a launch needs.
  public var sharedByteCount: Int { stages * 2 * Self.tileBytes }

  /// Blocks for a matrix of this size.
  public func blocks(rows: Int, columns: Int) -> (x: Int, y: Int, z: Int) {
    ((columns + Self.tile - 1) / Self.tile, (rows + Self.tile - 1) / Self.tile, 1)
  }

  /// Parameters: pointers a, b, c; rows M, columns N, depth K.
  public func kernel() throws(KernelError) -> Kernel {
    try Kernel.build("gemm_\(inputs.rawValue)_stages\(stages)", threadsPerBlock: Self.threads) { k in
      let (a, b, c) = (k.pointer("a"), k.pointer("b"), k.pointer("c"))
      let (rows, columns) = (k.parameter("rows", U32.self), k.parameter("columns", U32.self))
      let depth = k.parameter("depth", U32.self)
      let shared = k.dynamicShared()
      let threads = ThreadLayout(k)
      let firstRow = (k.special(.blockY) * Self.tile).named("first_row")
      let firstColumn = (k.special(.blockX) * Self.tile).named("first_column")

      k.comment("where each thread copies")
      let copyA = TileCopy(k, threads, matrix: a, firstRow: firstRow, rows: rows, depth: depth)
      let copyB = TileCopy(k, threads, matrix: b, firstRow: firstColumn, rows: columns, depth: depth)
      var pipeline = Pipeline(k, stages: stages, stageBytes: 2 * Self.tileBytes, shared: shared)
      func copyNextSlice(to slot: Register<U32>) {
        copyA.issueNext(to: slot)
        copyB.issueNext(to: slot + Self.tileBytes)
        k.commitCopies()
      }

      k.comment("prologue: the first \(stages - 1) slices")
      for stage in 0..<stages - 1 { copyNextSlice(to: shared + stage * 2 * Self.tileBytes) }

      let fragments = FragmentLoader(k, threads)
      let sums = (0..<8).map { _ in (0..<4).map { _ in k.variable(k.constant(0)) } }
      let slices = ((depth + (Self.tile - 1)) / Self.tile).named("slices")
      k.loop(from: k.constant(0, U32.self), to: slices) { _ in
        k.comment("slice: wait, refill the slot that was read last, multiply")
        k.waitForCopies(pending: stages - 2)
        k.barrier()
        copyNextSlice(to: pipeline.writeSlot)
        for step in 0..<Self.tile / 16 {
          let left = fragments.loadA(pipeline.readSlot, step: step)
          for pair in 0..<4 {
            let right = fragments.loadB(pipeline.readSlot + Self.tileBytes, step: step, pair: pair)
            k.multiplyAdd(inputs, a: left, b: Array(right[0..<2]), into: sums[2 * pair])
            k.multiplyAdd(inputs, a: left, b: Array(right[2..<4]), into: sums[2 * pair + 1])
          }
        }
        pipeline.advance()
      }
      // Copies beyond the last slice read nothing, but they are copies.
      k.waitForCopies(pending: 0)

      k.comment("epilogue: lane (g, t) holds columns 2t and 2t + 1 of rows g and g + 8")
      for half in 0..<2 {
        let row = firstRow + threads.warp * 16 + threads.lane / 4 + half * 8
        let line = c + k.multiplyWide(row, columns) * 4
        for (number, sum) in sums.enumerated() {
          let column = firstColumn + (threads.lane % 4) * 2 + number * 8
          k.if((row .< rows) & (column .< columns)) {
            k.store([sum[2 * half], sum[2 * half + 1]], global: line + k.multiplyWide(column, 4))
          }
        }
      }
    }
  }
}

/// Who a thread is.
private struct ThreadLayout {
  let thread, lane, warp: Register<U32>

  init(_ k: KernelBuilder) {
    thread = k.special(.threadX)
    lane = k.special(.lane)
    warp = (thread / 32).named("warp")
  }
}

/// The copies of one matrix, slice after slice: eight neighbouring threads take the eight 16-byte chunks of a row, 128
/// threads 16 rows.
private struct TileCopy {
  let k: KernelBuilder
  let rows, depth: Register<U32>
  /// The thread's first row, and where its chunk of that row goes.
  let row, destination: Register<U32>
  /// The column of the next slice's chunk, and its address; they advance.
  let column: Register<U32>
  let source: Register<U64>
  /// From a row to that 16 further down.
  let step: Register<U64>

  init(
    _ k: KernelBuilder, _ threads: ThreadLayout, matrix: Register<U64>, firstRow: Register<U32>,
    rows: Register<U32>, depth: Register<U32>
  ) {
    self.k = k
    self.rows = rows
    self.depth = depth
    let (line, chunk) = (threads.thread / 8, threads.thread % 8)
    row = (firstRow + line).named("row")
    destination = (line * GEMMKernel.rowBytes + ((chunk ^ (line % 8)) * 16)).named("destination")
    column = k.variable(chunk * 8).named("column")
    source = (k.variable(matrix + (k.multiplyWide(row, depth) + k.wide(column)) * 2)).named("source")
    step = k.multiplyWide(depth, 16 * 2).named("step")
  }

  /// Rows and columns beyond the end are not read, whatever their address.
  func issueNext(to slot: Register<U32>) {
    let isInDepth = column .< depth
    var line = source
    for i in 0..<4 {
      let bytes = k.select(isInDepth & ((row + 16 * i) .< rows), 16, 0, U32.self)
      k.copyAsync(to: slot + destination, offset: i * 16 * GEMMKernel.rowBytes, from: line, sourceBytes: bytes)
      if i < 3 { line = line + step }
    }
    k.set(column, to: column + GEMMKernel.tile)
    k.set(source, to: source + GEMMKernel.rowBytes)
  }
}

/// A ring of slots in shared memory: one is read while the others are filled.
private struct Pipeline {
  let k: KernelBuilder
  /// Where the present slice is, and where the slice stages - 1 ahead goes.
  let readSlot, writeSlot: Register<U32>
  private let first: Register<U32>
  private let end: Register<U32>
  private let stageBytes: Int

  init(_ k: KernelBuilder, stages: Int, stageBytes: Int, shared: Register<U32>) {
    self.k = k
    self.stageBytes = stageBytes
    first = shared
    end = shared + stages * stageBytes
    readSlot = k.variable(shared).named("read_slot")
    writeSlot = k.variable(shared + (stages - 1) * stageBytes).named("write_slot")
  }

  mutating func advance() {
    for slot in [readSlot, writeSlot] {
      let next = slot + stageBytes
      k.set(slot, to: k.select(next .== end, first, next))
    }
  }
}

/// The addresses of `ldmatrix`. A row's chunk is `chunk ^ row % 8`; here row % 8 is lane % 8, so that a step along k
/// only flips bits of the lane's own offset.
private struct FragmentLoader {
  let k: KernelBuilder
  private let offsetA, offsetB: Register<U32>

  init(_ k: KernelBuilder, _ threads: ThreadLayout) {
    self.k = k
    let lane = threads.lane
    // A: lanes 0-15 give rows of the lower k half, 16-31 of the upper.
    offsetA = ((threads.warp * 16 + lane % 16) * GEMMKernel.rowBytes + (((lane / 16) ^ (lane % 8)) * 16)).named(
      "offset_a")
    // B: two tiles of 8 columns, each with both k halves.
    offsetB = (((lane / 16) * 8 + lane % 8) * GEMMKernel.rowBytes + ((((lane / 8) % 2) ^ (lane % 8)) * 16)).named(
      "offset_b")
  }

  func loadA(_ slot: Register<U32>, step: Int) -> [Register<U32>] {
    k.loadMatrix(count: 4, shared: slot + (offsetA ^ (step * 32)))
  }

  func loadB(_ slot: Register<U32>, step: Int, pair: Int) -> [Register<U32>] {
    k.loadMatrix(count: 4, shared: slot + (offsetB ^ (step * 32)), offset: pair * 16 * GEMMKernel.rowBytes)
  }
}
