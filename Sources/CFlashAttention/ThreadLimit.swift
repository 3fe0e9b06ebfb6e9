internal import FlashAttention
public import FlashAttentionHeader

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// How many threads of the CPU calls of the calling thread may use; nil for one per processor.
enum ThreadLimit {
  /// nil where the process has no more keys.
  private static let key: pthread_key_t? = {
    var key = pthread_key_t()
    return pthread_key_create(&key, nil) == 0 ? key : nil
  }()

  /// The number is the pointer: there is nothing to allocate, and nothing to free when a thread ends.
  static var current: Int? {
    guard let key else { return nil }
    let number = Int(bitPattern: pthread_getspecific(key))
    return number == 0 ? nil : number
  }

  static func set(_ count: Int) throws(AttentionError) {
    if count < 0 {
      throw .unsupported("The limit is \(count) threads; give 1 or more, or 0 for one per processor.")
    }
    guard let key, pthread_setspecific(key, UnsafeRawPointer(bitPattern: count)) == 0 else {
      throw .unsupported("The limit cannot be kept: the process has no more room for what threads have of their own.")
    }
  }
}

/// `fa_limit_threads` of `flash_attention.h`, which describes it.
@c @implementation public func fa_limit_threads(_ count: Int32) -> fa_status {
  status { () throws(AttentionError) in try ThreadLimit.set(Int(count)) }
}
