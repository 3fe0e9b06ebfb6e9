internal import Dispatch
package import FlashAttention
internal import Synchronization

/// Threads that use the library at once: each with a stream of its own where there is a GPU, a plan that it shares with
/// another, whose calls it puts into its stream and replays as a graph in turns, and with sequences of its own in a
/// cache that all share. In each round the bits must be those of the same rounds of one thread after the other.
package struct ConcurrentCheck {
  package let threads, rounds: Int
  /// nil for the CPU.
  package let gpu: GPU?

  package init(threads: Int, rounds: Int, gpu: GPU?) {
    (self.threads, self.rounds, self.gpu) = (threads, rounds, gpu)
  }

  /// Rounds after which a thread's sequence begins anew.
  private static let conversation = 100
  private static let (heads, keyValueHeads, dimension) = (4, 2, 64)

  /// - Returns: what differs, a sentence each; empty where all bits agree.
  package func run() throws -> [String] {
    let expected = try each(atOnce: false)
    let actual = try each(atOnce: true)
    var differences: [String] = []
    for thread in 0..<threads {
      for round in 0..<rounds where expected[thread][round] != actual[thread][round] {
        let names = ["forward", "decoding", "the shared cache"]
        let wrong = names.indices.filter { expected[thread][round][$0] != actual[thread][round][$0] }.map { names[$0] }
        differences.append("thread \(thread), round \(round): \(wrong.joined(separator: ", ")) differs")
      }
    }
    return differences
  }

  /// The bits of all rounds of all threads, a number for each computation.
  private func each(atOnce: Bool) throws -> [[[UInt64]]] {
    let cache = try KVCache(
      .paged(pages: threads * (Self.conversation / 16 + 1), pageSize: 16), keyValueHeads: Self.keyValueHeads,
      dimension: Self.dimension, scalarType: .bf16, device: gpu.map { .gpu($0.ordinal) } ?? .cpu)
    // On a GPU with more work than multiprocessors, so that blocks of all calls draw it.
    let plans = try (0..<(threads + 1) / 2).map { pair in
      let shape = TensorShape(
        batch: gpu == nil ? 1 : 2, heads: gpu == nil ? Self.heads : 80, length: 100 + 32 * pair,
        dimension: Self.dimension)
      return try AttentionPlan(
        AttentionProblem(queries: shape, keys: shape, values: shape, scalarType: .bf16, mask: .causal),
        device: gpu.map { .gpu($0.ordinal) } ?? .cpu, threads: 1)
    }
    let results = Mutex([[[UInt64]]](repeating: [], count: threads))
    let failure = Mutex<(any Error)?>(nil)
    @Sendable func work(_ thread: Int) {
      do {
        var worker = try Worker(thread: thread, plans[thread / 2], cache: cache, on: gpu)
        var own: [[UInt64]] = []
        for round in 0..<rounds { own.append(try worker.bits(ofRound: round)) }
        results.withLock { $0[thread] = own }
      } catch {
        failure.withLock { $0 = $0 ?? error }
      }
    }
    if atOnce {
      let (queue, group) = (DispatchQueue(label: "threads", attributes: .concurrent), DispatchGroup())
      for thread in 0..<threads { queue.async(group: group) { work(thread) } }
      group.wait()
    } else {
      for thread in 0..<threads { work(thread) }
    }
    if let error = failure.withLock({ $0 }) { throw error }
    return results.withLock { $0 }
  }

  /// What one thread has.
  private struct Worker {
    private let cache: KVCache
    private var sequence: KVCache.Sequence
    private var random: RandomSource
    private let forward: AttentionPlan
    private let inputs: ProblemInputs
    private let device: Device?

    /// Tensors in a GPU's memory.
    private struct Device {
      let stream: GPUStream
      let forward: DeviceTensors
      let graph: GPUGraph
      let decode: AttentionPlan
      let tensors: AttentionTensors<GPUMemory>
      let buffers: [GPUBuffer]
      let workspace, output: GPUBuffer
      let counters: UInt64
    }

    init(thread: Int, _ forward: AttentionPlan, cache: KVCache, on gpu: GPU?) throws {
      self.cache = cache
      sequence = cache.makeSequence()
      random = RandomSource(seed: UInt64(thread))
      let inputs = try ProblemInputs(forward.problem)
      (self.forward, self.inputs) = (forward, inputs)
      device = try gpu.map { try Self.tensors(thread: thread, forward, inputs, on: $0) }
    }

    /// A forward problem, and a decode call whose parts several blocks make, in a stream of the thread's own.
    private static func tensors(
      thread: Int, _ forward: AttentionPlan, _ inputs: ProblemInputs, on gpu: GPU
    ) throws -> Device {
      let stream = try GPUStream(on: gpu)
      let problem = try AttentionProblem(
        batch: 2, queries: 1, queryHeads: ConcurrentCheck.heads, keyValueHeads: ConcurrentCheck.keyValueHeads,
        dimension: ConcurrentCheck.dimension, keys: .contiguous(sequences: 2, capacity: 2048), scalarType: .bf16,
        mask: .causal)
      let plan = try AttentionPlan(problem, device: .gpu(gpu.ordinal))
      var random = RandomSource(seed: UInt64(1000 + thread))
      var buffers: [GPUBuffer] = []
      func upload(_ shape: TensorShape) throws -> DeviceTensorView {
        let tensor = try Tensor.normal(shape, .bf16, layout: .bnhd, from: &random)
        return try tensor.withBytes { bytes in
          let buffer = try GPUBuffer(byteCount: bytes.count, on: gpu)
          try buffer.copy(from: bytes)
          buffers.append(buffer)
          return DeviceTensorView(address: buffer.address, scalarType: .bf16, shape: shape, layout: .bnhd)
        }
      }
      let (q, k, v) = (try upload(problem.queryShape), try upload(problem.keyShape), try upload(problem.valueShape))
      let output = try GPUBuffer(byteCount: problem.outputShape.elementCount * 2, on: gpu)
      let lengths = try GPUBuffer(byteCount: 8, on: gpu)
      try [Int32(2048), Int32(100 + thread)].withUnsafeBytes { try lengths.copy(from: $0) }
      buffers.append(lengths)
      let tensors = AttentionTensors<GPUMemory>(
        queries: q, keys: k, values: v,
        output: DeviceTensorView(address: output.address, scalarType: .bf16, shape: problem.outputShape, layout: .bnhd),
        entries: CacheEntries(lengths: lengths.address))
      let onGPU = try DeviceTensors(forward.problem, inputs, on: gpu)
      try forward.prepare()
      let made = Device(
        stream: stream, forward: onGPU,
        graph: try GPUGraph(on: gpu) { (stream) throws(AttentionError) in
          try onGPU.launch(forward, stream: stream)
        }, decode: plan, tensors: tensors,
        buffers: buffers, workspace: try plan.makeWorkspace(), output: output,
        counters: try gpu.counters(byteCount: plan.counterByteCount, stream: stream.handle!))
      // Uploads are in the library's stream.
      try gpu.synchronize()
      return made
    }

    mutating func bits(ofRound round: Int) throws -> [UInt64] {
      var result: [UInt64] = []
      if let device {
        // What is not written is seen.
        try device.forward.spoil()
        if round % 2 == 0 {
          try device.forward.launch(forward, stream: device.stream.handle)
        } else {
          try device.graph.launch(stream: device.stream.handle)
        }
        try device.decode.launch(
          device.tensors, workspace: device.workspace.address, counters: device.counters, stream: device.stream.handle)
        try device.stream.synchronize()
        result.append(Self.digest(try device.forward.download().output))
        var bytes = [UInt8](repeating: 0, count: device.output.byteCount)
        try bytes.withUnsafeMutableBytes { try device.output.copy(to: $0) }
        result.append(Self.digest(bytes))
      } else {
        let output = try forward.run(queries: inputs.queries, keys: inputs.keys, values: inputs.values).output
        result += [output.withBytes { Self.digest(Array($0)) }, 0]
      }
      if round % ConcurrentCheck.conversation == 0 {
        try cache.free(sequence)
        sequence = cache.makeSequence()
      }
      func token(_ heads: Int) throws -> Tensor {
        try .normal(
          TensorShape(batch: 1, heads: heads, length: 1, dimension: ConcurrentCheck.dimension), .bf16, from: &random)
      }
      let (q, k) = (try token(ConcurrentCheck.heads), try token(ConcurrentCheck.keyValueHeads))
      let answer = try cache.attend(
        queries: q, keys: k, values: try token(ConcurrentCheck.keyValueHeads), sequences: [sequence])
      result.append(answer.output.withBytes { Self.digest(Array($0)) })
      return result
    }

    /// FNV-1a.
    private static func digest(_ bytes: [UInt8]) -> UInt64 {
      bytes.reduce(0xcbf2_9ce4_8422_2325) { ($0 ^ UInt64($1)) &* 0x100_0000_01b3 }
    }
  }
}
