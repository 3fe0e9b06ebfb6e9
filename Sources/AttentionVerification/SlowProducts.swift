internal import Attention
internal import CUDADriver
package import GPURuntime
package import PTX

/// Kernels with products by `wgmma` that ptxas finds something wrong with, though all are right: what checks of logs and of
/// machine code must notice.
package enum SlowProducts: String, CaseIterable, Sendable {
  /// Nothing wrong.
  case none
  /// Registers of A are written before the wait: ptxas lets all products wait for one another.
  case writesTooEarly
  /// Sums are read before their wait: ptxas waits there itself.
  case readsTooEarly
  /// More registers than a thread has.
  case spills
  /// A register count that ptxas leaves out, because the block's threads are not known.
  case registersLeftOut

  /// The number that ptxas and the driver give to the warning; nil where there is none, or more than one kind.
  package var number: String? {
    switch self {
    case .none, .spills: nil
    case .writesTooEarly: "C7513"
    case .readsTooEarly: "C7517"
    case .registersLeftOut: "C7508"
    }
  }

  /// Whether these are the warnings that belong to it.
  package func isHeard(in warnings: [String]) -> Bool {
    switch self {
    case .none: warnings.isEmpty
    case .spills: warnings.contains { $0.includes("spilled") }
    case .writesTooEarly, .readsTooEarly, .registersLeftOut:
      warnings.count == 1 && warnings[0].includes(number!)
    }
  }

  /// What a GPU's driver says of it, compiled anew.
  package func warnings(from gpu: GPU) throws -> [String] {
    // The driver's cache keeps kernels by their text, and no warnings.
    var random = SystemRandomNumberGenerator()
    let text = try text() + "// \(random.next())\n"
    return try gpu.reporting { () throws(CUDAError) in
      let library = try gpu.compile(text, PTXVersion(8, 0), entry: "slow_products")
      let spilled = try library.resources(on: gpu.device).localBytes
      return library.remarks + (spilled > 0 ? ["\(spilled) bytes spilled"] : [])
    }
  }

  /// 128 threads; the parameter is an address for the sums.
  package func text() throws(KernelError) -> String {
    let kernel = try Kernel.build("slow_products", threadsPerBlock: 128) { k in
      let output = k.pointer("output")
      let shared = k.dynamicShared(alignment: 1024)
      let tile = MatrixTile(rows: 256, columns: 64)
      let descriptor = k.descriptor(tile, at: shared)
      if self == .registersLeftOut { k.setRegisterCount(160, isIncrease: false) }
      let count = self == .spills ? 128 : 32
      let sums = k.accumulators(count)
      let others = self == .spills ? k.accumulators(count) : []
      let own = (0..<4).map { k.variable(k.special(.threadX) + $0) }
      k.loop(from: k.constant(0, U32.self), to: k.special(.blocksX)) { _ in
        k.warpgroupFence()
        for sums in [sums, others] where !sums.isEmpty {
          for step in 0..<4 {
            if self == .writesTooEarly {
              k.startProduct(.bf16, a: own, b: descriptor.step(step), into: sums)
            } else {
              k.startProduct(.bf16, a: descriptor.step(step), b: descriptor.step(step), into: sums)
            }
          }
          k.commitProducts()
        }
        if self == .writesTooEarly { for (i, word) in own.enumerated() { k.set(word, to: word + (i + 1)) } }
        if self == .readsTooEarly { k.store(sums[0], global: output) }
        k.waitForProducts()
      }
      let place = output + k.multiplyWide(k.special(.threadX), 4)
      for (i, sum) in (sums + others).enumerated() { k.store(sum, global: place, offset: i * 512) }
    }
    let text = try kernel.text()
    return self == .registersLeftOut
      ? text.split(separator: "\n").filter { !$0.includes(".maxntid") }.joined(separator: "\n") + "\n" : text
  }
}
