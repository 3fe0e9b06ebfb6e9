#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// Files that appear whole or not at all: written under another name in the same folder, then renamed.
public enum OutputFile {
  /// Writes the pieces one after the other.
  public static func write(_ pieces: [[UInt8]], to path: String) throws(TensorFileError) {
    var status = stat()
    if stat(path, &status) == 0 && status.st_mode & S_IFMT != S_IFREG {
      let what = status.st_mode & S_IFMT == S_IFDIR ? "it is a folder" : "it is not a regular file"
      throw .unwritable(path: path, reason: what)
    }
    let temporary = "\(path).\(getpid()).partial"
    let descriptor = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o666)
    if descriptor < 0 { throw .unwritable(path: path, reason: lastError()) }
    var failure: String?
    for piece in pieces where failure == nil { failure = writeAll(piece, to: descriptor) }
    if failure == nil && fsync(descriptor) != 0 { failure = lastError() }
    if close(descriptor) != 0 && failure == nil { failure = lastError() }
    if failure == nil && rename(temporary, path) != 0 { failure = lastError() }
    if let failure {
      unlink(temporary)
      throw .unwritable(path: path, reason: failure)
    }
  }

  /// nil where all went well, else the reason.
  private static func writeAll(_ bytes: [UInt8], to descriptor: Int32) -> String? {
    bytes.withUnsafeBytes { buffer in
      var done = 0
      while done < buffer.count {
        let wrote = systemWrite(descriptor, buffer.baseAddress! + done, buffer.count - done)
        if wrote < 0 && errno == EINTR { continue }
        if wrote < 0 { return lastError() }
        done += wrote
      }
      return nil
    }
  }
}

/// `write(2)`, under a name that no method hides.
private func systemWrite(_ descriptor: Int32, _ bytes: UnsafeRawPointer, _ count: Int) -> Int {
  write(descriptor, bytes, count)
}
