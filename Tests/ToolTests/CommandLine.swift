import Foundation

/// The built tool, run as a user runs it.
enum CommandLineTool {
  struct Result {
    let code: Int32
    let output: String
    let errors: String
    /// Whether a signal ended it; `code` is its number then.
    let wasKilled: Bool
  }

  /// The executable beside the test bundle.
  static let url: URL = {
    let bundle = URL(filePath: CommandLine.arguments[0]).deletingLastPathComponent()
    let folders = [bundle] + Bundle.allBundles.map { $0.bundleURL.deletingLastPathComponent() }
    let candidates = folders.map { $0.appending(path: "flash-attention") }
    guard let found = candidates.first(where: { FileManager.default.isExecutableFile(atPath: $0.path) }) else {
      fatalError("The tool is not beside the tests: \(candidates.map(\.path))")
    }
    return found
  }()

  /// The root of the project.
  static let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent()

  static func run(_ arguments: [String], in folder: URL = root) throws -> Result {
    let process = Process()
    process.executableURL = url
    process.arguments = arguments
    process.currentDirectoryURL = folder
    let (output, errors) = (Pipe(), Pipe())
    process.standardOutput = output
    process.standardError = errors
    process.standardInput = FileHandle.nullDevice
    try process.run()
    let outputData = output.fileHandleForReading.readDataToEndOfFile()
    let errorData = errors.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    return Result(
      code: process.terminationStatus, output: String(decoding: outputData, as: UTF8.self),
      errors: String(decoding: errorData, as: UTF8.self), wasKilled: process.terminationReason == .uncaughtSignal)
  }

  /// Splits at spaces.
  static func run(_ line: String, in folder: URL = root) throws -> Result {
    try run(line.split(separator: " ").map(String.init), in: folder)
  }
}
