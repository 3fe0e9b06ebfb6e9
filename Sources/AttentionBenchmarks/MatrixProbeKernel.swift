package import PTX

/// `mma.sync` on registers and nothing else: what no kernel built on it can beat.
package enum MatrixProbeKernel {
  /// Threads of a block.
  package static let threads = 256
  private static let chains = 8

  /// Floating-point operations of a launch.
  package static func flops(blocks: Int, steps: Int) -> Double {
    Double(blocks * steps * chains) * Double(threads / 32) * Double(2 * 16 * 8 * 16)
  }

  /// Parameters: pointer to a word, steps.
  package static func kernel(_ inputs: Matrix.Inputs) throws(KernelError) -> Kernel {
    try Kernel.build("matrix_probe_\(inputs.rawValue)", threadsPerBlock: threads, blocksPerMultiprocessor: 2) { k in
      let result = k.pointer("result")
      let steps = k.parameter("steps", U32.self)
      // Numbers near 1 that differ from lane to lane: data decide how much power the tensor cores draw.
      let seed = k.special(.threadX) * 0x0101_0107 + 0x3c13_3c5b
      let a = (0..<4).map { (seed ^ ($0 * 0x0031_0013)) & 0x3dff_3dff }
      let b = (0..<2).map { (seed ^ ($0 * 0x0113_0071 + 0x77)) & 0xbdff_3dff }
      let sums = (0..<chains).map { _ in (0..<4).map { _ in k.variable(k.constant(0)) } }
      k.loop(from: k.constant(0, U32.self), to: steps) { _ in
        for sum in sums { k.multiplyAdd(inputs, a: a, b: b, into: sum) }
      }
      let total = sums.joined().dropFirst().reduce(sums[0][0]) { $0 + $1 }
      k.if(total .== 1.2345678) { k.store(total, global: result) }
    }
  }
}
