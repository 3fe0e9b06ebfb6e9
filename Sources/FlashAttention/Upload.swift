internal import Attention
internal import GPURuntime

/// Tensors and lists on their way to a GPU; they are there as long as this is.
final class Upload {
  private let gpu: GPU
  private var buffers: [GPUBuffer] = []

  init(to gpu: GPU) { self.gpu = gpu }

  /// Memory for so many bytes, some at least.
  func room(_ byteCount: Int) throws(AttentionError) -> GPUBuffer {
    let buffer = try GPUBuffer(byteCount: max(byteCount, 16), on: gpu)
    buffers.append(buffer)
    return buffer
  }

  /// A tensor; one that is not contiguous is packed on the way.
  func tensor(_ view: TensorView) throws(AttentionError) -> (view: DeviceTensorView, buffer: GPUBuffer) {
    let uploaded = try HostCopy.upload(view, to: gpu)
    buffers.append(uploaded.buffer)
    return (uploaded.view, uploaded.buffer)
  }

  /// A list; nil of nil.
  func list<Element: BitwiseCopyable>(_ words: [Element]?) throws(AttentionError) -> UInt64? {
    guard let words else { return nil }
    let buffer = try room(words.count * MemoryLayout<Element>.stride)
    try words.withUnsafeBufferPointer { (words) throws(AttentionError) in
      try buffer.copy(from: UnsafeRawBufferPointer(words))
    }
    return buffer.address
  }

  /// A list of whole numbers.
  func numbers(_ list: [Int]?) throws(AttentionError) -> UInt64? {
    try self.list(list?.map { Int32(clamping: $0) })
  }

  /// All lists of a call.
  func entries(
    _ entries: CacheEntries<HostMemory>, _ problem: AttentionProblem
  ) throws(AttentionError) -> CacheEntries<GPUMemory> {
    let perSequence = problem.pages?.perSequence ?? 0
    return try entries.moved(numbers: numbers) { (pages) throws(AttentionError) in
      try numbers(pages?.flatMap { list in (0..<perSequence).map { $0 < list.count ? list[$0] : 0 } })
    } factors: { (factors) throws(AttentionError) in
      try list(factors)
    } sinks: { (sinks) throws(AttentionError) in
      try list(sinks)
    }
  }

  /// What a call appends.
  func newKeys(_ new: NewKeyTensors<HostMemory>) throws(AttentionError) -> NewKeyTensors<GPUMemory> {
    var onGPU = NewKeyTensors<GPUMemory>(
      keys: try tensor(new.keys).view, values: try tensor(new.values).view, starts: try numbers(new.starts),
      positions: try numbers(new.positions))
    if let (cosines, sines) = new.rotary {
      onGPU.rotary = (try tensor(cosines).view, try tensor(sines).view)
    }
    return onGPU
  }
}
