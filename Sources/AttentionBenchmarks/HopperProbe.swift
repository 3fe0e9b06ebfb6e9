internal import Attention
internal import CUDADriver
internal import ExampleKernels
package import GPURuntime
internal import PTX

/// What Hopper's own units give on a GPU: what kernels are planned on.
package struct HopperProbe {
  /// A figure, and how it came about.
  package struct Line: Sendable {
    package let what, figure: String
  }

  private let gpu: GPU
  private let probe: GPUProbe
  private let word, boxes: GPUBuffer
  /// Boxes in a tensor that stays in L2.
  private let boxCount: Int

  /// - Throws: `AttentionError`.
  package init(_ gpu: GPU) throws {
    self.gpu = gpu
    probe = try GPUProbe(gpu)
    word = try GPUBuffer(byteCount: 4, on: gpu)
    boxCount = 512
    boxes = try GPUBuffer(byteCount: boxCount * HopperProbeKernel.boxByteCount, on: gpu)
    try boxes.fill(0x5a)
  }

  /// What the driver makes of a kernel with `wgmma`; nil on GPUs that have none.
  package static func summary(on gpu: GPU) throws -> String? {
    guard Target.sm90a.runs(onCapability: gpu.capability) else { return nil }
    let kernel = try HopperGEMMKernel().kernel()
    return try gpu.reporting { () throws(CUDAError) in
      let library = try gpu.compile(kernel)
      return "the example product is " + library.summary(try library.resources(on: gpu.device))
    }
  }

  private func arguments(_ kernel: HopperProbeKernel, turns: Int) -> [Kernel.Argument] {
    func map(rows: Int) -> Kernel.Argument {
      .tensorMap(
        TensorMap(
          .bf16, address: boxes.address, extents: [64, boxes.byteCount / 128], strides: [128], box: [64, rows],
          swizzle: .bytes128))
    }
    var list: [Kernel.Argument] = [.pointer(word.address)]
    switch kernel {
    case .copies: list += [map(rows: 128), .u32(UInt32(boxCount - 1))]
    case .empty: list += (0..<4).map { _ in map(rows: 128) }
    case .products, .exponentials, .turns, .chain: break
    }
    return list + [.u32(UInt32(turns))]
  }

  /// Puts launches of a kernel into the stream.
  private func launcher(
    _ kernel: HopperProbeKernel, blocks: Int, turns: Int
  ) throws -> (() throws(AttentionError) -> Void) {
    let built = try kernel.kernel()
    let library = try gpu.reporting { () throws(CUDAError) in
      let library = try gpu.compile(built)
      try library.allow(dynamicSharedByteCount: kernel.sharedByteCount, on: gpu.device)
      return library
    }
    let shape = LaunchShape(
      blocks: blocks, threads: kernel.threads, sharedByteCount: kernel.sharedByteCount,
      attributes: kernel.clusterSize.map { [.cluster(x: $0, y: 1, z: 1)] } ?? [])
    let arguments = arguments(kernel, turns: turns)
    let kept = KeptLibrary(library)
    return { () throws(AttentionError) in
      try gpu.reporting { () throws(CUDAError) in
        try gpu.context.use { () throws(CUDAError) in
          try kept.library.launch(shape, arguments: arguments, in: gpu.stream.handle)
        }
      }
    }
  }

  /// Work a second, of all blocks: what more turns take more.
  private func rate(_ kernel: HopperProbeKernel, blocks: Int, turns: Int) throws -> Double {
    func seconds(_ turns: Int) throws -> Double {
      let launch = try launcher(kernel, blocks: blocks, turns: turns)
      return median(try probe.seconds(iterations: 7) { () throws(AttentionError) in try launch() })
    }
    return kernel.workATurn * Double(blocks) * Double(turns) / (try seconds(2 * turns) - seconds(turns))
  }

  /// All figures, in the order of the page.
  package func lines() throws -> [Line] {
    let multiprocessors = gpu.device.multiprocessors
    var lines: [Line] = []
    func add(_ what: String, _ figure: String) { lines.append(Line(what: what, figure: figure)) }
    // In turns, three times: under load the clock moves, and a figure depends on what ran before.
    let sizes = [64, 80, 96, 128, 192, 256]
    let products = sizes.flatMap { columns in
      [false, true].map { HopperProbeKernel.products(columns: columns, isFromRegisters: $0) }
    }
    let copies = [false, true].map { HopperProbeKernel.copies(isMulticast: $0) }
    var rates: [HopperProbeKernel: [Double]] = [:]
    var clocks: [Double] = []
    for _ in 0..<3 {
      for kernel in products {
        guard case .products(let columns, _) = kernel else { continue }
        rates[kernel, default: []].append(try rate(kernel, blocks: multiprocessors, turns: 2_000_000 / columns))
      }
      clocks.append(try clock())
      for kernel in copies {
        rates[kernel, default: []].append(try rate(kernel, blocks: multiprocessors / 2 * 2, turns: 400))
      }
    }
    for columns in sizes {
      let figures = [false, true].map {
        fixed(median(rates[.products(columns: columns, isFromRegisters: $0)]!) / 1e12, 0)
      }
      add(
        "products of 64 x \(columns) x 16, bf16",
        "\(figures[0]) TFLOPS with A from shared memory, \(figures[1]) from registers")
    }
    add("the clock right after them", "\(fixed(median(clocks) / 1e9, 2)) GHz")
    for isMulticast in [false, true] {
      let bytes = median(rates[.copies(isMulticast: isMulticast)]!)
      add(
        "the copy engine, from L2\(isMulticast ? ", each box for two blocks" : "")",
        "\(fixed(bytes / 1e12, 2)) TB/s into shared memory, \(fixed(bytes / 1e9 / Double(multiprocessors), 0)) GB/s a "
          + "multiprocessor")
    }
    for isPolynomial in [false, true] {
      let rate = try rate(.exponentials(isPolynomial: isPolynomial), blocks: multiprocessors * 8, turns: 2000)
      let own = try clock()
      add(
        "exponentials \(isPolynomial ? "by a polynomial of degree 3" : "by the special-function unit")",
        "\(fixed(rate / 1e12, 2)) T/s, \(fixed(rate / Double(multiprocessors) / own, 1)) a cycle and multiprocessor")
    }
    for isByTransactionBarrier in [false, true] {
      let hands = try rate(.turns(isByTransactionBarrier: isByTransactionBarrier), blocks: 1, turns: 20000)
      add(
        "a turn handed from one group to the other by \(isByTransactionBarrier ? "transaction" : "named") barrier",
        "\(fixed(1e9 / hands, 0)) ns")
    }
    let launch = try launcher(.empty, blocks: 1, turns: 0)
    let host = try median(
      (0..<9).map { _ in
        let each = try elapsedSeconds { for _ in 0..<100 { try launch() } } / 100
        try gpu.reporting { () throws(CUDAError) in try gpu.stream.synchronize() }
        return each
      })
    add("a launch with four tensor maps, encoded", "\(fixed(host * 1e6, 1)) us of the host")
    let map = TensorMap(
      .bf16, address: boxes.address, extents: [128, 16, 8192, 4], strides: [256, 4096, 1 << 25], box: [64, 1, 128, 1],
      swizzle: .bytes128)
    let library = KeptLibrary(try gpu.reporting { () throws(CUDAError) in try gpu.compile(try Self.anyKernel()) })
    let encoding = try gpu.reporting { () throws(CUDAError) in
      try gpu.context.use { () throws(CUDAError) in
        var failure: CUDAError?
        let each = withUnsafeTemporaryAllocation(byteCount: TensorMap.byteCount, alignment: 64) { place in
          median(
            (0..<9).map { _ in
              elapsedSeconds {
                for _ in 0..<1000 {
                  do throws(CUDAError) { try library.library.encode(map, to: place) } catch { failure = error }
                }
              } / 1000
            })
        }
        if let failure { throw failure }
        return each
      }
    }
    add("encoding a tensor map of four dimensions", "\(fixed(encoding * 1e9, 0)) ns of the host")
    return lines
  }

  /// One by whose library maps are encoded, whichever it is.
  private static func anyKernel() throws(CUDAError) -> Kernel {
    do throws(KernelError) { return try HopperProbeKernel.chain.kernel() } catch {
      throw .rejectedPTX(kernel: "a probe", log: "\(error)")
    }
  }

  /// Cycles a second, as multiply-adds that wait for one another count them.
  private func clock() throws -> Double { try rate(.chain, blocks: 1, turns: 1000) }
}

/// A compiled kernel that a closure can keep.
private final class KeptLibrary: Sendable {
  let library: Library
  init(_ library: consuming Library) { self.library = library }
}
