internal import Attention
internal import PTX

/// A mask's numbers as parameters of a kernel.
struct MaskParameters {
  /// Query i sees the keys from `i + left` to `i + right`; in sequences with lengths of their own, counted from the key that
  /// it stands on.
  private let left, right: Register<S32>
  /// Query i stands on key `i + diagonal`; keys of a chunk.
  private let diagonal, chunk: Register<S32>
  /// nil where there are none.
  private let ranges: RangeParameters?

  init<Launch>(
    _ list: ParameterList<Launch>, _ parts: ParameterParts, _ problem: @escaping @Sendable (Launch) -> AttentionProblem
  ) {
    left = list.number("left_offset", S32.self) { Self.offsets(problem($0)).left }
    right = list.number("right_offset", S32.self) { Self.offsets(problem($0)).right }
    diagonal = list.number("diagonal", S32.self) { problem($0).keys - problem($0).queries }
    chunk = list.number("chunk", S32.self) { MaskWords(problem($0).mask).chunk }
    ranges = RangeParameters(list, parts, problem)
  }

  private static func offsets(_ problem: AttentionProblem) -> (left: Int, right: Int) {
    if problem.hasWholeKeys { return problem.mask.offsets(queries: problem.queries, keys: problem.keys) }
    let words = MaskWords(problem.mask)
    return (-words.left, words.right)
  }

  /// Which keys queries see, of the rule and of ranges.
  ///
  /// - Parameters:
  ///   - own: as of `visibleKeys`.
  ///   - firstQuery: the row of the sequence's first query, where they are packed.
  func seenKeys(
    _ k: KernelBuilder, _ edges: MaskEdges, keys: Register<S32>, diagonal own: Register<S32>? = nil,
    batch: Register<U32>, firstQuery: Register<U32>? = nil
  ) -> SeenKeys {
    SeenKeys(
      k, edges, visibleKeys(k, edges, keys: keys, diagonal: own),
      ranges?.ofSequence(k, edges, batch: batch, firstQuery: firstQuery))
  }

  /// Which keys the rule lets queries see.
  ///
  /// - Parameter own: the diagonal of a sequence whose length is its own; nil where all are as long.
  func visibleKeys(
    _ k: KernelBuilder, _ edges: MaskEdges, keys: Register<S32>, diagonal own: Register<S32>? = nil
  ) -> VisibleKeys<EmittedNumber> {
    VisibleKeys(
      k, edges, keys: keys, left: own.map { $0 + left } ?? left, right: own.map { $0 + right } ?? right,
      diagonal: own ?? diagonal, chunk: chunk)
  }
}
