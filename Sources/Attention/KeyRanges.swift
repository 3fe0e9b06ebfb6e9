/// Keys that queries see by ranges: masks that are no rule of where a query stands, as one or two ranges of keys a query. Documents,
/// prefixes, images of a prompt, and a window with the first keys are such masks.
///
///     let output = try attention(queries: q, keys: k, values: v, mask: .causal, ranges: .documents(starts: [0, 700, 1500], count: 2048))
///
/// Keys are counted from a sequence's first. Ranges need no room for a mask of queries x keys, and tiles of keys that no query of a
/// block sees are not computed.
public struct KeyRanges: Hashable, Sendable {
  /// What of ranges a plan knows.
  public enum Form: Hashable, Sendable {
    /// A call gives them: int32 `[B, N_q, count, 2]`, half-open, and the same for all sequences `[1, N_q, count, 2]` where they are
    /// shared; of packed queries `[1, total, count, 2]`. The count is 1 or 2. A query sees the union of its ranges, of which the
    /// problem's mask leaves what it lets the query see. Whatever the numbers are, no key is seen that is not there.
    case given(count: Int, isShared: Bool)
    /// A call gives a number of keys for each sequence, int32 `[B]`: every query sees these, the first of the sequence, beside what
    /// the mask lets it see ("prefix LM": a prompt that sees all of itself).
    case prefix
    /// Every query sees so many keys, the first of its sequence, beside what the mask lets it see; of these none behind the last key
    /// that the mask lets it see (Xiao et al. 2023, "attention sinks" of StreamingLLM).
    case firstKeys(Int)
  }

  /// What a plan knows.
  public let form: Form
  /// What a call gives: `[B or 1, N_q, count, 2]` or `[B]`, one behind the other; nil where that is nothing.
  public let numbers: [Int]?

  package init(_ form: Form, _ numbers: [Int]?) { (self.form, self.numbers) = (form, numbers) }

  /// For each query one range or two, the same for all sequences and heads.
  public static func given(_ ranges: [[Range<Int>]]) -> KeyRanges { given([ranges], isShared: true) }

  /// For each query of each sequence one range or two, for all heads.
  public static func given(_ ranges: [[[Range<Int>]]]) -> KeyRanges { given(ranges, isShared: false) }

  private static func given(_ ranges: [[[Range<Int>]]], isShared: Bool) -> KeyRanges {
    let count = max(ranges.joined().map(\.count).max() ?? 1, 1)
    let numbers = ranges.joined().flatMap { own in
      (0..<count).flatMap { $0 < own.count ? [own[$0].lowerBound, own[$0].upperBound] : [0, 0] }
    }
    return KeyRanges(.given(count: count, isShared: isShared), numbers)
  }

  /// Every query sees the first keys of its sequence, of each so many, beside what the mask lets it see.
  public static func prefix(_ counts: [Int]) -> KeyRanges { KeyRanges(.prefix, counts) }

  /// Every query sees the first keys beside a window.
  public static func firstKeys(_ count: Int) -> KeyRanges { KeyRanges(.firstKeys(count), nil) }

  /// Tokens of documents that lie one behind the other, the same in all sequences: a query sees the keys of its own document.
  ///
  /// - Parameters:
  ///   - starts: where documents begin, ascending. Tokens before the first are a document, too.
  ///   - count: of the queries, which are as many as the keys.
  public static func documents(starts: [Int], count: Int) -> KeyRanges {
    var ranges: [[Range<Int>]] = []
    var ends = Array((starts.filter { 0 < $0 && $0 < count } + [count]).reversed())
    var first = 0
    for query in 0..<max(count, 0) {
      while query >= ends[ends.count - 1] { first = ends.removeLast() }
      ranges.append([first..<ends[ends.count - 1]])
    }
    return given(ranges)
  }

  /// Spans of tokens, such as those of images, that see all of themselves, among tokens that see what is before them; the same in all
  /// sequences. (The mask must let queries see to the right: `.none`, or a window without a limit there.)
  ///
  /// - Parameters:
  ///   - spans: ranges of tokens that do not overlap.
  ///   - count: of the queries, which are as many as the keys.
  public static func spans(_ spans: [Range<Int>], count: Int) -> KeyRanges {
    var ends = (0..<max(count, 0)).map { $0 + 1 }
    for span in spans {
      for query in span.clamped(to: 0..<ends.count) { ends[query] = max(ends[query], span.upperBound) }
    }
    return given(ends.map { [0..<$0] })
  }
}

/// The keys that a query sees: no more than two ranges, ascending and apart. Where there is one, the second is empty.
package struct VisibleRanges: Hashable, Sendable {
  package let first, second: Range<Int>

  package init(_ a: Range<Int>, _ b: Range<Int> = 0..<0) {
    if a.isEmpty || b.isEmpty {
      (first, second) = (a.isEmpty ? (b.isEmpty ? 0..<0 : b) : a, 0..<0)
    } else if a.lowerBound <= b.upperBound && b.lowerBound <= a.upperBound {
      (first, second) = (min(a.lowerBound, b.lowerBound)..<max(a.upperBound, b.upperBound), 0..<0)
    } else {
      (first, second) = a.lowerBound < b.lowerBound ? (a, b) : (b, a)
    }
  }

  /// One of the two, or the other.
  package subscript(part: Int) -> Range<Int> { part == 0 ? first : second }
}

extension AttentionProblem {
  /// The ranges that a query sees, of whole keys.
  ///
  /// - Parameters:
  ///   - numbers: what the call gives of `ranges`; as many as `rangeNumberCount`.
  package func visibleRanges(ofQuery query: Int, sequence: Int = 0, _ numbers: [Int]?) -> VisibleRanges {
    switch ranges {
    case nil: return VisibleRanges(visibleKeys(ofQuery: query))
    case .firstKeys(let count):
      let end = mask.endOfVisibleKeys(ofQuery: query, queries: queries, keys: keys)
      return VisibleRanges(0..<max(min(count, end), 0), visibleKeys(ofQuery: query))
    case .prefix:
      return VisibleRanges(0..<max(min(numbers![sequence], keys), 0), visibleKeys(ofQuery: query))
    case .given(let count, let isShared):
      let rule = visibleKeys(ofQuery: query)
      let own = ((isShared ? 0 : sequence) * queries + query) * count * 2
      func range(_ number: Int) -> Range<Int> {
        let (first, end) = (numbers![own + number * 2], numbers![own + number * 2 + 1])
        return first < end ? (first..<end).clamped(to: rule) : 0..<0
      }
      return VisibleRanges(range(0), count > 1 ? range(1) : 0..<0)
    }
  }

  /// How many numbers a call gives of `ranges`.
  package var rangeNumberCount: Int {
    switch ranges {
    case nil, .firstKeys: 0
    case .prefix: batch
    case .given(let count, let isShared): (packedQueries ?? (isShared ? 1 : batch) * queries) * count * 2
    }
  }

  /// Whether a call gives numbers of ranges.
  var needsRanges: Bool {
    switch ranges {
    case nil, .firstKeys: false
    case .prefix, .given: true
    }
  }

  /// - Throws: `AttentionError.unsupported` where a call's ranges are not of the form that the problem has.
  package func check(_ given: KeyRanges?) throws(AttentionError) {
    if given?.form == ranges { return }
    func name(_ form: KeyRanges.Form?) -> String { form.map { "\($0)" } ?? "no ranges of keys" }
    throw .unsupported("The call has \(name(given?.form)); the plan was made for \(name(ranges)).")
  }

  /// - Throws: `AttentionError.unsupported` for ranges that cannot be.
  package func checkRanges() throws(AttentionError) {
    switch ranges {
    case nil, .prefix: return
    case .firstKeys(let count):
      if count < 0 { throw .extent(tensor: "the mask", axis: "number of first keys", value: count) }
    case .given(let count, _):
      if count != 1 && count != 2 {
        throw .unsupported("There are \(count) ranges of keys for a query; give 1 or 2.")
      }
      if checkedProduct([batch, queries, count, 8]) == nil {
        throw .unsupported("Ranges of keys of \(batch) x \(queries) queries have no room in memory.")
      }
    }
  }
}

extension CacheEntries where Memory == HostMemory {
  /// - Throws: where there are not as many numbers as the problem's ranges need.
  package func checkRanges(_ problem: AttentionProblem) throws(AttentionError) {
    guard let ranges, ranges.count != problem.rangeNumberCount else { return }
    let shape =
      switch problem.ranges {
      case .given(let count, let isShared):
        problem.packedQueries.map { "[1, \($0), \(count), 2]" }
          ?? "[\(isShared ? 1 : problem.batch), \(problem.queries), \(count), 2]"
      default: "[\(problem.batch)]"
      }
    throw .unsupported("The list of key ranges has \(ranges.count) numbers; the problem's are \(shape).")
  }

  /// What a call gives of the ranges of one sequence, whose problem is of its own.
  package func ranges(of sequence: Int, _ problem: AttentionProblem) -> [Int]? {
    guard let ranges else { return nil }
    guard case .given(let count, let isShared) = problem.ranges else { return [ranges[sequence]] }
    let own = queries(of: sequence, problem)
    let first = problem.packedQueries == nil && !isShared ? sequence * problem.queries : 0
    return Array(ranges[(first + own.lowerBound) * count * 2..<(first + own.upperBound) * count * 2])
  }
}

extension KeyRanges.Form: CustomStringConvertible {
  /// The ranges in words.
  public var description: String {
    switch self {
    case .given(let count, let isShared):
      "\(count == 1 ? "a range" : "\(count) ranges") of keys for each query\(isShared ? ", the same in all sequences" : "")"
    case .prefix: "a prefix that all see"
    case .firstKeys(let count): "\(count) first keys that all see"
    }
  }
}
