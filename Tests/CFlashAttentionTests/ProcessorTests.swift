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
}
