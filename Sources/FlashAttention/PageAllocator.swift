internal import Synchronization

/// Which pages of a cache hold which keys: sequences grow, share pages with those that they were forked from, and are
/// freed. Pure bookkeeping; what must be copied is said, not done.
public struct PageAllocator: Sendable {
  /// A sequence of the allocator.
  public struct Sequence: Hashable, Sendable {
    fileprivate let cache, number: UInt64
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
  private let pageCount: Int
  /// Pages that were given back, and the first of those that nobody had yet.
  private var returned: [Int] = []
  private var fresh = 0
  /// How many sequences have each page that was taken before.
  private var owners: [Int] = []
  private var entries: [UInt64: Entry] = [:]
  private var next: UInt64 = 0
  /// What its sequences are told from those of others by.
  private let identity: UInt64

  private static let identities = Atomic<UInt64>(0)

  /// - Parameters:
  ///   - pages: how many there are.
  ///   - pageSize: keys of each.
  ///   - pagesPerSequence: nil for no limit but the pages that there are.
  /// - Throws: `AttentionError.extent` for numbers below 0, and pages without a key.
  public init(pages: Int, pageSize: Int, pagesPerSequence: Int? = nil) throws(AttentionError) {
    if pages < 0 { throw .extent(tensor: "the cache", axis: "length", value: pages) }
    if pageSize < 1 { throw .extent(tensor: "the cache", axis: "page size", value: pageSize) }
    if let pagesPerSequence, pagesPerSequence < 0 {
      throw .extent(tensor: "the page table", axis: "length", value: pagesPerSequence)
    }
    self.pageSize = pageSize
    self.pagesPerSequence = min(pagesPerSequence ?? pages, pages)
    pageCount = pages
    identity = Self.identities.add(1, ordering: .relaxed).newValue
  }

  /// Pages that nobody has.
  public var freePages: Int { returned.count + (pageCount - fresh) }
  /// Sequences that there are.
  public var sequenceCount: Int { entries.count }

  private func entry(_ sequence: Sequence) throws(AttentionError) -> Entry {
    guard sequence.cache == identity, let entry = entries[sequence.number] else { throw .unknownSequence }
    return entry
  }

  /// The pages of so many keys.
  private func pages(ofKeys keys: Int) -> Int { keys == 0 ? 0 : (keys - 1) / pageSize + 1 }

  /// The keys of a sequence with some more.
  private func length(of entry: Entry, with keys: Int) throws(AttentionError) -> Int {
    if keys < 0 { throw .extent(tensor: "the new keys", axis: "length", value: keys) }
    let (length, overflow) = entry.length.addingReportingOverflow(keys)
    if overflow || pages(ofKeys: length) > pagesPerSequence {
      let limit = pagesPerSequence.multipliedReportingOverflow(by: pageSize)
      throw .sequenceTooLong(length: overflow ? .max : length, limit: limit.overflow ? .max : limit.partialValue)
    }
    return length
  }

  /// The keys of a sequence.
  public func length(of sequence: Sequence) throws(AttentionError) -> Int { try entry(sequence).length }
  /// The pages of a sequence in the order of its keys, reserved ones included.
  public func pages(of sequence: Sequence) throws(AttentionError) -> [Int] { try entry(sequence).pages }

  /// A new sequence without keys.
  public mutating func makeSequence() -> Sequence {
    defer { next += 1 }
    entries[next] = Entry()
    return Sequence(cache: identity, number: next)
  }

  private mutating func take() -> Int {
    if let page = returned.popLast() {
      owners[page] = 1
      return page
    }
    defer { fresh += 1 }
    owners.append(1)
    return fresh
  }

  private mutating func release(_ page: Int) {
    owners[page] -= 1
    if owners[page] == 0 { returned.append(page) }
  }

  /// Makes room for keys behind those that sequences have: pages for them, and where the last page is shared, one of
  /// their own. All or nothing: where it does not fit, nothing has changed.
  ///
  /// - Parameter counts: each sequence once, but for 0 keys.
  /// - Returns: the copies that must be made before keys are written.
  /// - Throws: `AttentionError.cacheFull`, `.sequenceTooLong`, `.unknownSequence`, `.extent` for less than 0 keys,
  ///   `.unsupported` for a sequence that is there twice.
  public mutating func reserve(_ counts: [(sequence: Sequence, keys: Int)]) throws(AttentionError) -> [Copy] {
    let writing = counts.filter { $0.keys > 0 }.map(\.sequence)
    if Set(writing).count != writing.count {
      throw .unsupported("A sequence to append to can be in a call only once; fork it for another continuation.")
    }
    var needed = 0
    /// Sequences of the call that will write to a page which others have too.
    var writers: [Int: Int] = [:]
    for (sequence, keys) in counts {
      let entry = try entry(sequence)
      let length = try length(of: entry, with: keys)
      needed += max(0, pages(ofKeys: length) - entry.pages.count)
      if keys > 0 { for index in sharedPages(entry, upTo: length) { writers[entry.pages[index], default: 0] += 1 } }
    }
    // The last of those that have a page keeps it.
    for (page, count) in writers { needed += min(count, owners[page] - 1) }
    if needed > freePages { throw .cacheFull(needed: needed, free: freePages, pageSize: pageSize) }
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
      while entry.pages.count < pages(ofKeys: length) { entry.pages.append(take()) }
      entries[sequence.number] = entry
    }
    return copies
  }

  /// The pages that would be written and are not the sequence's alone.
  private func sharedPages(_ entry: Entry, upTo length: Int) -> [Int] {
    let written = entry.length / pageSize..<max(pages(ofKeys: length), entry.length / pageSize)
    return written.filter { $0 < entry.pages.count && owners[entry.pages[$0]] > 1 }
  }

  /// Counts keys that were written into reserved room.
  /// - Throws: `AttentionError.cacheEntry` where no room is reserved for so many.
  public mutating func advance(_ sequence: Sequence, by keys: Int) throws(AttentionError) {
    var entry = try entry(sequence)
    let length = try length(of: entry, with: keys)
    if pages(ofKeys: length) > entry.pages.count {
      throw .cacheEntry("length", sequence: 0, value: length, limit: entry.pages.count * pageSize)
    }
    entry.length = length
    entries[sequence.number] = entry
  }

  /// A sequence that begins with the first keys of another: they share pages until one of them writes.
  ///
  /// - Parameters:
  ///   - sequence: the one that is forked.
  ///   - prefix: how many keys; nil for all.
  public mutating func fork(_ sequence: Sequence, prefix: Int? = nil) throws(AttentionError) -> Sequence {
    let entry = try entry(sequence)
    let length = prefix ?? entry.length
    guard (0...entry.length).contains(length) else {
      throw .cacheEntry("prefix", sequence: 0, value: length, limit: entry.length)
    }
    let pages = Array(entry.pages.prefix(pages(ofKeys: length)))
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
    while entry.pages.count > pages(ofKeys: length) { release(entry.pages.removeLast()) }
    entry.length = length
    entries[sequence.number] = entry
  }

  /// Gives the pages of a sequence back.
  public mutating func free(_ sequence: Sequence) throws(AttentionError) {
    for page in try entry(sequence).pages { release(page) }
    entries[sequence.number] = nil
  }
}
