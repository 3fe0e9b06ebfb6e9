/// A number with a fixed count of digits after the point; without Foundation's formatters.
package func fixed(_ value: Double, _ digits: Int) -> String {
  guard value.isFinite, value.magnitude < 1e15 else { return "\(value)" }
  var power = 1
  for _ in 0..<digits { power *= 10 }
  let scaled = Int((value.magnitude * Double(power)).rounded())
  let sign = value < 0 && scaled != 0 ? "-" : ""
  if digits == 0 { return "\(sign)\(scaled)" }
  let fraction = String(scaled % power)
  return "\(sign)\(scaled / power).\(String(repeating: "0", count: digits - fraction.count))\(fraction)"
}

/// A part of a whole.
package func percent(_ part: Double) -> String { "\(fixed(part * 100, 0))%" }

/// A duration in the unit that suits it.
package func duration(_ seconds: Double) -> String {
  if seconds >= 1 { return "\(fixed(seconds, 2)) s" }
  if seconds >= 1e-3 { return "\(fixed(seconds * 1e3, 2)) ms" }
  return "\(fixed(seconds * 1e6, 1)) us"
}

/// A size in MB (10^6 bytes).
package func megabytes(_ bytes: Int) -> String { "\(fixed(Double(bytes) / 1e6, bytes < 10_000_000 ? 1 : 0)) MB" }

/// Names and what belongs to them, a line each; a value of several lines is indented.
package func fields(_ fields: [(name: String, value: String)]) -> String {
  let width = fields.map(\.name.count).max() ?? 0
  return fields.map { field in
    let lines = field.value.split(separator: "\n", omittingEmptySubsequences: false)
    return lines.enumerated().map { index, line in
      let name = index == 0 ? field.name : ""
      return name + String(repeating: " ", count: width + 2 - name.count) + line
    }.joined(separator: "\n")
  }.joined(separator: "\n")
}

/// Rows of cells as a table: the first column to the left, the others to the right.
package func table(_ rows: [[String]]) -> String {
  let columns = rows.map(\.count).max() ?? 0
  let widths = (0..<columns).map { column in rows.map { column < $0.count ? $0[column].count : 0 }.max() ?? 0 }
  return rows.map { line($0, widths: widths) }.joined(separator: "\n")
}

/// A row of a table whose columns are so wide; wider cells push the rest to the right.
package func line(_ row: [String], widths: [Int]) -> String {
  let cells = row.enumerated().map { column, cell in
    let space = String(repeating: " ", count: max(widths[column] - cell.count, 0))
    return column == 0 ? cell + space : space + cell
  }
  return String(cells.joined(separator: "  ").reversed().drop { $0 == " " }.reversed())
}
