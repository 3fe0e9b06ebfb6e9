package import Attention

extension AttentionProblem {
  /// Sinks for tests, the same in every type: usual ones, one that is none, those that count for nothing and for all.
  package var exampleSinks: [Float]? {
    sinkType == nil ? nil : (0..<queryHeads).map { [0.5, -3, 4, -.infinity, 2.25, 12, -200, 1000][($0 * 3 + 2) % 8] }
  }
}
