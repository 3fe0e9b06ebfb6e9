// Where a call runs: the CPU, a GPU, a stream, a captured graph.
import FlashAttention

// snippet.problem
let problem = try AttentionProblem(
  batch: 4, queries: 1, queryHeads: 32, keyValueHeads: 8, dimension: 128,
  keys: .contiguous(sequences: 4, capacity: 4096), scalarType: .bf16, mask: .causal)
// snippet.end

// snippet.choice
print(GPUSupport.summary)  // the driver and its devices, or why there is none
print(try AttentionPlan(problem))  // .auto: the GPU for f16 and bf16 where there is one
print(try AttentionPlan(problem, device: .cpu))
// snippet.end

// snippet.launch
/// Decodes on memory of a GPU: queries, cache and output are addresses there, lengths too.
func decode(
  on gpu: GPU, queries: UInt64, keys: UInt64, values: UInt64, output: UInt64, lengths: UInt64
) throws(AttentionError) {
  let plan = try AttentionPlan(problem, device: .gpu(gpu.ordinal))
  try plan.prepare()  // compiles now, and not in the first call
  let workspace = try plan.makeWorkspace()
  func view(_ address: UInt64, _ shape: TensorShape) -> DeviceTensorView {
    DeviceTensorView(address: address, scalarType: .bf16, shape: shape, layout: .bnhd)
  }
  let tensors = AttentionTensors<GPUMemory>(
    queries: view(queries, problem.queryShape), keys: view(keys, problem.keyShape),
    values: view(values, problem.valueShape), output: view(output, problem.outputShape),
    entries: CacheEntries(lengths: lengths))

  // Into a stream; returns at once.
  try plan.launch(tensors, workspace: workspace.address)

  // Or captured once, and replayed with whatever lengths and tokens the memory then holds.
  let graph = try GPUGraph(on: gpu) { (stream) throws(AttentionError) in
    try plan.launch(tensors, workspace: workspace.address, stream: stream)
  }
  for _ in 0..<100 { try graph.launch() }
  try gpu.synchronize()
}
// snippet.end
