import Foundation

/// A folder for the files of one test, removed with it.
final class TemporaryFolder {
  let url: URL

  init() {
    url = FileManager.default.temporaryDirectory.appending(path: "flash-attention-\(UUID().uuidString)")
    try! FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
  }

  deinit { try? FileManager.default.removeItem(at: url) }

  func path(_ name: String) -> String { url.appending(path: name).path }

  /// Writes a file and returns its path.
  func write(_ bytes: [UInt8], to name: String) -> String {
    try! Data(bytes).write(to: URL(filePath: path(name)))
    return path(name)
  }

  var names: [String] { try! FileManager.default.contentsOfDirectory(atPath: url.path).sorted() }
}
