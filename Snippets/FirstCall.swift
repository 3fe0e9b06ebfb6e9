// Attention, its gradients, and the plan behind both.
import FlashAttention

// snippet.tensors
// Tensors are named by role; elements come from an array or from a closure.
let shape = TensorShape(batch: 1, heads: 8, length: 1024, dimension: 64)
let q = try Tensor(shape: shape, scalarType: .f32) { _, head, token, d in Float((head + token + d) % 7) - 3 }
let k = try Tensor(shape: shape, scalarType: .f32) { _, head, token, d in Float((head + token * 3 + d) % 5) - 2 }
let v = try Tensor(shape: shape, scalarType: .f32) { _, _, token, d in Float(token + d) / 1024 }
// snippet.end

// snippet.call
let output = try attention(queries: q, keys: k, values: v, mask: .causal)
print(output)  // [batch, heads, length, dimension], the first and last rows
// snippet.end

// snippet.gradients
let result = try attentionWithLogSumExp(queries: q, keys: k, values: v, mask: .causal)
// dO, of the output's shape: here that of half the sum of its squares.
let gradients = try attentionGradients(
  of: result, queries: q, keys: k, values: v, outputGradient: result.output, mask: .causal)
print(gradients.queries[0, 0, 5, 0], result.logSumExp[5])
// snippet.end

// snippet.plan
let problem = try AttentionProblem(queries: q, keys: k, values: v, mask: .causal)
let plan = try AttentionPlan(problem)
print(plan)  // which path runs, on what, and why
let again = try plan.run(queries: q, keys: k, values: v)
// snippet.end

// snippet.views
// Memory of an engine's own: an address, a type, a shape and a layout, or strides of any kind.
let (count, size) = (problem.outputShape.elementCount, problem.scalarType.byteCount)
let memory = UnsafeMutableRawPointer.allocate(byteCount: count * size, alignment: 64)
defer { memory.deallocate() }
let outputView = MutableTensorView(
  base: memory, scalarType: problem.scalarType, shape: problem.outputShape, layout: .bnhd)
try q.withView { qView in  // TensorView(base:scalarType:shape:layout:) of memory that you only read
  try k.withView { kView in
    try v.withView { vView in
      try plan.run(queries: qView, keys: kView, values: vView, output: outputView)
    }
  }
}
// snippet.end
