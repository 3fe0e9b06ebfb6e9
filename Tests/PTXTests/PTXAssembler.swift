import Foundation
import PTX

/// NVIDIA's assembler, the second judge: `ptxas` from the PATH, or from the PyPI package `nvidia-cuda-nvcc` in the
/// project's virtual environment `.venv`.
struct PTXAssembler: Sendable {
  let url: URL

  static let found: PTXAssembler? = {
    let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent()
    let path = ProcessInfo.processInfo.environment["PATH"] ?? ""
    var candidates = path.split(separator: ":").map { URL(filePath: String($0)).appending(path: "ptxas") }
    let packages = root.appending(path: ".venv/lib")
    for python in (try? FileManager.default.contentsOfDirectory(atPath: packages.path)) ?? [] {
      candidates.append(packages.appending(path: "\(python)/site-packages/nvidia/cu13/bin/ptxas"))
    }
    return candidates.first { FileManager.default.isExecutableFile(atPath: $0.path) }.map(PTXAssembler.init)
  }()

  struct Report {
    let isAccepted: Bool
    let registers: Int
    let spilledBytes: Int
    let text: String
  }

  func assemble(_ ptx: String, for target: Target) throws -> Report {
    let file = FileManager.default.temporaryDirectory.appending(path: "\(UUID().uuidString).ptx")
    try ptx.write(to: file, atomically: true, encoding: .utf8)
    defer { try? FileManager.default.removeItem(at: file) }
    let process = Process()
    process.executableURL = url
    process.arguments = ["-arch=\(target)", "-v", "-o", "/dev/null", file.path]
    let output = Pipe()
    process.standardError = output
    process.standardOutput = output
    try process.run()
    let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    func number(_ pattern: Regex<(Substring, Substring)>) -> Int {
      text.matches(of: pattern).compactMap { Int($0.1) }.max() ?? 0
    }
    return Report(
      isAccepted: process.terminationStatus == 0, registers: number(/Used ([0-9]+) registers/),
      spilledBytes: number(/([0-9]+) bytes spill stores/), text: text)
  }
}
