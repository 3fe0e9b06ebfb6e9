#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// Files that appear whole or not at all: written under other names in the same folders, then renamed.
public enum OutputFile {
  /// Writes the pieces of one file, one after the other.
  public static func write(_ pieces: [[UInt8]], to path: String) throws(TensorFileError) { try write([(path, pieces)]) }

  /// Writes several files; where one fails, none appears.
  public static func write(_ files: [(path: String, pieces: [[UInt8]])]) throws(TensorFileError) {
    var written: [(temporary: String, path: String)] = []
    func abandon(_ path: String, _ reason: String) -> TensorFileError {
      for file in written { unlink(file.temporary) }
      return .unwritable(path: path, reason: reason)
    }
    for (path, pieces) in files {
      if let reason = obstacle(to: path) { throw abandon(path, reason) }
      var (temporary, descriptor) = ("", Int32(-1))
      // Another thread or an earlier crash may have left the name behind.
      for attempt in 0..<100 where descriptor < 0 {
        temporary = "\(path).\(getpid()).\(attempt).partial"
        descriptor = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o666)
        if descriptor < 0 && errno != EEXIST { break }
      }
      if descriptor < 0 { throw abandon(path, lastError()) }
      written.append((temporary, path))
      var failure: String?
      for piece in pieces where failure == nil { failure = writeAll(piece, to: descriptor) }
      if failure == nil && fsync(descriptor) != 0 { failure = lastError() }
      if close(descriptor) != 0 && failure == nil { failure = lastError() }
      if let failure { throw abandon(path, failure) }
    }
    for file in written where rename(file.temporary, file.path) != 0 {
      throw abandon(file.path, lastError())
    }
  }

  /// Why a path cannot be written, as far as can be told without writing; nil where nothing stands against it. For a
  /// complaint before long work instead of after it.
  public static func check(_ path: String) throws(TensorFileError) {
    if let reason = obstacle(to: path) { throw .unwritable(path: path, reason: reason) }
  }

  private static func obstacle(to path: String) -> String? {
    var status = stat()
    if stat(path, &status) == 0 {
      if status.st_mode & S_IFMT == S_IFDIR { return "it is a folder" }
      if status.st_mode & S_IFMT != S_IFREG { return "it is not a regular file" }
    }
    let slash = path.lastIndex(of: "/")
    let folder = slash.map { $0 == path.startIndex ? "/" : String(path[..<$0]) } ?? "."
    if stat(folder, &status) != 0 { return lastError() }
    if status.st_mode & S_IFMT != S_IFDIR { return "Not a directory" }
    return access(folder, W_OK) == 0 ? nil : lastError()
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
