package import PTX

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// NVIDIA's assembler, where it is installed: it says how many registers a kernel takes, and with the disassembler beside it,
/// what became of it.
package struct PTXAssembler: Sendable {
  private let path: String

  /// `ptxas` on the PATH, or from the PyPI package `nvidia-cuda-nvcc` in `.venv`.
  package static func find() -> PTXAssembler? { tool("ptxas").map(PTXAssembler.init) }

  /// Whether `nvdisasm` is there too, on the PATH or from `nvidia-cuda-nvdisasm`.
  package static var canDisassemble: Bool { tool("nvdisasm") != nil }

  private static func tool(_ name: String) -> String? {
    var places = getenv("PATH").map { String(cString: $0).split(separator: ":").map { "\($0)/\(name)" } } ?? []
    for minor in 8...20 { places.append(".venv/lib/python3.\(minor)/site-packages/nvidia/cu13/bin/\(name)") }
    return places.first { access($0, X_OK) == 0 }
  }

  /// What ptxas said.
  package struct Report: Sendable, CustomStringConvertible {
    package let isAccepted: Bool
    /// Of a thread; 0 where the PTX was refused.
    package let registers, spilledBytes: Int
    /// All of it.
    package let text: String
    /// What it warned of, as it does where products wait for one another (C7510 to C7520).
    package var remarks: [String] {
      text.split(separator: "\n").filter { $0.includes("(C7") }.map(String.init)
    }
    package var description: String {
      isAccepted
        ? "\(registers) a thread" + (spilledBytes > 0 ? ", \(spilledBytes) bytes spilled" : "") : "refused: \(text)"
    }
  }

  /// nil where the file for ptxas cannot be written.
  package func assemble(_ ptx: String, for target: Target) -> Report? {
    Self.withFile(ptx) { assemble(file: $0, for: target, to: "/dev/null") }
  }

  /// The same with the machine code, where `nvdisasm` is there.
  package func disassemble(_ ptx: String, for target: Target) -> (report: Report, code: MachineCode)? {
    Self.withFile(ptx) { file in
      let binary = file + ".cubin"
      defer { unlink(binary) }
      guard let disassembler = Self.tool("nvdisasm"), let report = assemble(file: file, for: target, to: binary),
        let listing = Self.output(of: "'\(disassembler)' -c '\(binary)'")
      else { return nil }
      return (report, MachineCode(listing.text))
    }
  }

  private func assemble(file: String, for target: Target, to binary: String) -> Report? {
    guard let output = Self.output(of: "'\(path)' -arch=\(target) -v -o '\(binary)' '\(file)'") else { return nil }
    // "Used 168 registers, used 1 barriers", "0 bytes spill stores, 0 bytes spill loads"
    let words = output.text.split { " ,\n".contains($0) }
    func number(after first: String? = nil, before next: [String]) -> Int {
      words.indices.filter { place in
        (first == nil || place > 0 && words[place - 1] == first!)
          && words[(place + 1)...].prefix(next.count).elementsEqual(next) { $0 == $1 }
      }.compactMap { Int(words[$0]) }.max() ?? 0
    }
    return Report(
      isAccepted: output.isSuccess, registers: number(after: "Used", before: ["registers"]),
      spilledBytes: number(before: ["bytes", "spill", "stores"]), text: output.text)
  }

  private static func withFile<Result>(_ text: String, _ body: (String) -> Result?) -> Result? {
    var pattern = Array("/tmp/flash-attention-XXXXXX.ptx".utf8CString)
    let descriptor = mkstemps(&pattern, 4)
    if descriptor < 0 { return nil }
    let file = String(decoding: pattern.dropLast().map(UInt8.init(bitPattern:)), as: UTF8.self)
    let bytes = Array(text.utf8)
    let written = write(descriptor, bytes, bytes.count)
    close(descriptor)
    defer { unlink(file) }
    return written == bytes.count ? body(file) : nil
  }

  private static func output(of command: String) -> (text: String, isSuccess: Bool)? {
    guard let pipe = popen("\(command) 2>&1", "r") else { return nil }
    var output: [UInt8] = []
    while case let byte = fgetc(pipe), byte != EOF { output.append(UInt8(truncatingIfNeeded: byte)) }
    return (String(decoding: output, as: UTF8.self), pclose(pipe) == 0)
  }
}
