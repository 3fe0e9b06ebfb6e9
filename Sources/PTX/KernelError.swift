/// Why a kernel cannot be built: a sentence, and the Swift line where the mistake is.
public struct KernelError: Error, Hashable, Sendable, CustomStringConvertible {
  /// What is wrong.
  public let message: String
  /// Where.
  public let location: SourceLocation

  init(_ message: String, at location: SourceLocation) {
    self.message = message
    self.location = location
  }

  /// `File.swift:12: what is wrong`.
  public var description: String { "\(location): \(message)" }
}
