package import PTX

/// Reads memory and does nothing else: what no kernel that reads as many bytes can beat. As ordinary loads it also puts
/// other data out of the L2 cache, without leaving it dirty. Loads that pass L1 by (`.L1::no_allocate`) are the faster
/// probe, but go through L2 without driving much out of it: after 512 MB of them, 33 MB were read again as fast as
/// before (NVIDIA H200, 2026-11-28, 8.2 us against 8.1; 11.8 after ordinary loads).
///
///     for each 16 bytes of the thread's share: sum ^= them
///     if the sum is one that never comes: store it
package enum ReadProbeKernel {
  /// Threads of a block.
  package static let threads = 512
  private static let loads = 8

  /// Bytes that the blocks read together in one step; a buffer is a multiple of it.
  package static func stepByteCount(blocks: Int) -> Int { blocks * threads * loads * 16 }

  /// Parameters: pointer to the buffer, pointer to a word, steps.
  package static func kernel(evicts: Bool = false) throws(KernelError) -> Kernel {
    try Kernel.build(evicts ? "evict" : "read_probe", threadsPerBlock: threads) { k in
      let (buffer, result) = (k.pointer("buffer"), k.pointer("result"))
      let steps = k.parameter("steps", U32.self)
      let thread = k.special(.blockX) * threads + k.special(.threadX)
      let gridBytes = k.multiplyWide(k.special(.blocksX), threads * 16)
      let address = k.variable(buffer + k.multiplyWide(thread, 16))
      let sum = k.variable(k.constant(0, U32.self))
      k.loop(from: k.constant(0, U32.self), to: steps) { _ in
        var words: [[Register<U32>]] = []
        var place = address
        for _ in 0..<loads {
          words.append(k.load(U32.self, count: 4, global: place, hint: evicts ? .none : .noL1))
          place = place + gridBytes
        }
        k.set(address, to: place)
        k.set(sum, to: words.joined().reduce(sum) { $0 ^ $1 })
      }
      k.if(sum .== 0x1234_5678) { k.store(sum, global: result) }
    }
  }
}
