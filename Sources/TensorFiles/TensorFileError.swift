/// Why a file of tensors cannot be read or written: the file, what is wrong with it, what to do.
public enum TensorFileError: Error, Hashable, Sendable {
  /// The file cannot be opened or read; the reason is the operating system's.
  case unreadable(path: String, reason: String)
  /// The file is not what its name says; the reason is a sentence.
  case malformed(path: String, reason: String)
  /// No tensor of this name; the remedy, if any, is a sentence.
  case missing(path: String, name: String, available: [String], remedy: String? = nil)
  /// The elements are of a type that attention does not read. A .npy file's array has no name.
  case unsupportedType(path: String, name: String?, type: String)
  /// The tensor's elements are no 32-bit integers.
  case notIntegers(path: String, name: String, type: String)
  /// The tensor has another number of axes. A .npy file's array has no name.
  case rank(path: String, name: String?, extents: [Int], expected: String)
  /// The file cannot be written; the reason is the operating system's. Nothing was left behind.
  case unwritable(path: String, reason: String)
  /// The name ends in neither .safetensors nor .npy.
  case unknownFormat(path: String)
}

extension TensorFileError: CustomStringConvertible {
  /// The sentence that a user reads.
  public var description: String {
    switch self {
    case .unreadable(let path, let reason):
      return "\(path) cannot be read: \(reason)."
    case .malformed(let path, let reason):
      return "\(path) is damaged or not a tensor file: \(reason)"
    case .missing(let path, let name, let available, let remedy):
      let some = available.prefix(10).map { "'\($0)'" }.joined(separator: ", ")
      let names =
        available.isEmpty ? "no tensors" : some + (available.count > 10 ? " and \(available.count - 10) more" : "")
      return "\(path) has no tensor '\(name)'; it holds \(names)." + (remedy.map { " " + $0 } ?? "")
    case .unsupportedType(let path, nil, let type):
      return "\(path) is of type \(type); supported are <f4 (float32) and <f2 (float16). Convert it first."
    case .unsupportedType(let path, let name?, let type):
      return
        "Tensor '\(name)' of \(path) is of type \(type); supported are F32, F16, BF16 and, in caches, F8_E4M3. Convert it first."
    case .notIntegers(let path, let name, let type):
      return "Tensor '\(name)' of \(path) is of type \(type); I32 is needed. Convert it first."
    case .rank(let path, let name, let extents, let expected):
      return (name.map { "Tensor '\($0)' of \(path)" } ?? path) + " has the shape \(extents); \(expected)."
    case .unwritable(let path, let reason):
      return "\(path) cannot be written: \(reason). Nothing was written."
    case .unknownFormat(let path):
      return "\(path) is neither a .safetensors nor a .npy file by its name."
    }
  }
}
