internal import ArgumentParser
internal import Attention
internal import AttentionBenchmarks
internal import ExampleKernels
internal import FlashAttention
internal import GPURuntime
internal import PTX

struct BenchGEMMCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "gemm",
    abstract: "Measure the example of a product of matrices on Hopper.",
    discussion: """
      C = A B^T and C = A B, of random normal numbers, by kernels of several tiles; TFLOPS are 2 M N K over the median of \
      runs, each timed by events after the L2 cache was filled with something else. Needs compute capability 9.0.
      """)

  @Option(help: "M, a multiple of 8.") var rows = 8192
  @Option(help: "N, a multiple of 8.") var columns = 8192
  @Option(help: "K, a multiple of 8.") var depth = 8192
  @Option(help: "Element type: f16 or bf16.") var dtype = ScalarType.bf16
  @Option(help: "Where to compute: gpu, or gpu:1 for another one.") var device = Device.gpu
  @Option(help: "Runs of each kernel; the median counts.") var iterations = 21

  func validate() throws {
    if iterations < 1 { throw ValidationError("--iterations is \(iterations); it must be at least 1.") }
    if dtype != .f16 && dtype != .bf16 { throw ValidationError("--dtype is \(dtype); it must be f16 or bf16.") }
    if device.ordinal == nil { throw ValidationError("--device is \(device); this product is for a GPU.") }
    for (name, value) in [("rows", rows), ("columns", columns), ("depth", depth)] where value > 1 << 17 {
      throw ValidationError("--\(name) is \(value); it must be at most 131072.")
    }
    if let obstacle = HopperGEMMKernel().obstacle(rows: rows, columns: columns, depth: depth) {
      throw ValidationError(obstacle)
    }
  }

  func run() throws {
    try reportingFileErrors {
      let gpu = try GPU.device(device.ordinal ?? 0)
      try gpu.requireHopper("these products")
      let bench = try GEMMBench(rows: rows, columns: columns, depth: depth, type: dtype, on: gpu)
      var lines = [["kernel", "TFLOPS", "by the driver"]]
      for kernel in HopperGEMMKernel.shipped where kernel.inputs == (dtype == .f16 ? .f16 : .bf16) {
        let measured = try bench.teraflops(kernel, iterations: iterations)
        lines.append(["\(kernel)", fixed(median(measured.each), 0), measured.compiled])
      }
      print("\(gpu.name), M \(rows), N \(columns), K \(depth)")
      print(table(lines))
    }
  }
}
