import Foundation

/// BERT's tokenizer for text in lower case: words and punctuation, each in the longest pieces that the vocabulary has.
///
/// Source: Devlin et al., "BERT" (2018); Wu et al., "Google's Neural Machine Translation System" (2016), section 4.1.
struct WordPiece {
  private let numbers: [String: Int]

  /// - Parameter path: a file of tokens, one a line.
  init(vocabulary path: String) throws {
    let lines = try String(contentsOfFile: path, encoding: .utf8).split(
      separator: "\n", omittingEmptySubsequences: false)
    numbers = Dictionary(lines.enumerated().map { (String($1), $0) }) { first, _ in first }
  }

  /// The tokens of a text, between those that begin and end it; at most `limit`.
  func tokens(of text: String, limit: Int) -> [Int] {
    let tokens = words(of: text).flatMap(pieces)
    return [numbers["[CLS]"]!] + tokens.prefix(limit - 2) + [numbers["[SEP]"]!]
  }

  /// Words without accents in lower case, and each mark of punctuation or Chinese character by itself.
  private func words(of text: String) -> [String] {
    var words = [""]
    for scalar in text.lowercased().decomposedStringWithCanonicalMapping.unicodeScalars {
      let properties = scalar.properties
      switch properties.generalCategory {
      case .nonspacingMark: continue
      case .control where !"\t\n\r".unicodeScalars.contains(scalar), .format, .privateUse, .surrogate, .unassigned:
        continue
      default: break
      }
      if scalar.value == 0 || scalar.value == 0xfffd { continue }
      if properties.isWhitespace {
        words.append("")
      } else if Self.isPunctuation(scalar) || Self.isChinese(scalar) {
        words += [String(scalar), ""]
      } else {
        words[words.count - 1].unicodeScalars.append(scalar)
      }
    }
    return words.filter { !$0.isEmpty }
  }

  private static func isPunctuation(_ scalar: Unicode.Scalar) -> Bool {
    // Of ASCII, all that is neither letter, digit nor space.
    if scalar.isASCII { return !scalar.properties.isAlphabetic && !("0"..."9").contains(scalar) }
    return switch scalar.properties.generalCategory {
    case .connectorPunctuation, .dashPunctuation, .openPunctuation, .closePunctuation, .initialPunctuation,
      .finalPunctuation, .otherPunctuation:
      true
    default: false
    }
  }

  private static func isChinese(_ scalar: Unicode.Scalar) -> Bool {
    switch scalar.value {
    case 0x4e00...0x9fff, 0x3400...0x4dbf, 0x20000...0x2a6df, 0x2a700...0x2ceaf, 0xf900...0xfaff, 0x2f800...0x2fa1f:
      true
    default: false
    }
  }

  /// The longest piece that the vocabulary has, then the longest of the rest; one unknown token where nothing fits.
  private func pieces(of word: String) -> [Int] {
    let unknown = [numbers["[UNK]"]!]
    let scalars = Array(word.unicodeScalars)
    if scalars.count > 100 { return unknown }
    var (pieces, start) = ([Int](), 0)
    while start < scalars.count {
      var (end, found) = (scalars.count, Int?.none)
      while found == nil && end > start {
        var piece = String.UnicodeScalarView(scalars[start..<end])
        if start > 0 { piece = "##".unicodeScalars + piece }
        found = numbers[String(piece)]
        end -= 1
      }
      guard let found else { return unknown }
      pieces.append(found)
      start = end + 1
    }
    return pieces
  }
}
