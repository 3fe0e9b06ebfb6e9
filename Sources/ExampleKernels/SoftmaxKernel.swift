public import PTX

/// The softmax of each row: the example of an online reduction.
///
///     each thread:   m, l = running maximum and sum over its columns, rescaled when m grows
///     each warp:     the lanes' (m, l) combined by shuffles
///     the block:     the warps' (m, l) combined through shared memory
///     each thread:   y = 2^(x log2 e - m) / l for its columns
///
/// x and y are [rows, columns] f32, one block a row; any number of columns. A row of -inf alone gives zeros.
/// Budget: 32 bytes of shared memory, at most 40 registers.
public struct SoftmaxKernel: Hashable, Sendable {
  /// Threads of a block.
  public var threads: Int

  /// A kernel with this many threads a row.
  public init(threads: Int = 128) { self.threads = threads }

  /// Parameters: pointers x, y; columns.
  public func kernel() throws(KernelError) -> Kernel {
    try Kernel.build("softmax_threads\(threads)", threadsPerBlock: threads) { k in
      let (x, y) = (k.pointer("x"), k.pointer("y"))
      let columns = k.parameter("columns", U32.self)
      let warps = threads / 32
      let partials = k.shared("partials", byteCount: warps * 8)
      let thread = k.special(.threadX)
      let row = k.multiplyWide(k.special(.blockX), columns) * 4
      let softmax = OnlineSoftmax(k)

      k.comment("each thread: its columns")
      k.loop(from: thread, to: columns, by: threads) { column in
        let value = k.load(F32.self, global: x + row + k.multiplyWide(column, 4)) * 1.4426950408889634
        softmax.include(maximum: value, sum: k.constant(1))
      }

      k.comment("each warp: by shuffles")
      for distance in [16, 8, 4, 2, 1] {
        softmax.include(
          maximum: k.shuffle(softmax.maximum, xor: distance), sum: k.shuffle(softmax.sum, xor: distance))
      }

      k.comment("the block: through shared memory")
      k.if(k.special(.lane) .== 0) {
        k.store([softmax.maximum, softmax.sum], shared: partials + (thread / 32) * 8)
      }
      k.barrier()
      let whole = OnlineSoftmax(k)
      for warp in 0..<warps {
        let partial = k.load(F32.self, count: 2, shared: partials, offset: warp * 8)
        whole.include(maximum: partial[0], sum: partial[1])
      }

      k.comment("each thread: its weights")
      let offset = whole.safeMaximum
      let share = k.select(whole.sum .> 0, k.reciprocal(whole.sum), 0)
      k.loop(from: thread, to: columns, by: threads) { column in
        let place = row + k.multiplyWide(column, 4)
        let value = k.load(F32.self, global: x + place) * 1.4426950408889634
        k.store(k.exp2(value - offset) * share, global: y + place)
      }
    }
  }
}

/// The running maximum and sum of a softmax, base 2 (M. Milakov, N. Gimelshein, "Online normalizer calculation for
/// softmax", 2018).
private struct OnlineSoftmax {
  let k: KernelBuilder
  let maximum, sum: Register<F32>

  init(_ k: KernelBuilder) {
    self.k = k
    maximum = k.variable(k.constant(-.infinity)).named("maximum")
    sum = k.variable(k.constant(0)).named("sum")
  }

  /// The maximum, or 0 where there is none: what may be subtracted from -inf.
  var safeMaximum: Register<F32> { k.select(maximum .> -.infinity, maximum, 0) }

  /// Takes in another part.
  func include(maximum other: Register<F32>, sum otherSum: Register<F32>) {
    let larger = k.maximum(maximum, other)
    let offset = k.select(larger .> -.infinity, larger, 0)
    let mine = sum * k.exp2(maximum - offset)
    let theirs = otherSum * k.exp2(other - offset)
    k.set(sum, to: mine + theirs)
    k.set(maximum, to: larger)
  }
}
