package import PTX

/// What a plan must know of a GPU.
package struct GPULimits: Hashable, Sendable {
  /// For people.
  package var name: String
  /// The oldest architecture that PTX for this GPU may be written for: its own.
  package var target: Target
  /// Multiprocessors.
  package var multiprocessors: Int
  /// Shared memory that a block may ask for.
  package var sharedBytesPerBlock: Int
  /// Shared memory of a multiprocessor, of which each block also takes 1 KB for the system.
  package var sharedBytesPerMultiprocessor: Int
  /// Cycles a second, at most.
  package var clock: Double
  /// Bytes a second between the GPU and its memory, at most.
  package var bandwidth: Double
  /// Bytes of the L2 cache.
  package var cacheBytes: Int
  /// The CUDA version that the driver knows, major * 1000 + minor * 10; 0 where there is no driver.
  package var driverVersion = 0

  /// The limits of a GPU.
  package init(
    name: String, target: Target, multiprocessors: Int, sharedBytesPerBlock: Int, sharedBytesPerMultiprocessor: Int,
    clock: Double, bandwidth: Double, cacheBytes: Int, driverVersion: Int = 0
  ) {
    (self.name, self.target, self.multiprocessors) = (name, target, multiprocessors)
    (self.sharedBytesPerBlock, self.sharedBytesPerMultiprocessor) = (sharedBytesPerBlock, sharedBytesPerMultiprocessor)
    (self.clock, self.bandwidth, self.cacheBytes) = (clock, bandwidth, cacheBytes)
    self.driverVersion = driverVersion
  }

  /// Compute capability, major * 10 + minor.
  package var capability: Int { target.number }

  /// Whether the constants of the families' costs were fitted on such a GPU; others are ranked by the same ones.
  package var isFitted: Bool { capability == 90 }
}

extension GPULimits {
  /// GPUs that are not here, to plan for. Sources: CUDA C++ Programming Guide, table of technical specifications by
  /// compute capability; NVIDIA's data sheets.
  package static let described: [GPULimits] = [
    described("A100", .sm80, 108, kilobytes: 164, gigahertz: 1.41, terabytes: 2.04, cache: 40),
    described("RTX 3090", Target(86), 82, kilobytes: 100, gigahertz: 1.70, terabytes: 0.94, cache: 6),
    described("Orin", Target(87), 16, kilobytes: 164, gigahertz: 1.30, terabytes: 0.20, cache: 4),
    described("RTX 4090", .sm89, 128, kilobytes: 100, gigahertz: 2.52, terabytes: 1.01, cache: 72),
    described("H200", .sm90, 132, kilobytes: 228, gigahertz: 1.98, terabytes: 4.80, cache: 50),
    described("H100 SXM", .sm90, 132, kilobytes: 228, gigahertz: 1.98, terabytes: 3.35, cache: 50),
    described("H100 PCIe", .sm90, 114, kilobytes: 228, gigahertz: 1.76, terabytes: 2.04, cache: 50),
    described("H20", .sm90, 78, kilobytes: 228, gigahertz: 1.98, terabytes: 4.00, cache: 60),
    described("GH200", .sm90, 132, kilobytes: 228, gigahertz: 1.98, terabytes: 4.00, cache: 50),
    described("H100 MIG 1g.10gb", .sm90, 16, kilobytes: 228, gigahertz: 1.98, terabytes: 0.42, cache: 6),
    described("B200", Target(100), 148, kilobytes: 228, gigahertz: 1.97, terabytes: 8.00, cache: 126),
    described("RTX 5090", Target(120), 170, kilobytes: 100, gigahertz: 2.41, terabytes: 1.79, cache: 96),
  ]

  private static func described(
    _ name: String, _ target: Target, _ multiprocessors: Int, kilobytes: Int, gigahertz: Double, terabytes: Double,
    cache megabytes: Int
  ) -> GPULimits {
    GPULimits(
      name: name, target: target, multiprocessors: multiprocessors, sharedBytesPerBlock: (kilobytes - 1) * 1024,
      sharedBytesPerMultiprocessor: kilobytes * 1024, clock: gigahertz * 1e9, bandwidth: terabytes * 1e12,
      cacheBytes: megabytes << 20)
  }

  /// The first GPU above of an architecture; of one that none has, that of the newest before it.
  package static func typical(of target: Target) -> GPULimits {
    let newest = described.map(\.capability).filter { $0 <= target.number }.max()
    var gpu = described.first { $0.capability == newest } ?? described[0]
    (gpu.name, gpu.target) = ("\(gpu.name) or the like", target)
    return gpu
  }
}
