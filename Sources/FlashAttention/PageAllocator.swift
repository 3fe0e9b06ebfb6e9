/// Which pages of a cache hold which keys: sequences grow, share pages with those that they were forked from, and are freed. Pure
/// bookkeeping; what must be copied is said, not done.
public struct PageAllocator: Sendable {
  /// A sequence of the allocator.
  public struct Sequence: Hashable, Sendable {
    fileprivate let number: UInt64
  }

  /// A page whose contents a sequence needs for itself from now on.
  public struct Copy: Hashable, Sendable {
    /// The page that is shared, and the page that takes its first `keys` keys.
    public let source, target, keys: Int
  }

  private struct Entry {
    var pages: [Int] = []
    var length = 0
  }

  /// Keys on a page.
  public let pageSize: Int
  /// The most pages of a sequence.
  public let pagesPerSequence: Int
  private var free: [Int]
  /// How many sequences have each page.
  private var owners: [Int]
  private var entries: [UInt64: Entry] = [:]
  private var next: UInt64 = 0

  /// - Parameter pagesPerSequence: nil for no limit but the pages that there are.
  public init(pages: Int, pageSize: Int, pagesPerSequence: Int? = nil) {
    self.pageSize = pageSize
    self.pagesPerSequence = min(pagesPerSequence ?? pages, pages)
    free = (0..<pages).reversed()
    owners = [Int](repeating: 0, count: pages)
  }

  /// Pages that nobody has.
  public var freePages: Int { free.count }
  /// Sequences that there are.
  public var sequenceCount: Int { entries.count }

  private func entry(_ sequence: Sequence) throws(AttentionError) -> Entry {
    guard let entry = entries[sequence.number] else { throw .unknownSequence }
    return entry
  }

  /// The keys of a sequence.
  public func length(of sequence: Sequence) throws(AttentionError) -> Int { try entry(sequence).length }
  /// The pages of a sequence in the order of its keys, reserved ones included.
  public func pages(of sequence: Sequence) throws(AttentionError) -> [Int] { try entry(sequence).pages }

  /// A new sequence without keys.
  public mutating func makeSequence() -> Sequence {
    defer { next += 1 }
    entries[next] = Entry()
    return Sequence(number: next)
  }

  private mutating func take() -> Int {
    let page = free.removeLast()
    owners[page] = 1
    return page
  }

  private mutating func release(_ page: Int) {
    owners[page] -= 1
    if owners[page] == 0 { free.append(page) }
  }

  /// Makes room for keys behind those that sequences have: pages for them, and where the last page is shared, one of their own.
  /// All or nothing: where it does not fit, nothing has changed.
  ///
  /// - Returns: the copies that must be made before keys are written.
  /// - Throws: `AttentionError.cacheFull`, `.sequenceTooLong`, `.unknownSequence`.
  public mutating func reserve(_ counts: [(sequence: Sequence, keys: Int)]) throws(AttentionError) -> [Copy] {
    var needed = 0
    for (sequence, keys) in counts {
      let entry = try entry(sequence)
      let length = entry.length + keys
      if length > pagesPerSequence * pageSize {
        throw .sequenceTooLong(length: length, limit: pagesPerSequence * pageSize)
      }
      needed += max(0, (length + pageSize - 1) / pageSize - entry.pages.count)
      if keys > 0 { needed += sharedPages(entry, upTo: length).count }
    }
    if needed > free.count { throw .cacheFull(needed: needed, free: free.count, pageSize: pageSize) }
    var copies: [Copy] = []
    for (sequence, keys) in counts where keys > 0 {
      var entry = entries[sequence.number]!
      let length = entry.length + keys
      for index in sharedPages(entry, upTo: length) {
        let (source, target) = (entry.pages[index], take())
        let kept = max(0, min(entry.length - index * pageSize, pageSize))
        if kept > 0 { copies.append(Copy(source: source, target: target, keys: kept)) }
        release(source)
        entry.pages[index] = target
      }
      while entry.pages.count * pageSize < length { entry.pages.append(take()) }
      entries[sequence.number] = entry
    }
    return copies
  }

  /// The pages that would be written and are not the sequence's alone.
  private func sharedPages(_ entry: Entry, upTo length: Int) -> [Int] {
    let written = entry.length / pageSize..<max((length + pageSize - 1) / pageSize, entry.length / pageSize)
    return written.filter { $0 < entry.pages.count && owners[entry.pages[$0]] > 1 }
  }

  /// Counts keys that were written into reserved room.
  public mutating func advance(_ sequence: Sequence, by keys: Int) throws(AttentionError) {
    var entry = try entry(sequence)
    precondition(
      (0...entry.pages.count * pageSize).contains(entry.length + keys), "Keys are written only where room is reserved.")
    entry.length += keys
    entries[sequence.number] = entry
  }

  /// A sequence that begins with the first keys of another: they share pages until one of them writes.
  ///
  /// - Parameter prefix: how many keys; nil for all.
  public mutating func fork(_ sequence: Sequence, prefix: Int? = nil) throws(AttentionError) -> Sequence {
    let entry = try entry(sequence)
    let length = prefix ?? entry.length
    guard (0...entry.length).contains(length) else {
      throw .cacheEntry("prefix", sequence: 0, value: length, limit: entry.length)
    }
    let pages = Array(entry.pages.prefix((length + pageSize - 1) / pageSize))
    for page in pages { owners[page] += 1 }
    let fork = makeSequence()
    entries[fork.number] = Entry(pages: pages, length: length)
    return fork
  }

  /// Forgets the keys behind the first `length`, and gives back pages that are not needed for them.
  public mutating func truncate(_ sequence: Sequence, to length: Int) throws(AttentionError) {
    var entry = try entry(sequence)
    guard (0...entry.length).contains(length) else {
      throw .cacheEntry("length", sequence: 0, value: length, limit: entry.length)
    }
    while entry.pages.count > (length + pageSize - 1) / pageSize { release(entry.pages.removeLast()) }
    entry.length = length
    entries[sequence.number] = entry
  }

  /// Gives the pages of a sequence back.
  public mutating func free(_ sequence: Sequence) throws(AttentionError) {
    for page in try entry(sequence).pages { release(page) }
    entries[sequence.number] = nil
  }
}
