/// What a run did, counted: the evidence for claims about a kernel's efficiency.
public struct Counters: Hashable, Sendable {
  /// Traffic of one allocation of global memory.
  public struct Traffic: Hashable, Sendable {
    /// Bytes that the instructions asked for.
    public var bytesRead = 0
    /// Bytes that the instructions wrote.
    public var bytesWritten = 0
    /// 32-byte sectors that the accesses touched, each instruction by itself. `bytes / 32` where nothing is wasted.
    public var sectorsRead = 0
    /// 32-byte sectors that the stores touched.
    public var sectorsWritten = 0

    /// No traffic yet.
    public init() {}
  }

  /// Instructions that warps ran.
  public var instructions = 0
  /// `mma` of a whole warp.
  public var matrixInstructions = 0
  /// Products of `wgmma`, counted for each warp.
  public var warpgroupProducts = 0
  /// Bytes of shared memory that they read: B once for four warps, and A, where it is there.
  public var warpgroupOperandBytes = 0
  /// Bytes that the copy engine moved into shared memory.
  public var bulkBytesLoaded = 0
  /// Bytes that it moved out of shared memory.
  public var bulkBytesStored = 0
  /// 2^x of one lane each.
  public var exponentials = 0
  /// Barriers that warps waited at.
  public var barriers = 0
  /// Accesses to shared memory by warps, in passes of 128 bytes that could not be fewer, and the passes beyond that
  /// conflicts in the 32 banks cost.
  public var sharedPasses = 0
  /// Passes beyond the fewest possible.
  public var bankConflicts = 0
  /// Words of shared memory of which bytes had to be told apart: what costs the emulator time, and kernels nothing.
  public var splitWords = 0
  /// By the allocation's name.
  public var traffic: [String: Traffic] = [:]

  /// Nothing yet.
  public init() {}
}
