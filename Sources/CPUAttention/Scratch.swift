/// Memory of one worker, handed out piece by piece from one allocation.
struct Scratch: ~Copyable {
  private let base: UnsafeMutableRawPointer
  private let capacity: Int
  private var used = 0

  init(byteCount: Int) {
    capacity = byteCount
    base = .allocate(byteCount: max(byteCount, 64), alignment: 64)
  }

  deinit { base.deallocate() }

  /// The bytes that `count` elements take, padded so that the next piece starts on a cache line.
  static func byteCount<T>(_ count: Int, of _: T.Type) -> Int {
    (count * MemoryLayout<T>.stride + 63) / 64 * 64
  }

  /// Uninitialized room for `count` elements.
  mutating func take<T: BitwiseCopyable>(_ count: Int, of type: T.Type) -> UnsafeMutablePointer<T> {
    let size = Self.byteCount(count, of: type)
    precondition(used + size <= capacity, "The scratch memory was planned too small.")
    defer { used += size }
    return (base + used).bindMemory(to: type, capacity: count)
  }
}
