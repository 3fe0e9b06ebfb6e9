internal import Attention
internal import PTX

/// Parameters that kernels have only where a problem asks for them.
struct ParameterParts: OptionSet, Hashable, Sendable {
  let rawValue: Int
  /// The address of sinks.
  static let sinks = ParameterParts(rawValue: 1)
  /// The address of what a call gives of ranges of keys.
  static let rangeList = ParameterParts(rawValue: 2)
  /// A number of first keys.
  static let firstKeys = ParameterParts(rawValue: 4)
  /// Scales of queries, keys and values, where kernels do not have them anyway.
  static let scales = ParameterParts(rawValue: 8)
  /// How many choices of parts there are.
  static let choices = 16

  init(rawValue: Int) { self.rawValue = rawValue }

  /// Those of a kernel.
  init(sinkType: ScalarType?, _ mask: MaskEdges, hasScales: Bool = false) {
    self = sinkType == nil ? [] : .sinks
    if hasScales { insert(.scales) }
    if mask.rangeCount > 0 || mask.contains(.prefix) { insert(.rangeList) }
    if mask.contains(.firstKeys) { insert(.firstKeys) }
  }

  /// Those of a problem's kernels.
  init(_ problem: AttentionProblem) {
    self.init(sinkType: problem.sinkType, MaskEdges(problem), hasScales: problem.cacheType == .e4m3)
  }
}

/// The lists of a kernel's parameters, one for each choice of parts.
struct DeclaredLists<Launch>: Sendable {
  private let lists: [[ParameterList<Launch>.Entry]]

  init(_ declare: (ParameterList<Launch>, ParameterParts) -> Void) {
    lists = (0..<ParameterParts.choices).map { parts in
      ParameterList<Launch>.declared { declare($0, ParameterParts(rawValue: parts)) }
    }
  }

  /// That of a problem's kernels.
  subscript(_ problem: AttentionProblem) -> [ParameterList<Launch>.Entry] {
    lists[ParameterParts(problem).rawValue]
  }
}

/// What a call says of ranges of keys, as parameters of a kernel.
struct RangeParameters {
  private let list: Register<U64>?
  /// Queries from a sequence's ranges to the next's; 0 where they share them, and where queries are packed.
  private let batchStep: Register<U32>?
  /// The last sequence, behind whose prefix nobody reads.
  private let lastSequence: Register<U32>?
  private let firstKeys: Register<S32>?

  /// nil where there are none.
  init?<Launch>(
    _ list: ParameterList<Launch>, _ parts: ParameterParts, _ problem: @escaping @Sendable (Launch) -> AttentionProblem
  ) {
    if parts.isDisjoint(with: [.rangeList, .firstKeys]) { return nil }
    let hasList = parts.contains(.rangeList)
    self.list = hasList ? list.pointer("key_ranges", .keyRanges) : nil
    batchStep =
      hasList
      ? list.number("key_ranges_batch_step", U32.self) {
        if case .given(_, let isShared) = problem($0).ranges {
          return isShared || problem($0).packedQueries != nil ? 0 : problem($0).queries
        }
        return 0
      } : nil
    lastSequence = hasList ? list.number("last_sequence", U32.self) { max(problem($0).batch - 1, 0) } : nil
    firstKeys =
      parts.contains(.firstKeys)
      ? list.number("first_keys", S32.self) {
        if case .firstKeys(let count) = problem($0).ranges { return min(count, GPULimits.lengthLimit) }
        return 0
      } : nil
  }

  /// What there is for a sequence.
  struct OfSequence {
    /// Emits the address of its first query's ranges, where they are looked at: a kernel's loop has no register for it. And the keys that
    /// all of its queries see.
    let list: (() -> Register<U64>)?
    let firstKeys: Register<S32>?
  }

  /// - Parameter firstQuery: where queries are packed, the row of the sequence's first.
  func ofSequence(
    _ k: KernelBuilder, _ edges: MaskEdges, batch: Register<U32>, firstQuery: Register<U32>?
  ) -> OfSequence {
    guard let list, let batchStep, let lastSequence else { return OfSequence(list: nil, firstKeys: firstKeys) }
    if edges.contains(.prefix) {
      let place = k.multiplyWide(k.minimum(batch, lastSequence), 4)
      return OfSequence(list: nil, firstKeys: k.load(S32.self, global: list + place))
    }
    return OfSequence(
      list: {
        let before = k.multiplyWide(batch, batchStep)
        let query = firstQuery.map { before + k.wide($0) } ?? before
        return list + query * (8 * edges.rangeCount)
      }, firstKeys: nil)
  }
}
