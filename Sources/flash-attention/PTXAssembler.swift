internal import PTX

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// NVIDIA's assembler, where it is installed: it says how many registers a kernel takes.
struct PTXAssembler {
  private let path: String

  /// `ptxas` on the PATH, or from the PyPI package `nvidia-cuda-nvcc` in `.venv`.
  static func find() -> PTXAssembler? {
    var places = getenv("PATH").map { String(cString: $0).split(separator: ":").map { "\($0)/ptxas" } } ?? []
    for minor in 8...20 { places.append(".venv/lib/python3.\(minor)/site-packages/nvidia/cu13/bin/ptxas") }
    return places.first { access($0, X_OK) == 0 }.map(PTXAssembler.init)
  }

  /// What an assembly cost.
  struct Report: CustomStringConvertible {
    let registers, spilledBytes: Int
    var description: String { "\(registers) a thread" + (spilledBytes > 0 ? ", \(spilledBytes) bytes spilled" : "") }
  }

  /// nil where ptxas refuses.
  func assemble(_ text: String, for target: Target) -> Report? {
    let file = "/tmp/flash-attention-\(getpid()).ptx"
    guard let output = fopen(file, "w") else { return nil }
    fputs(text, output)
    fclose(output)
    defer { unlink(file) }
    guard let pipe = popen("'\(path)' -arch=\(target) -v -o /dev/null \(file) 2>&1", "r") else { return nil }
    var bytes: [UInt8] = []
    while case let byte = fgetc(pipe), byte != EOF { bytes.append(UInt8(truncatingIfNeeded: byte)) }
    guard pclose(pipe) == 0 else { return nil }
    let words = String(decoding: bytes, as: UTF8.self).split { " \n".contains($0) }
    func number(before word: String, _ next: String) -> Int? {
      words.indices.dropLast(2).first { words[$0 + 1] == word && words[$0 + 2].hasPrefix(next) }.flatMap {
        Int(words[$0])
      }
    }
    guard let index = words.firstIndex(of: "Used"), let registers = Int(words[index + 1]) else { return nil }
    return Report(registers: registers, spilledBytes: number(before: "bytes", "spill") ?? 0)
  }
}
