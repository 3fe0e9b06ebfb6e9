internal import FlashAttention
internal import FlashAttentionHeader

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// The sentence of each thread's last error, in memory that stays in its place as long as the thread, so that a pointer
/// to it may be taken before the call that writes it.
enum LastError {
  /// Room for a sentence and the log of a compiler.
  private static let capacity = 16384

  private static let key: pthread_key_t = {
    var key = pthread_key_t()
    pthread_key_create(&key) { free($0) }
    return key
  }()

  /// Where there is no memory for it, a sentence cannot be kept.
  private static var buffer: UnsafeMutablePointer<CChar>? {
    if let known = pthread_getspecific(key) { return known.assumingMemoryBound(to: CChar.self) }
    guard let made = calloc(1, capacity) else { return nil }
    pthread_setspecific(key, made)
    return made.assumingMemoryBound(to: CChar.self)
  }

  static func set(_ sentence: String) {
    guard let buffer else { return }
    var place = 0
    for byte in sentence.utf8.prefix(capacity - 1) {
      buffer[place] = CChar(bitPattern: byte)
      place += 1
    }
    buffer[place] = 0
  }

  private nonisolated(unsafe) static let none: UnsafePointer<CChar> = UnsafePointer(strdup("")!)

  static var text: UnsafePointer<CChar> { buffer.map { UnsafePointer($0) } ?? none }
}

/// Runs a call and makes a status of what it throws.
func status(_ body: () throws(AttentionError) -> Void) -> fa_status {
  do throws(AttentionError) {
    try body()
    LastError.set("")
    return fa_status(FA_OK)
  } catch {
    LastError.set(error.description)
    switch error {
    case .deviceUnavailable: return fa_status(FA_UNAVAILABLE)
    case .memory, .deviceFailed(_, .outOfMemory, _): return fa_status(FA_NO_MEMORY)
    case .deviceFailed(_, .lost, _): return fa_status(FA_LOST)
    case .deviceFailed: return fa_status(FA_FAILED)
    default: return fa_status(FA_INVALID)
    }
  }
}

/// A caller's struct, which begins with its size, as far as this version and the caller's both know it; what the
/// caller's does not have is zero.
func parameters<Parameters: BitwiseCopyable>(
  _ pointer: UnsafePointer<Parameters>?, _ zero: Parameters
) throws(AttentionError) -> Parameters {
  guard let pointer else { throw .unsupported("The parameters are NULL; give a struct.") }
  let known = MemoryLayout<Parameters>.size
  let raw = UnsafeRawPointer(pointer)
  let given = raw.loadUnaligned(as: Int.self)
  // Version 1.0.0 has this layout; what comes later comes behind its fields, and none will ever be this large.
  guard (known...1 << 16).contains(given) else {
    throw .unsupported("The parameters' size is \(given); set it to the struct's sizeof (\(known) in this version).")
  }
  for offset in stride(from: known, to: given, by: 1) where raw.load(fromByteOffset: offset, as: UInt8.self) != 0 {
    throw .unsupported(
      "The parameters have a field that this version of the library does not know (byte \(offset)); leave it zero, or use a "
        + "newer library.")
  }
  var result = zero
  withUnsafeMutableBytes(of: &result) {
    $0.copyMemory(from: UnsafeRawBufferPointer(start: raw, count: min(given, known)))
  }
  return result
}
