#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

extension Tensor: CustomStringConvertible {
  /// The shape and the type, and a row for each token: all of a small tensor, of a large one the first and last three along each axis.
  ///
  ///     Tensor [batch 1, heads 2, length 2, dimension 4] f32
  ///     batch 0, head 0:
  ///       0:     0.0000     0.1000     0.2000     0.3000
  ///       1:     1.0000     1.1000     1.2000     1.3000
  ///     ...
  public var description: String {
    var lines = ["Tensor [\(shape)] \(scalarType)"]
    if shape.elementCount == 0 { return lines[0] }
    let tokens = Self.shown(shape.length)
    let numberWidth = "\(shape.length - 1)".count
    for b in Self.shown(shape.batch) {
      for h in Self.shown(shape.heads) {
        guard let b, let h else {
          if lines.last != "..." { lines.append("...") }
          continue
        }
        lines.append("batch \(b), head \(h):")
        for n in tokens {
          guard let n else {
            lines.append("  ...")
            continue
          }
          let row = Self.shown(shape.dimension).map { d in
            d.map { " " + Self.padded(Self.text(self[b, h, n, $0]), to: 10) } ?? " ..."
          }
          lines.append("  \(Self.padded("\(n)", to: numberWidth)):" + row.joined())
        }
      }
    }
    return lines.joined(separator: "\n")
  }

  /// The indices of an axis that are shown; nil for those between.
  private static func shown(_ count: Int) -> [Int?] {
    count <= 7 ? (0..<count).map { $0 } : [0, 1, 2, nil, count - 3, count - 2, count - 1]
  }

  private static func padded(_ text: String, to width: Int) -> String {
    String(repeating: " ", count: max(width - text.count, 0)) + text
  }

  /// Four digits behind the point where the number suits that, three of its own and an exponent otherwise.
  private static func text(_ value: Float) -> String {
    let size = Double(value.magnitude)
    if !size.isFinite { return "\(value)" }
    var (digits, behind, exponent) = ((size * 1e4).rounded(), 4, "")
    if size != 0 && !(1e-3..<1e4).contains(size) {
      var power = Int(log10(size).rounded(.down))
      (digits, behind) = ((size / pow(10, Double(power)) * 100).rounded(), 2)
      if digits == 1000 { (digits, power) = (100, power + 1) }
      exponent = "e\(power)"
    }
    let (whole, fraction) = Int(digits).quotientAndRemainder(dividingBy: behind == 4 ? 10_000 : 100)
    let zeros = String(repeating: "0", count: behind - "\(fraction)".count)
    return "\(value < 0 ? "-" : "")\(whole).\(zeros)\(fraction)\(exponent)"
  }
}
