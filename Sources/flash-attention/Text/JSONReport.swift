internal import ArgumentParser
internal import FoundationEssentials
internal import TensorFiles

/// The value of `--json`: a file, or - for standard output, on which there is nothing else then.
struct JSONReport: ExpressibleByArgument {
  static let help: ArgumentHelp =
    "Also write all samples to this file, as JSON; - writes nothing else to standard output."
  static let helpWithoutSamples: ArgumentHelp =
    "Also write what is said to this file, as JSON; - writes nothing else to standard output."

  private let path: String

  init(argument: String) { path = argument }

  static let defaultCompletionKind = CompletionKind.file(extensions: ["json"])

  fileprivate var isAlone: Bool { path == "-" }

  /// Where it is written; nil for standard output.
  var file: String? { isAlone ? nil : path }

  /// - Throws: `TensorFileError` for a file that cannot be written, before the long work.
  func check() throws { if !isAlone { try OutputFile.check(path) } }

  func write(_ report: some Encodable) throws {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
    // Errors that are no numbers are what a report is read for.
    encoder.nonConformingFloatEncodingStrategy = .convertToString(
      positiveInfinity: "inf", negativeInfinity: "-inf", nan: "nan")
    let text = [UInt8](try encoder.encode(report)) + [0x0a]
    if isAlone {
      print(String(decoding: text, as: UTF8.self), terminator: "")
    } else {
      try OutputFile.write([text], to: path)
    }
  }
}

extension JSONReport? {
  /// A line for people, which is there at once whatever becomes of the rest; none where standard output is the report's.
  func say(_ text: String) { if self?.isAlone != true { printAtOnce(text) } }
}
