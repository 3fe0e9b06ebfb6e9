import CFlashAttention
import FlashAttentionHeader
import Foundation
import Synchronization
import Testing

/// What a program says of the processor: vectors are the process's, so that one test waits for the other.
@Suite(.serialized) struct ProcessorTests {
  private var lastError: String { String(cString: fa_last_error()) }

  @Sendable private func describe() -> String {
    var (text, p) = ([CChar](repeating: 0, count: 1000), fa_forward_params())
    p.size = MemoryLayout<fa_forward_params>.size
    (p.device, p.batch, p.queries, p.keys) = (Int32(FA_CPU), 2, 256, 256)
    (p.query_heads, p.key_value_heads, p.dimension) = (4, 2, 16)
    #expect(fa_forward_describe(&p, &text, text.count) == FA_OK, "\(lastError)")
    return String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  private func describeGradients() -> String {
    var (text, p) = ([CChar](repeating: 0, count: 1000), fa_backward_params())
    p.size = MemoryLayout<fa_backward_params>.size
    (p.device, p.batch, p.queries, p.keys) = (Int32(FA_CPU), 2, 256, 256)
    (p.query_heads, p.key_value_heads, p.dimension) = (4, 2, 16)
    #expect(fa_backward_describe(&p, &text, text.count) == FA_OK, "\(lastError)")
    return String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  /// Also of plans that were made before.
  @Test func vectorsAreChosen() {
    #expect(fa_choose_vectors("mmx") == FA_INVALID)
    #expect(lastError.hasPrefix("This machine has no vectors \"mmx\"; it has "))
    let best = describe()
    #expect(fa_choose_vectors("portable") == FA_OK)
    #expect(describe().contains("portable"))
    #expect(fa_choose_vectors(nil) == FA_OK)
    #expect(describe() == best)
  }

  /// The limit is the calling thread's own, counts for plans that were made before, and is followed by gradients, too.
  @Test func threadsAreLimited() {
    let free = describe()
    #expect(fa_limit_threads(1) == FA_OK)
    #expect(describe().contains(", 1 thread:"), "\(describe())")
    #expect(fa_limit_threads(-3) == FA_INVALID)
    #expect(lastError == "The limit is -3 threads; give 1 or more, or 0 for one per processor.")
    #expect(describe().contains(", 1 thread:"))
    #expect(describeGradients().contains(", 1 thread"), "\(describeGradients())")
    // Another thread's own is none.
    let other = Mutex("")
    let thread = Thread { other.withLock { $0 = describe() } }
    thread.start()
    while !thread.isFinished { usleep(1000) }
    #expect(other.withLock { $0 } == free)
    #expect(fa_limit_threads(0) == FA_OK)
    #expect(describe() == free)
  }

  /// What `parallel` was asked for by the test's thread; others compute at the same time.
  private static let asked = Mutex<(thread: pthread_t, values: [UInt32])>((pthread_self(), []))

  private func output() -> [Float] {
    let heads = 4, rows = 256, dimension = 16
    let tensor = (0..<rows * heads * dimension).map { Float($0 * 7919 % 1000) / 500 - 1 }
    var output = [Float](repeating: .nan, count: tensor.count)
    var p = fa_forward_params()
    p.size = MemoryLayout<fa_forward_params>.size
    (p.device, p.batch, p.queries, p.keys) = (Int32(FA_CPU), 1, Int64(rows), Int64(rows))
    (p.query_heads, p.key_value_heads, p.dimension) = (Int64(heads), Int64(heads), Int64(dimension))
    tensor.withUnsafeBytes { input in
      output.withUnsafeMutableBytes { result in
        func tensor(_ data: UnsafeMutableRawPointer?) -> fa_tensor {
          fa_tensor(
            data: data, batch_stride: 0, token_stride: Int64(heads * dimension), head_stride: Int64(dimension))
        }
        let own = UnsafeMutableRawPointer(mutating: input.baseAddress)
        (p.q, p.k, p.v, p.o) = (tensor(own), tensor(own), tensor(own), tensor(result.baseAddress))
        #expect(fa_forward(&p) == FA_OK, "\(lastError)")
      }
    }
    return output
  }

  /// Threads of the caller's compute the same; what they leave undone, the calling thread does.
  @Test(.enabled(if: ProcessInfo.processInfo.activeProcessorCount > 1)) func threadsAreTheCallers() {
    #expect(fa_limit_threads(2) == FA_OK)
    let expected = output()
    #expect(!expected.contains { $0.isNaN })
    let all: fa_parallel = { body, data, threads, flags in
      ProcessorTests.asked.withLock { if $0.thread == pthread_self() { $0.values += [threads, flags] } }
      nonisolated(unsafe) let data = data
      let others = (1..<threads).map { _ in Thread { body?(data) } }
      for thread in others { thread.start() }
      body?(data)
      while !others.allSatisfy(\.isFinished) { usleep(100) }
    }
    Self.asked.withLock { $0.thread = pthread_self() }
    // While others compute, there may be no thread left to ask for; and one of them may bring its own.
    let patience = Date.now + 120
    var says = false
    while (Self.asked.withLock { $0.values.isEmpty } || !says) && Date.now < patience {
      #expect(fa_use_threads(all) == FA_OK)
      #expect(output() == expected)
      says = describe().contains(", 2 threads of the program's: ")
    }
    #expect(says)
    let asked = Self.asked.withLock { $0.values }
    #expect(asked.prefix(2) == [2, 0])
    #expect(fa_use_threads { _, _, _, _ in } == FA_OK)
    #expect(output() == expected)
    // More often than asked.
    #expect(fa_use_threads { body, data, threads, _ in for _ in 0..<threads + 3 { body?(data) } } == FA_OK)
    #expect(output() == expected)
    #expect(fa_use_threads(nil) == FA_OK)
    #expect(output() == expected)
    #expect(Self.asked.withLock { $0.values } == asked)
    #expect(fa_limit_threads(0) == FA_OK)
  }
}
