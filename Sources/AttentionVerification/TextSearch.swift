extension StringProtocol {
  /// Whether some text is a part of this one, byte by byte. (The standard library's own `contains` links the parser of regular
  /// expressions into every executable: 0.9 MB.)
  package func includes(_ part: String) -> Bool {
    let (bytes, part) = (Array(utf8), Array(part.utf8))
    return part.isEmpty || bytes.indices.contains { bytes[$0...].starts(with: part) }
  }
}
