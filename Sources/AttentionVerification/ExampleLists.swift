package import Attention

extension AttentionProblem {
  /// Sinks for tests, the same in every type: usual ones, one that is none, those that count for nothing and for all.
  package var exampleSinks: [Float]? {
    sinkType == nil ? nil : (0..<queryHeads).map { [0.5, -3, 4, -.infinity, 2.25, 12, -200, 1000][($0 * 3 + 2) % 8] }
  }

  /// What a call may give of ranges of keys: documents, prefixes, spans that begin before their query, two ranges that touch, overlap
  /// or come in the wrong order, none, and numbers that lead out of the keys.
  package var exampleRanges: [Int]? {
    switch ranges {
    case nil, .firstKeys: return nil
    case .prefix: return (0..<batch).map { [keys / 3, 0, keys, -5, 1, keys + 70, .max][$0 % 7] }
    case .given(let count, _):
      return (0..<rangeNumberCount / (2 * count)).flatMap { row in
        let query = queries == 0 ? 0 : row % queries
        let (document, place) = (max(keys / 3, 1), query * max(keys, 1) / max(queries, 1))
        let first = place / document * document
        let own: [Range<Int>]
        // Several neighbours have the same, as in life; some differ.
        switch (row / 8) % 8 {
        case 0, 1: own = [first..<first + document, 0..<min(4, keys)]
        case 2: own = [0..<keys, 0..<0]
        case 3: own = [max(place - 20, 0)..<place + 3, place + 3..<place + 9 + row % 3]
        case 4: own = [place / 2..<place / 2 + 7, max(place / 2 - 3, 0)..<place / 2 + 2]
        case 5: own = [keys - min(keys, 5)..<keys + 40, 3..<min(17, keys) + 3]
        case 6: own = row % 3 == 0 ? [0..<0, 0..<0] : [0..<place + 1, keys..<keys]
        default: own = [first..<first + document, keys / 2..<keys]
        }
        let words = own.prefix(count).flatMap { [$0.lowerBound, $0.upperBound] }
        let (least, most) = (Int(Int32.min), Int(Int32.max))
        let others = words.dropFirst(2)
        return switch row {
        case _ where row % 29 == 5: [-7, 9] + others
        case _ where row % 31 == 7: [12, 3] + others
        case _ where row % 37 == 11: [[0, least], [least, most], [most, 2], [most, least]][row / 37 % 4] + others
        default: words
        }
      }
    }
  }

  /// The keys that a query sees, by the definition, key by key.
  ///
  /// - Parameter numbers: what the call gives of `ranges`.
  func seenKeys(byQuery query: Int, sequence: Int, _ numbers: [Int]?) -> [Int] {
    let diagonal = query + keys - queries
    func isInMask(_ key: Int) -> Bool {
      let (left, right) = mask.reach
      if let left, diagonal - key > left { return false }
      if let right, key - diagonal > right { return false }
      if let size = mask.chunk { return diagonal >= 0 && key / size == diagonal / size }
      return true
    }
    return (0..<keys).filter { key in
      switch ranges {
      case nil: return isInMask(key)
      case .prefix: return isInMask(key) || key < numbers![sequence]
      case .firstKeys(let count):
        // Of the first keys, those that are not behind all that the mask lets the query see.
        let right = mask.reach.right.map { key - diagonal <= $0 } ?? true
        let chunk = mask.chunk.map { diagonal >= 0 && key / $0 <= diagonal / $0 } ?? true
        return isInMask(key) || (key < count && right && chunk)
      case .given(let count, let isShared):
        let own = ((isShared ? 0 : sequence) * queries + query) * count * 2
        return isInMask(key)
          && (0..<count).contains { numbers![own + 2 * $0] <= key && key < numbers![own + 2 * $0 + 1] }
      }
    }
  }
}

extension KeyRanges.Form {
  /// Ranges of the problems of `verify`, in a third of them.
  static func example(_ number: Int, _ mask: AttentionMask) -> KeyRanges.Form? {
    switch number % 15 {
    case 4: .given(count: 1, isShared: false)
    case 7: .given(count: 2, isShared: number % 2 == 0)
    case 10: .given(count: 1, isShared: true)
    case 13: mask.reach.left == nil && mask.chunk == nil ? .prefix : .firstKeys([1, 4, 70][number / 15 % 3])
    case 1: .prefix
    default: nil
    }
  }
}
