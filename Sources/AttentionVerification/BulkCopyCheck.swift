internal import Attention
internal import CUDADriver
package import GPURuntime
package import PTX
package import PTXEmulator

/// A box of a tensor that the copy engine brings to shared memory, where it is looked at word by word, and sends back to
/// two other tensors, of which one is added to: for every rank and swizzle, with boxes that lie over the edges.
package struct BulkCopyCheck: Hashable, Sendable, CustomStringConvertible {
  package var swizzle: TensorMap.Swizzle
  /// Elements (bf16) along each dimension, innermost first, of the tensor and of the box.
  package var extents, box: [Int]
  /// Where the box begins, in the first tensor and in the others.
  package var from, to: [Int]

  package var description: String { "a box of \(box) of \(extents) from \(from) to \(to), swizzle \(swizzle.rawValue)" }

  /// Boxes of every rank, inside and over each edge, with every swizzle.
  package static let all: [BulkCopyCheck] = TensorMap.Swizzle.allCases.flatMap { swizzle -> [BulkCopyCheck] in
    let width = swizzle == .none ? 24 : swizzle.rawValue / 2
    return [
      BulkCopyCheck(swizzle: swizzle, extents: [200], box: [width], from: [8], to: [0]),
      BulkCopyCheck(swizzle: swizzle, extents: [200], box: [width], from: [-8], to: [184]),
      BulkCopyCheck(swizzle: swizzle, extents: [72, 40], box: [width, 24], from: [8, 3], to: [0, 1]),
      BulkCopyCheck(swizzle: swizzle, extents: [72, 40], box: [width, 24], from: [-8, 30], to: [64, 29]),
      BulkCopyCheck(swizzle: swizzle, extents: [72, 5, 9], box: [width, 2, 8], from: [64, 4, -2], to: [8, 4, 3]),
      BulkCopyCheck(
        swizzle: swizzle, extents: [72, 3, 4, 3], box: [width, 1, 4, 2], from: [8, 2, 1, 1], to: [64, 1, 2, 2]),
      BulkCopyCheck(
        swizzle: swizzle, extents: [72, 2, 3, 2, 3], box: [width, 2, 1, 2, 2], from: [8, 0, 2, 1, 1],
        to: [0, 1, 1, 0, 2]),
    ]
  }

  private var boxBytes: Int { box.reduce(2, *) }
  /// Room of a row, a multiple of 16 bytes.
  private var strides: [Int] {
    var stride = (extents[0] * 2 + 15) / 16 * 16
    return extents.dropFirst().map { extent in
      defer { stride *= extent }
      return stride
    }
  }
  private var byteCount: Int { extents.count == 1 ? extents[0] * 2 : strides.last! * extents.last! }
  package var sharedByteCount: Int { (boxBytes + 15) / 16 * 16 + 16 }
  /// Words of the output: the box, then the two tensors.
  package var wordCount: Int { (boxBytes + 3) / 4 }

  /// 128 threads; parameters are the three maps and the address of the box's words.
  package func kernel() throws(KernelError) -> Kernel {
    try Kernel.build("bulk_copy_check", threadsPerBlock: 128) { k in
      let maps = ["source", "copy", "sum"].map { k.tensorMap($0) }
      let output = k.pointer("words")
      let shared = k.dynamicShared(alignment: 1024)
      let thread = k.special(.threadX)
      let barrier = shared + (boxBytes + 15) / 16 * 16
      let full = BarrierRing(k, stages: 1, at: barrier, as: .consumer)
      func place(_ numbers: [Int]) -> [Register<S32>] { numbers.map { k.constant($0, S32.self) } }
      let isFirst = thread .== 0
      k.if(isFirst) {
        k.initialize(transactionBarrier: barrier, arrivals: 1)
        k.barrierInitializationFence()
      }
      k.barrier()
      k.if(isFirst) {
        k.prefetch(maps[0])
        full.arrive(expecting: boxBytes)
        k.copy(maps[0], place(from), to: shared, barrier: barrier)
      }
      full.wait()
      k.loop(from: thread, to: k.constant(wordCount, U32.self), by: 128) { word in
        let own = shared + word * 4
        let value = k.load(U32.self, shared: own)
        k.store(value, global: output + k.multiplyWide(word, 4))
        // Changed by ordinary stores, which the copy engine sees behind a fence only.
        k.store(value ^ 0x0001_0001, shared: own)
      }
      k.proxyFence()
      k.barrier()
      k.if(isFirst) {
        k.copy(from: shared, to: maps[1], place(to))
        k.add(from: shared, to: maps[2], place(to))
        k.commitBulkCopies()
        k.waitForBulkCopies()
      }
    }
  }

  private func map(at address: UInt64) -> TensorMap {
    TensorMap(.bf16, address: address, extents: extents, strides: strides, box: box, swizzle: swizzle)
  }

  /// Distinct bf16 numbers.
  private var source: [UInt16] {
    (0..<byteCount / 2).map { BFloat16(Float($0 % 256) + Float($0 / 256) * 1024).bitPattern }
  }

  /// What is in the two other tensors before.
  private var before: [UInt16] { (0..<byteCount / 2).map { BFloat16(Float($0 % 100) / 4).bitPattern } }

  private func arguments(_ places: [UInt64], _ output: UInt64) -> [Kernel.Argument] {
    places.map { .tensorMap(map(at: $0)) } + [.pointer(output)]
  }

  /// The box's words, then the elements of both tensors, as the emulator makes them.
  package func emulate(
    schedule: Schedule = .roundRobin, program: Program? = nil
  ) throws -> (words: [UInt32], copy: [UInt16], sum: [UInt16]) {
    let memory = GlobalMemory()
    let places = [
      memory.allocate("source", source, access: .readOnly), memory.allocate("copy", before, access: .readWrite),
      memory.allocate("sum", before, access: .readWrite),
    ]
    let output = memory.allocate("words", byteCount: wordCount * 4, access: .readWrite)
    _ = try Emulator.run(
      try program ?? Program(kernel()),
      Launch(
        blocks: (1, 1, 1), dynamicSharedByteCount: sharedByteCount, arguments: arguments(places, output)),
      memory: memory, schedule: schedule, stepLimit: 2_000_000)
    return (
      memory.read(UInt32.self, count: wordCount, from: output) ?? [],
      memory.read(UInt16.self, count: before.count, from: places[1]) ?? [],
      memory.read(UInt16.self, count: before.count, from: places[2]) ?? []
    )
  }

  /// The same as a GPU makes them.
  package func run(on gpu: GPU) throws -> (words: [UInt32], copy: [UInt16], sum: [UInt16]) {
    func buffer(_ elements: [UInt16]) throws(AttentionError) -> GPUBuffer {
      let buffer = try GPUBuffer(byteCount: elements.count * 2, on: gpu)
      try elements.withUnsafeBufferPointer { (elements) throws(AttentionError) in
        try buffer.copy(from: UnsafeRawBufferPointer(elements))
      }
      return buffer
    }
    func elements<T: FixedWidthInteger>(_ buffer: GPUBuffer, _ count: Int, _: T.Type) throws(AttentionError) -> [T] {
      var result = [T](repeating: 0, count: count)
      try result.withUnsafeMutableBufferPointer { (elements) throws(AttentionError) in
        try buffer.copy(to: UnsafeMutableRawBufferPointer(elements))
      }
      return result
    }
    let buffers = [try buffer(source), try buffer(before), try buffer(before)]
    let output = try GPUBuffer(byteCount: wordCount * 4, on: gpu)
    try gpu.run(
      try kernel(), arguments(buffers.map(\.address), output.address), blocks: 1, sharedByteCount: sharedByteCount)
    return (
      try elements(output, wordCount, UInt32.self), try elements(buffers[1], before.count, UInt16.self),
      try elements(buffers[2], before.count, UInt16.self)
    )
  }

  /// What must be, written down without any of the emulator's rules for copies.
  package func expected() -> (words: [UInt32], copy: [UInt16], sum: [UInt16]) {
    var shared = [UInt16](repeating: 0, count: wordCount * 2)
    var (copy, sum) = (before, before)
    func index(_ numbers: [Int]) -> Int? {
      for (number, extent) in zip(numbers, extents) where number < 0 || number >= extent { return nil }
      return numbers[0] + zip(numbers.dropFirst(), strides).reduce(0) { $0 + $1.0 * $1.1 / 2 }
    }
    for element in 0..<box.reduce(1, *) {
      var rest = element
      let inBox = box.map { side in
        defer { rest /= side }
        return rest % side
      }
      // The 16-byte piece of its row changes places with that whose number differs by the row's, counted in 128 bytes.
      let (piece, line) = (element * 2 / 16, element * 2 / 128)
      let byte = (piece ^ line % 8 % max(swizzle.rawValue / 16, 1)) * 16 + element * 2 % 16
      let value = index(zip(from, inBox).map { $0 + $1 }).map { source[$0] } ?? 0
      shared[byte / 2] = value
      guard let target = index(zip(to, inBox).map { $0 + $1 }) else { continue }
      copy[target] = value ^ 1
      let total = Float(BFloat16(bitPattern: before[target])) + Float(BFloat16(bitPattern: value ^ 1))
      sum[target] = BFloat16(total).bitPattern
    }
    return ((0..<wordCount).map { UInt32(shared[2 * $0 + 1]) << 16 | UInt32(shared[2 * $0]) }, copy, sum)
  }
}
