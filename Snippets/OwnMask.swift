// Masks that are no rule of where a query stands.
import FlashAttention

let shape = TensorShape(batch: 1, heads: 2, length: 8, dimension: 16)
let zero = try Tensor(shape: shape, scalarType: .f32) { _, _, _, _ in 0 }
let number = try Tensor(shape: shape, scalarType: .f32) { _, _, token, _ in Float(token) }

// snippet.documents
// Two documents in one row: tokens 0 to 2, and 3 to 7. Each query sees its own, up to itself.
let apart = try attention(
  queries: zero, keys: zero, values: number, mask: .causal, ranges: .documents(starts: [0, 3], count: 8))
// snippet.end
precondition(apart[0, 0, 2, 0] == 1 && apart[0, 0, 3, 0] == 3 && apart[0, 0, 7, 0] == 5)

// snippet.given
// Any one or two ranges of keys for each query: here the first two tokens, and a token's own pair.
let pairs = (0..<8).map { token in [0..<2, token / 2 * 2..<token / 2 * 2 + 2] }
let own = try attention(queries: zero, keys: zero, values: number, ranges: .given(pairs))
// snippet.end
precondition(abs(own[0, 0, 7, 0] - 3.5) < 1e-6 && own[0, 0, 0, 0] == 0.5)
