/// What a decode call costs, in seconds: a model whose terms are in the open. A plan chooses by it who puts parts together, and
/// `bench decode --explain` prints it.
///
/// Fitted to the 56 cases of `bench decode`'s grid with up to 16 rows, the L2 cache evicted: standard deviation 4% on an NVIDIA H200,
/// and 3% on an H100, which reads 3.1 TB/s where the H200 reads 4.4 (2026-11-28, Documentation/GPULog.md). With more rows the
/// products count too, of which it knows nothing.
public struct DecodeCost: Hashable, Sendable {
  /// A call that reads next to nothing: its launch, the first misses, the way of O into memory.
  public let fixed = 7.5e-6
  /// K and V: by the block that has most, or by all of them together, whichever takes longer.
  public let reading: Double
  /// Putting parts together.
  public let combination: Double

  /// All of it.
  public var seconds: Double { fixed + reading + combination }

  /// Bytes a second that a block reads, and that all together read.
  private static let bytesPerSecond = (ofBlock: 40e9, ofAll: 4.4e12)

  /// - Parameters:
  ///   - blockBytes: of K and V that the busiest block reads.
  ///   - bytes: that all read.
  init(blockBytes: Int, bytes: Int, combination: Double) {
    reading = max(
      Double(blockBytes) / Self.bytesPerSecond.ofBlock, Double(bytes) / Self.bytesPerSecond.ofAll)
    self.combination = combination
  }

  /// The last block of a unit reads all of its parts.
  static func lastBlock(bytes: Int) -> Double { 0.5e-6 + Double(bytes) / 65536 * 1e-6 }
  /// A launch behind has a block for each row of all sequences.
  static func launchBehind(rows: Int) -> Double { 1e-6 + Double(rows) * 2.25e-9 }
}
