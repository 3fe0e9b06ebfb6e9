internal import AttentionVerification

/// What `run` says, as JSON.
struct RunReport: Encodable {
  /// A comparison with a tensor of a file; errors beside what is allowed.
  struct Compared: Encodable {
    let tensor: String
    let passes: Bool
    let maximumError, maximumAllowed, meanError, meanAllowed: Double

    init(_ tensor: String, _ comparison: Comparison) {
      (self.tensor, passes) = (tensor, comparison.passes)
      (maximumError, maximumAllowed) = (comparison.maximumError, comparison.maximumAllowed)
      (meanError, meanAllowed) = (comparison.meanError, comparison.meanAllowed)
    }
  }

  let problem, plan: String
  /// Of each run.
  let seconds: [Double]
  var gigaflops, gigabytesPerSecond: Double?
  var peakBytes, scratchBytesPerThread: Int?
  /// Files, and the tensors in each.
  var written: [String: [String]] = [:]
  var comparison: Compared?
}

/// What `verify` says, as JSON.
struct VerifyReport: Encodable {
  /// A problem that failed, and the command that runs it alone.
  struct Failure: Encodable {
    let problem, failure: String
    var command: String?
  }

  /// What was drawn: problems, caches, gradients or threads at once; or instructions, where they differ already.
  let kind: String
  /// What problems were drawn by; nil where none were.
  let seed: UInt64?
  /// Problems, rounds of threads at once, or instructions.
  let cases: Int
  /// The worst error as a part of what is allowed.
  let worstRatio: Double?
  let failures: [Failure]
  /// Problems that are alike, by what they have in common.
  var families: [Family]?

  /// Problems of a family.
  struct Family: Encodable {
    let name: String
    let cases, failed: Int
    let worstRatio: Double
  }
}

/// What `info` says, as JSON.
struct InfoReport: Encodable {
  var version: String
  var vectors: [String]?
  var threads: Int?
  /// Measured multiply-adds in f32.
  var gigaflops: Double?
  /// Measured reading.
  var gigabytesPerSecond: Double
  var gpu: String?
  /// Measured `mma.sync` on bf16, and what Hopper's own instructions do, in words.
  var teraflops: Double?
  var wgmma: String?
}
