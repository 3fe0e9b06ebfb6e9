#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// An open file, read in pieces at given places.
final class InputFile: Sendable {
  let path: String
  let byteCount: Int
  private let descriptor: Int32

  init(path: String) throws(TensorFileError) {
    self.path = path
    // Not to wait for a writer, where the path is a pipe.
    descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
    if descriptor < 0 { throw .unreadable(path: path, reason: lastError()) }
    var status = stat()
    if fstat(descriptor, &status) != 0 {
      let reason = lastError()
      close(descriptor)
      throw .unreadable(path: path, reason: reason)
    }
    if status.st_mode & S_IFMT != S_IFREG {
      close(descriptor)
      let isFolder = status.st_mode & S_IFMT == S_IFDIR
      throw .unreadable(path: path, reason: isFolder ? "it is a folder" : "it is not a regular file")
    }
    byteCount = Int(status.st_size)
  }

  deinit { close(descriptor) }

  /// Reads exactly `count` bytes from `offset` on; both lie within the file as it was when it was opened.
  func read(_ count: Int, at offset: Int) throws(TensorFileError) -> [UInt8] {
    let memory = Int(sysconf(Int32(_SC_PHYS_PAGES))) * Int(sysconf(Int32(_SC_PAGESIZE)))
    if count > memory {
      throw .unreadable(
        path: path, reason: "one of its tensors has \(count / 1_000_000) MB, this machine \(memory / 1_000_000)")
    }
    var failure: TensorFileError?
    let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
      while initialized < count {
        let got = pread(descriptor, buffer.baseAddress! + initialized, count - initialized, off_t(offset + initialized))
        if got < 0 && errno == EINTR { continue }
        if got <= 0 {
          failure = .unreadable(path: path, reason: got < 0 ? lastError() : "it became shorter while it was read")
          return
        }
        initialized += got
      }
    }
    if let failure { throw failure }
    return bytes
  }
}

extension InputFile {
  /// What a file that is none of a format looks like by its first bytes, and what to do; nil where that says nothing.
  ///
  /// - Parameter format: `.npy` or `.safetensors`, as which it was read.
  func looks(besides format: String) -> String? {
    guard let start = try? read(min(byteCount, 512), at: 0) else { return nil }
    // The length of a header may look like anything.
    if format == ".safetensors" && start.count > 8 && start[8] == UInt8(ascii: "{") { return nil }
    func begins(_ bytes: [UInt8]) -> Bool { start.starts(with: bytes) }
    let text = String(decoding: start, as: UTF8.self).lowercased().drop { $0.isWhitespace }
    if text.hasPrefix("version https://git-lfs") { return "a Git LFS pointer in place of the file; run git lfs pull" }
    if text.hasPrefix("<!doctype html") || text.hasPrefix("<html") {
      return "an HTML page, as a download without permission leaves it"
    }
    if format != ".npy" && begins([0x93] + Array("NUMPY".utf8)) { return "a .npy file; give it that name" }
    if begins(Array("PK".utf8) + [3, 4]) {
      return "a zip archive, as torch.save and numpy.savez write; save as safetensors"
    }
    if begins([0x80]) && start.count > 1 && start[1] <= 5 { return "a Python pickle; save as safetensors" }
    if begins(Array("GGUF".utf8)) { return "a GGUF file; save as safetensors" }
    if begins([0x89] + Array("HDF".utf8)) { return "an HDF5 file; save as safetensors" }
    if begins([0x1f, 0x8b]) { return "compressed by gzip; unpack it" }
    if format != ".safetensors" && start.count > 8 && start[8] == UInt8(ascii: "{") {
      return "a .safetensors file; give it that name"
    }
    if text.hasPrefix("{") || text.hasPrefix("[") { return "JSON without tensors" }
    return nil
  }
}

/// The operating system's words for the last failure.
func lastError() -> String { String(cString: strerror(errno)) }
