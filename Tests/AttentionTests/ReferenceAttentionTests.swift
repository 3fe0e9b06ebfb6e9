import Attention
import AttentionVerification
import Foundation
import Testing

/// The reference is the judge of everything else, so it is held against values worked out by hand.
@Suite struct ReferenceAttentionTests {
  private func compute(
    q: [Float], k: [Float], v: [Float], queryHeads: Int = 1, keyValueHeads: Int = 1, queries: Int, keys: Int,
    mask: AttentionMask = .none, scale: Double = 1, softcap: Double? = nil
  ) throws -> AttentionValues {
    let d = q.count / queryHeads / queries
    let dv = keys == 0 ? 1 : v.count / keyValueHeads / keys
    func tensor(_ scalars: [Float], _ heads: Int, _ length: Int, _ dimension: Int) -> Tensor {
      try! Tensor(shape: .init(batch: 1, heads: heads, length: length, dimension: dimension), scalars: scalars)
    }
    let (q, k, v) = (
      tensor(q, queryHeads, queries, d), tensor(k, keyValueHeads, keys, d), tensor(v, keyValueHeads, keys, dv)
    )
    let problem = try AttentionProblem(
      queries: q.shape, keys: k.shape, values: v.shape, scalarType: .f32, mask: mask, scale: scale, softcap: softcap)
    return q.withView { q in
      k.withView { k in
        v.withView { v in ReferenceAttention.compute(problem, queries: q, keys: k, values: v) }
      }
    }
  }

  @Test func twoKeysByHand() throws {
    // Scores 0 and ln 3: weights 1/4 and 3/4.
    let result = try compute(q: [1], k: [0, Float(log(3.0))], v: [8, 0], queries: 1, keys: 2)
    #expect(abs(result.output[0] - 2) < 1e-7)
    #expect(abs(result.logSumExp[0] - log(4)) < 1e-7)
  }

  @Test func scaleAndSoftcap() throws {
    let scaled = try compute(q: [2], k: [0, 1], v: [0, 1], queries: 1, keys: 2, scale: 0.5)
    #expect(abs(scaled.output[0] - exp(1) / (1 + exp(1))) < 1e-12)
    let capped = try compute(q: [2], k: [0, 1], v: [0, 1], queries: 1, keys: 2, softcap: 3)
    let score = 3 * tanh(2.0 / 3)
    #expect(abs(capped.output[0] - exp(score) / (1 + exp(score))) < 1e-12)
  }

  @Test func queryHeadsShareKeyHeadsInOrder() throws {
    // One key a head: the output is that head's value.
    let result = try compute(
      q: [1, 1, 1, 1], k: [1, 1], v: [10, 20], queryHeads: 4, keyValueHeads: 2, queries: 1, keys: 1)
    #expect(result.output == [10, 10, 20, 20])
  }

  @Test func causalIsAlignedToTheLastKey() throws {
    // All scores equal: the output is the mean of the values seen.
    let result = try compute(q: [0, 0], k: [0, 0, 0], v: [3, 6, 9], queries: 2, keys: 3, mask: .causal)
    #expect(abs(result.output[0] - 4.5) < 1e-12)
    #expect(abs(result.output[1] - 6) < 1e-12)
  }

  @Test func rowsWithoutKeysAreZeroAndMinusInfinity() throws {
    let result = try compute(q: [5, 5, 5], k: [1], v: [7], queries: 3, keys: 1, mask: .causal)
    #expect(result.output == [0, 0, 7])
    #expect(result.logSumExp == [-.infinity, -.infinity, 5])
    let empty = try compute(q: [5], k: [], v: [], queries: 1, keys: 0)
    #expect(empty.logSumExp == [-.infinity])
  }
}
