public import PTX

/// What a plan must know of a GPU.
public struct GPULimits: Hashable, Sendable {
  /// For people.
  public var name: String
  /// The architecture.
  public var target: Target
  /// Multiprocessors.
  public var multiprocessors: Int
  /// Shared memory that a block may ask for.
  public var sharedBytesPerBlock: Int
  /// Shared memory of a multiprocessor, of which each block also takes 1 KB for the system.
  public var sharedBytesPerMultiprocessor: Int

  /// The limits of a GPU.
  public init(
    name: String, target: Target, multiprocessors: Int, sharedBytesPerBlock: Int, sharedBytesPerMultiprocessor: Int
  ) {
    self.name = name
    self.target = target
    self.multiprocessors = multiprocessors
    self.sharedBytesPerBlock = sharedBytesPerBlock
    self.sharedBytesPerMultiprocessor = sharedBytesPerMultiprocessor
  }

  /// Typical limits of an architecture, to plan for a GPU that is not here. Source: CUDA C++ Programming Guide, table of
  /// technical specifications by compute capability.
  public static func typical(of target: Target) -> GPULimits {
    let (name, count, kilobytes) =
      switch target.number {
      case ...80: ("A100", 108, 164)
      case ...86: ("RTX 3090", 82, 100)
      case ...87: ("Orin", 16, 164)
      case ...89: ("RTX 4090", 128, 100)
      case ...90: ("H200", 132, 228)
      case ...119: ("B200", 148, 228)
      default: ("RTX 5090", 170, 100)
      }
    return GPULimits(
      name: "\(name) or the like", target: target, multiprocessors: count, sharedBytesPerBlock: (kilobytes - 1) * 1024,
      sharedBytesPerMultiprocessor: kilobytes * 1024)
  }
}
