#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// Files that appear whole or not at all: written without a name in the same folders, or where a file system has no
/// such files, under another one, then renamed.
public enum OutputFile {
  /// Writes the pieces of one file, one after the other.
  public static func write(_ pieces: some Sequence<[UInt8]>, to path: String) throws(TensorFileError) {
    try write([(path, pieces)])
  }

  /// Writes several files; where one fails, none appears.
  public static func write(_ files: [(path: String, pieces: some Sequence<[UInt8]>)]) throws(TensorFileError) {
    /// Files that are whole, still open, and without a name or with one of their own.
    var written: [(descriptor: Int32, temporary: String?, path: String)] = []
    defer { for file in written { close(file.descriptor) } }
    func abandon(_ path: String, _ reason: String) -> TensorFileError {
      for file in written { if let temporary = file.temporary { unlink(temporary) } }
      return .unwritable(path: path, reason: reason)
    }
    for (path, pieces) in files {
      if let reason = obstacle(to: path) { throw abandon(path, reason) }
      // Whoever is killed leaves nothing behind, but between the naming and the renaming. Source: open(2), O_TMPFILE;
      // the name is given by way of /proc.
      let canBeNamed = access("/proc/self/fd", X_OK) == 0
      var descriptor = canBeNamed ? open(folder(of: path), O_WRONLY | temporaryFile | O_CLOEXEC, 0o666) : -1
      var temporary: String?
      if descriptor < 0 {
        temporary = try unusedName(for: path) { name in
          descriptor = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o666)
          return descriptor >= 0
        } failure: {
          abandon(path, $0)
        }
      }
      written.append((descriptor, temporary, path))
      var failure: String?
      for piece in pieces where failure == nil { failure = writeAll(piece, to: descriptor) }
      if failure == nil && fsync(descriptor) != 0 { failure = lastError() }
      if let failure { throw abandon(path, failure) }
    }
    for index in written.indices where written[index].temporary == nil {
      let (descriptor, path) = (written[index].descriptor, written[index].path)
      written[index].temporary = try unusedName(for: path) { name in
        linkat(AT_FDCWD, "/proc/self/fd/\(descriptor)", AT_FDCWD, name, AT_SYMLINK_FOLLOW) == 0
      } failure: {
        abandon(path, $0)
      }
    }
    for file in written where rename(file.temporary!, file.path) != 0 {
      throw abandon(file.path, lastError())
    }
  }

  /// `O_TMPFILE`, which is no plain number for Swift: `__O_TMPFILE | O_DIRECTORY`.
  private static let temporaryFile: Int32 = 0o20000000 | O_DIRECTORY

  /// A name beside a path that `make` could take; another thread or an earlier crash may have left one behind.
  private static func unusedName(
    for path: String, _ make: (String) -> Bool, failure: (String) -> TensorFileError
  ) throws(TensorFileError) -> String {
    for attempt in 0..<100 {
      let name = "\(path).\(getpid()).\(attempt).partial"
      if make(name) { return name }
      if errno != EEXIST { break }
    }
    throw failure(lastError())
  }

  private static func folder(of path: String) -> String {
    guard let slash = path.lastIndex(of: "/") else { return "." }
    return slash == path.startIndex ? "/" : String(path[..<slash])
  }

  /// Why a path cannot be written, as far as can be told without writing; nil where nothing stands against it. For a
  /// complaint before long work instead of after it.
  public static func check(_ path: String) throws(TensorFileError) {
    if let reason = obstacle(to: path) { throw .unwritable(path: path, reason: reason) }
  }

  /// Whether two paths lead to one file that exists.
  public static func isSame(_ first: String, _ second: String) -> Bool {
    var (a, b) = (stat(), stat())
    return stat(first, &a) == 0 && stat(second, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino
  }

  private static func obstacle(to path: String) -> String? {
    var status = stat()
    if stat(path, &status) == 0 {
      if status.st_mode & S_IFMT == S_IFDIR { return "it is a folder" }
      if status.st_mode & S_IFMT != S_IFREG { return "it is not a regular file" }
    }
    let folder = folder(of: path)
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
