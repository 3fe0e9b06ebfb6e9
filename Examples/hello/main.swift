// A first call: six tokens, two heads, and who attends to whom.
import FlashAttention

// Tensors are named by role: [batch, heads, length, dimension].
let shape = TensorShape(batch: 1, heads: 2, length: 6, dimension: 8)

// Each token's key says which token it is. In head 0 a query asks for its own token, in head 1 for the first; values are
// the tokens' numbers, so that the output shows where a query has looked.
let keys = try Tensor(shape: shape, scalarType: .f32) { _, _, token, d in token == d ? 12 : 0 }
let queries = try Tensor(shape: shape, scalarType: .f32) { _, head, token, d in d == (head == 0 ? token : 0) ? 12 : 0 }
let values = try Tensor(shape: shape, scalarType: .f32) { _, _, token, _ in Float(token) }

let output = try attention(queries: queries, keys: keys, values: values, mask: .causal)
print(output)

// What a query finds: itself in head 0, the first token in head 1.
for token in 0..<6 {
  precondition(abs(output[0, 0, token, 0] - Float(token)) < 1e-3 && abs(output[0, 1, token, 0]) < 1e-3)
}

// Where it was computed, and why there.
print(try AttentionPlan(AttentionProblem(queries: queries, keys: keys, values: values, mask: .causal)))
