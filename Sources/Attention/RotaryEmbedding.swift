/// A rotary position embedding: pairs of a row's first elements are turned by angles that grow with the row's position.
///
///     (x, y) -> (x cos - y sin, x sin + y cos)
///
/// The angles' cosines and sines are tables `[positions, dimension / 2]` of the problem's type. A new key with number i
/// has the position "keys of the sequence before the call, plus i"; a query the same under a causal mask, a window or
/// chunks, and the position of the first new key otherwise.
///
/// Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021).
public struct RotaryEmbedding: Hashable, Sendable {
  /// Elements of a row that are turned, a multiple of 16; the others stay as they are.
  public var dimension: Int
  /// Whether neighbours are pairs (GPT-J); otherwise element j and `j + dimension / 2` are (GPT-NeoX, Llama).
  public var isInterleaved: Bool
  /// Rows of the tables. A position that has none is an error where the host knows the positions; on a GPU's own
  /// memory, what is turned by it becomes NaN.
  public var positions: Int

  /// An embedding of the first `dimension` elements.
  public init(dimension: Int, isInterleaved: Bool, positions: Int) {
    (self.dimension, self.isInterleaved, self.positions) = (dimension, isInterleaved, positions)
  }

  /// The element that an element is turned with, and the angle's place in a row of the tables.
  public func partner(of element: Int) -> (element: Int, angle: Int, isFirst: Bool) {
    let half = dimension / 2
    return isInterleaved
      ? (element ^ 1, element / 2, element % 2 == 0)
      : element < half ? (element + half, element, true) : (element - half, element - half, false)
  }

  /// Turns a row.
  public func turn(_ row: [Float], cosines: [Float], sines: [Float]) -> [Float] {
    row.indices.map { element in
      guard element < dimension else { return row[element] }
      let (other, angle, isFirst) = partner(of: element)
      return isFirst
        ? row[element] * cosines[angle] - row[other] * sines[angle]
        : row[element] * cosines[angle] + row[other] * sines[angle]
    }
  }

  /// The position of a query or a new key.
  ///
  /// - Parameters:
  ///   - number: of the query among those of its sequence, or of the new key.
  ///   - base: the position of the first new key.
  ///   - isKey: whether it is a key.
  ///   - mask: the problem's.
  public func position(_ number: Int, base: Int, isKey: Bool, mask: AttentionMask) -> Int {
    guard isKey || mask.isLimited else { return base }
    let (position, overflow) = base.addingReportingOverflow(number)
    return overflow ? .max : position
  }
}
