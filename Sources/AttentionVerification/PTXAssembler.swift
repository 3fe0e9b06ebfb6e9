package import PTX

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// NVIDIA's assembler, where it is installed: it says how many registers a kernel takes.
package struct PTXAssembler: Sendable {
  private let path: String

  /// `ptxas` on the PATH, or from the PyPI package `nvidia-cuda-nvcc` in `.venv`.
  package static func find() -> PTXAssembler? {
    var places = getenv("PATH").map { String(cString: $0).split(separator: ":").map { "\($0)/ptxas" } } ?? []
    for minor in 8...20 { places.append(".venv/lib/python3.\(minor)/site-packages/nvidia/cu13/bin/ptxas") }
    return places.first { access($0, X_OK) == 0 }.map(PTXAssembler.init)
  }

  /// What ptxas said.
  package struct Report: Sendable, CustomStringConvertible {
    package let isAccepted: Bool
    /// Of a thread; 0 where the PTX was refused.
    package let registers, spilledBytes: Int
    /// All of it.
    package let text: String
    package var description: String {
      isAccepted
        ? "\(registers) a thread" + (spilledBytes > 0 ? ", \(spilledBytes) bytes spilled" : "") : "refused: \(text)"
    }
  }

  /// nil where the file for ptxas cannot be written.
  package func assemble(_ ptx: String, for target: Target) -> Report? {
    var pattern = Array("/tmp/flash-attention-XXXXXX.ptx".utf8CString)
    let descriptor = mkstemps(&pattern, 4)
    if descriptor < 0 { return nil }
    let file = String(decoding: pattern.dropLast().map(UInt8.init(bitPattern:)), as: UTF8.self)
    let bytes = Array(ptx.utf8)
    let written = write(descriptor, bytes, bytes.count)
    close(descriptor)
    defer { unlink(file) }
    guard written == bytes.count,
      let pipe = popen("'\(path)' -arch=\(target) -v -o /dev/null \(file) 2>&1", "r")
    else { return nil }
    var output: [UInt8] = []
    while case let byte = fgetc(pipe), byte != EOF { output.append(UInt8(truncatingIfNeeded: byte)) }
    let isAccepted = pclose(pipe) == 0
    let text = String(decoding: output, as: UTF8.self)
    func number(_ pattern: Regex<(Substring, Substring)>) -> Int {
      text.matches(of: pattern).compactMap { Int($0.1) }.max() ?? 0
    }
    return Report(
      isAccepted: isAccepted, registers: number(/Used ([0-9]+) registers/),
      spilledBytes: number(/([0-9]+) bytes spill stores/), text: text)
  }
}
