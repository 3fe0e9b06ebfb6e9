import FlashAttention
import Testing

/// A cache that sequences grow in: results beside attention over all that was said, shared pages, and what is refused.
@Suite struct KVCacheTests {
  private func number(_ subject: Int, _ sequence: Int, _ h: Int, _ n: Int, _ d: Int) -> Float {
    Float((subject * 31 + sequence * 17 + h * 13 + n * 7 + d * 3) * 2_654_435_761 % 97) / 48 - 1
  }

  /// A conversation: what its tokens are. A fork says the same as its origin up to the prefix.
  private struct Speech {
    var tokens: [(sequence: Int, place: Int)] = []
  }

  private func tensor(_ subject: Int, _ speeches: [Speech], last count: Int, heads: Int, dimension: Int) -> Tensor {
    try! Tensor(
      shape: TensorShape(batch: speeches.count, heads: heads, length: count, dimension: dimension), scalarType: .f32
    ) { b, h, n, d in
      let token = speeches[b].tokens[speeches[b].tokens.count - count + n]
      return number(subject, token.sequence, h, token.place, d)
    }
  }

  /// Says `count` tokens in each conversation, and compares with attention over everything that was said.
  private func say(
    _ count: Int, _ speeches: inout [Speech], _ which: [Int], _ cache: KVCache, _ sequences: [KVCache.Sequence],
    sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    for index in which {
      for _ in 0..<count { speeches[index].tokens.append((index, speeches[index].tokens.count)) }
    }
    let own = which.map { speeches[$0] }
    let result = try cache.attend(
      queries: tensor(1, own, last: count, heads: 4, dimension: 16),
      keys: tensor(2, own, last: count, heads: 2, dimension: 16),
      values: tensor(3, own, last: count, heads: 2, dimension: 8), sequences: which.map { sequences[$0] })
    for (b, speech) in own.enumerated() {
      let all = speech.tokens.count
      #expect(try cache.length(of: sequences[which[b]]) == all, sourceLocation: sourceLocation)
      let expected = try attention(
        queries: tensor(1, [speech], last: count, heads: 4, dimension: 16),
        keys: tensor(2, [speech], last: all, heads: 2, dimension: 16),
        values: tensor(3, [speech], last: all, heads: 2, dimension: 8), mask: .causal)
      for h in 0..<4 {
        for n in 0..<count {
          for d in 0..<8 {
            #expect(abs(result.output[b, h, n, d] - expected[0, h, n, d]) < 1e-5, sourceLocation: sourceLocation)
          }
        }
      }
    }
  }

  @Test(arguments: [
    KVCache.Layout.paged(pages: 40, pageSize: 4), .paged(pages: 160, pageSize: 1),
    .contiguous(sequences: 4, capacity: 30),
  ])
  func conversations(layout: KVCache.Layout) throws {
    let cache = try KVCache(
      layout, keyValueHeads: 2, dimension: 16, valueDimension: 8, scalarType: .f32, device: .cpu)
    var speeches = [Speech(), Speech(), Speech()]
    var sequences = [cache.makeSequence(), cache.makeSequence()]
    let free = cache.freePages
    try say(7, &speeches, [0], cache, sequences)
    try say(2, &speeches, [1, 0], cache, sequences)
    // A fork says the same, then something else; the origin goes on as if nothing were.
    sequences.append(try cache.fork(sequences[0], prefix: 6))
    speeches[2].tokens = Array(speeches[0].tokens.prefix(6))
    try say(1, &speeches, [2, 1, 0], cache, sequences)
    try say(3, &speeches, [0, 2], cache, sequences)
    try cache.truncate(sequences[1], to: 1)
    speeches[1].tokens.removeLast(2)
    try say(1, &speeches, [1], cache, sequences)
    for sequence in sequences { try cache.free(sequence) }
    #expect(cache.freePages == free)
  }

  /// Prompts of different lengths, one of them without a token, in one call: as if each had come by itself.
  @Test(arguments: [
    KVCache.Layout.paged(pages: 40, pageSize: 4), .contiguous(sequences: 4, capacity: 30),
  ])
  func promptsOfDifferentLengths(layout: KVCache.Layout) throws {
    let caches = try (0..<2).map { _ in
      try KVCache(
        layout, keyValueHeads: 2, dimension: 16, valueDimension: 8, scalarType: .f32, device: .cpu)
    }
    let sequences = caches.map { cache in (0..<3).map { _ in cache.makeSequence() } }
    for (turn, counts) in [[5, 0, 12], [1, 3, 2]].enumerated() {
      func packed(_ subject: Int, heads: Int, dimension: Int, of which: [Int]) throws -> Tensor {
        let tokens = which.flatMap { b in (0..<counts[b]).map { (b, $0 + 100 * turn) } }
        return try Tensor(
          shape: TensorShape(batch: 1, heads: heads, length: tokens.count, dimension: dimension), scalarType: .f32
        ) { _, h, n, d in number(subject, tokens[n].0, h, tokens[n].1, d) }
      }
      let together = try caches[0].attend(
        queries: packed(1, heads: 4, dimension: 16, of: [0, 1, 2]),
        keys: packed(2, heads: 2, dimension: 16, of: [0, 1, 2]),
        values: packed(3, heads: 2, dimension: 8, of: [0, 1, 2]), sequences: sequences[0], counts: counts)
      #expect(
        together.output.shape.length == counts.reduce(0, +) && together.logSumExp.count == 4 * counts.reduce(0, +))
      var first = 0
      for b in 0..<3 where counts[b] > 0 {
        let alone = try caches[1].attend(
          queries: packed(1, heads: 4, dimension: 16, of: [b]), keys: packed(2, heads: 2, dimension: 16, of: [b]),
          values: packed(3, heads: 2, dimension: 8, of: [b]), sequences: [sequences[1][b]])
        for h in 0..<4 {
          for n in 0..<counts[b] {
            for d in 0..<8 {
              #expect(abs(together.output[0, h, first + n, d] - alone.output[0, h, n, d]) < 1e-6)
            }
          }
        }
        first += counts[b]
      }
      for b in 0..<3 { #expect(try caches[0].length(of: sequences[0][b]) == caches[1].length(of: sequences[1][b])) }
    }
    func sentence(_ counts: [Int]) -> String {
      let shape = TensorShape(batch: 1, heads: 4, length: 3, dimension: 16)
      do {
        let queries = try Tensor(shape: shape, scalarType: .f32) { _, _, _, _ in 0 }
        _ = try caches[0].attend(queries: queries, sequences: sequences[0], counts: counts)
        return "nothing was refused"
      } catch { return "\(error)" }
    }
    #expect(sentence([1, 2]) == "There are 2 counts of queries for 3 sequences; give one for each.")
    #expect(sentence([4, -1, 0]) == "The length of the queries is -1; it must be 0 or more.")
    #expect(
      sentence([1, 1, 2])
        == "queries has length 3, but what the counts add up to has length 4; they must be the same.")
    #expect(sentence([.max, 1, 0]).contains("length \(Int.max)"))
  }

  /// A call that is refused takes no pages, whatever is wrong with it.
  @Test func refusedCallsTakeNothing() throws {
    let cache = try KVCache(
      .paged(pages: 8, pageSize: 2), keyValueHeads: 2, dimension: 16, scalarType: .f32, device: .cpu)
    let sequence = cache.makeSequence()
    func zeros(_ heads: Int, _ length: Int, _ dimension: Int = 16, batch: Int = 1) throws -> Tensor {
      try Tensor(
        shape: TensorShape(batch: batch, heads: heads, length: length, dimension: dimension), scalarType: .f32
      ) { _, _, _, _ in 0 }
    }
    func sentence(_ body: () throws -> AttentionResult) -> String {
      do {
        _ = try body()
        return "nothing was refused"
      } catch { return "\(error)" }
    }
    let (rotary, q, k) = (
      RotaryEmbedding(dimension: 16, isInterleaved: false, positions: 4), try zeros(2, 3), try zeros(2, 3)
    )
    let table = try zeros(1, 4, 8)
    _ = try cache.attend(
      queries: q, keys: k, values: k, sequences: [sequence], rotary: (rotary, cosines: table, sines: table))
    let free = cache.freePages
    #expect(
      sentence {
        try cache.attend(
          queries: q, keys: k, values: k, sequences: [sequence], rotary: (rotary, cosines: table, sines: table))
      }
        == "Sequence 0 reaches position 5, and the rotary tables have 4 rows; give tables with a row for each position from "
        + "0 on.")
    #expect(
      sentence { try cache.attend(queries: q, keys: k, values: try zeros(2, 3, 8), sequences: [sequence]) }
        .hasPrefix("the new values has batch 1, heads 2, length 3, dimension 8"))
    #expect(try cache.freePages == free && cache.length(of: sequence) == 3)
  }

  /// Threads that grow sequences of their own in one cache, and one that makes and frees others meanwhile.
  @Test func threadsShareACache() async throws {
    let cache = try KVCache(
      .paged(pages: 200, pageSize: 4), keyValueHeads: 2, dimension: 16, valueDimension: 8, scalarType: .f32,
      device: .cpu)
    try await withThrowingTaskGroup(of: Void.self) { group in
      for thread in 0..<4 {
        group.addTask {
          var speeches = [Speech](repeating: Speech(), count: thread + 1)
          let sequences = (0...thread).map { _ in cache.makeSequence() }
          for _ in 0..<12 { try say(2, &speeches, [thread], cache, sequences) }
          for sequence in sequences { try cache.free(sequence) }
        }
      }
      group.addTask {
        for _ in 0..<500 {
          let sequence = cache.makeSequence()
          try cache.reserve(9, for: sequence)
          try cache.free(sequence)
        }
      }
      try await group.waitForAll()
    }
    #expect(cache.freePages == 200)
  }

  @Test func refusesInSentences() throws {
    let cache = try KVCache(
      .paged(pages: 2, pageSize: 4), keyValueHeads: 2, dimension: 16, valueDimension: 8, scalarType: .f32, device: .cpu)
    var speeches = [Speech(), Speech()]
    let sequences = [cache.makeSequence(), cache.makeSequence()]
    try say(5, &speeches, [0], cache, sequences)
    func sentence(_ body: () throws -> Void) -> String {
      do {
        try body()
        return "nothing was refused"
      } catch { return "\(error)" }
    }
    #expect(
      sentence { try say(1, &speeches, [1], cache, sequences) }
        == "The cache is full: 1 more page of 4 keys is needed, 0 are free. Free a sequence, or make a larger cache.")
    #expect(
      sentence { try cache.reserve(4, for: sequences[0]) }
        == "The sequence would have 9 keys; in this cache one can have 8. Make a cache with longer sequences.")
    #expect(
      sentence { try say(1, &speeches, [0, 0], cache, sequences) }
        == "A sequence to append to can be in a call only once; fork it for another continuation.")
    try cache.free(sequences[0])
    #expect(
      sentence { try cache.free(sequences[0]) }
        == "The sequence is not in the cache: it was freed, or belongs to another one.")
    #expect(
      sentence {
        _ = try KVCache(.paged(pages: 2, pageSize: 0), keyValueHeads: 2, dimension: 16, scalarType: .f32, device: .cpu)
      } == "The page size of the cache is 0; it must be at least 1.")
  }

  /// Numbers of any size are refused or taken, and nothing traps; nothing is made for pages that nobody has yet.
  @Test func anyNumberIsASentence() throws {
    func sentence(_ body: () throws -> Void) -> String {
      do { try body(); return "nothing was thrown" } catch { return "\(error)" }
    }
    var allocator = try PageAllocator(pages: .max, pageSize: .max)
    let sequence = allocator.makeSequence()
    #expect(try allocator.reserve([(sequence, .max)]).isEmpty && allocator.freePages == .max - 1)
    try allocator.advance(sequence, by: .max)
    #expect(sentence { _ = try allocator.reserve([(sequence, 1)]) }.hasPrefix("The sequence would have"))
    #expect(
      sentence { try allocator.advance(sequence, by: -1) } == "The length of the new keys is -1; it must be 0 or more.")
    try allocator.truncate(sequence, to: 0)
    #expect(
      sentence { try allocator.advance(sequence, by: 1) } == "The length of sequence 0 is 1; it must be from 0 to 0.")
    #expect(
      sentence { _ = try PageAllocator(pages: -1, pageSize: 1) }
        == "The length of the cache is -1; it must be 0 or more.")
    #expect(
      sentence { _ = try PageAllocator(pages: 1, pageSize: .min) }
        == "The page size of the cache is \(Int.min); it must be at least 1.")

    func cache(_ layout: KVCache.Layout) throws -> KVCache {
      try KVCache(layout, keyValueHeads: 2, dimension: 16, scalarType: .f32, device: .cpu)
    }
    #expect(
      sentence { _ = try cache(.paged(pages: 1 << 40, pageSize: 16)) }
        == "The cache of keys needs 2251799814 MB of memory, which this machine does not have; make it smaller.")
    for layout in [
      KVCache.Layout.paged(pages: .max, pageSize: 16), .paged(pages: 16, pageSize: .max),
      .paged(pages: .max, pageSize: .max),
      .contiguous(sequences: .max, capacity: 3), .contiguous(sequences: 3, capacity: .max),
      .paged(pages: -3, pageSize: 16),
      .contiguous(sequences: -1, capacity: 3), .contiguous(sequences: 1, capacity: -3),
      .paged(pages: 1, pageSize: .min),
    ] {
      #expect(sentence { _ = try cache(layout) } != "nothing was thrown", "\(layout)")
    }
    let small = try cache(.paged(pages: 4, pageSize: 4))
    let own = small.makeSequence()
    for keys in [Int.max, .min, -1, 17] {
      #expect(sentence { try small.reserve(keys, for: own) } != "nothing was thrown", "\(keys)")
    }
    #expect(sentence { try small.truncate(own, to: .max) } != "nothing was thrown")
    #expect(sentence { _ = try small.fork(own, prefix: .min) } != "nothing was thrown")
    #expect(small.freePages == 4)
  }

  /// Sequences are numbered from 0 in each cache, and still know their own.
  @Test func aSequenceOfAnotherCacheIsRefused() throws {
    let caches = try (0..<2).map { _ in
      try KVCache(.paged(pages: 4, pageSize: 4), keyValueHeads: 2, dimension: 16, scalarType: .f32, device: .cpu)
    }
    let (own, other) = (caches[0].makeSequence(), caches[1].makeSequence())
    try caches[0].reserve(3, for: own)
    func refused(_ body: () throws -> Void) -> Bool {
      do { try body(); return false } catch { return error as? AttentionError == .unknownSequence }
    }
    #expect(refused { _ = try caches[0].length(of: other) } && refused { try caches[0].free(other) })
    #expect(refused { try caches[0].reserve(1, for: other) } && refused { _ = try caches[0].fork(other) })
    #expect(refused { try caches[1].truncate(own, to: 0) })
    let queries = try Tensor(shape: .init(batch: 1, heads: 2, length: 1, dimension: 16), scalarType: .f32) {
      _, _, _, _ in 0
    }
    #expect(refused { _ = try caches[0].attend(queries: queries, sequences: [other]) })
    #expect(own != other && caches[1].freePages == 4)
  }

  /// A sequence may be asked twice in a call that appends nothing.
  @Test func aSequenceCanBeReadTwice() throws {
    let cache = try KVCache(
      .paged(pages: 4, pageSize: 4), keyValueHeads: 2, dimension: 16, scalarType: .f32, device: .cpu)
    let sequence = cache.makeSequence()
    func tensor(_ batch: Int) throws -> Tensor {
      try Tensor(shape: .init(batch: batch, heads: 2, length: 1, dimension: 16), scalarType: .f32) { _, h, _, d in
        Float(h + d)
      }
    }
    _ = try cache.attend(queries: tensor(1), keys: tensor(1), values: tensor(1), sequences: [sequence])
    let twice = try cache.attend(queries: tensor(2), sequences: [sequence, sequence])
    #expect(twice.output[0, 1, 0, 3] == 4 && twice.output[1, 1, 0, 3] == 4)
  }

  /// Two forks that both write their common page need one more page, not two: the last of them keeps it.
  @Test func twoForksNeedOneMorePage() throws {
    var allocator = try PageAllocator(pages: 2, pageSize: 4)
    let first = allocator.makeSequence()
    _ = try allocator.reserve([(first, 2)])
    try allocator.advance(first, by: 2)
    let second = try allocator.fork(first)
    #expect(try allocator.reserve([(first, 1), (second, 1)]).count == 1 && allocator.freePages == 0)
    #expect(try allocator.pages(of: first) != allocator.pages(of: second))
    // And no less.
    let third = try allocator.fork(first)
    #expect(throws: AttentionError.cacheFull(needed: 1, free: 0, pageSize: 4)) {
      try allocator.reserve([(first, 1), (third, 1)])
    }
  }

  /// Whatever is done in whatever order: no page has two owners that both write it, none is lost.
  @Test(arguments: 0..<20) func pagesAreNeverLost(seed: UInt64) throws {
    var state = seed &* 0x9e37_79b9_7f4a_7c15 | 1
    func draw(_ limit: Int) -> Int {
      state ^= state << 13
      state ^= state >> 7
      state ^= state << 17
      return Int(state >> 33) % limit
    }
    var allocator = try PageAllocator(pages: 12, pageSize: 3)
    var sequences: [PageAllocator.Sequence] = []
    // What is in each page, and what each sequence should read.
    var memory = [[Int]](repeating: [0, 0, 0], count: 12)
    var expected: [PageAllocator.Sequence: [Int]] = [:]
    for step in 1...300 {
      switch draw(5) {
      case 0:
        let sequence = allocator.makeSequence()
        sequences.append(sequence)
        expected[sequence] = []
      case 1 where !sequences.isEmpty:
        let origin = sequences[draw(sequences.count)]
        let prefix = draw(expected[origin]!.count + 1)
        let fork = try allocator.fork(origin, prefix: prefix)
        sequences.append(fork)
        expected[fork] = Array(expected[origin]!.prefix(prefix))
      case 2 where !sequences.isEmpty:
        let sequence = sequences.remove(at: draw(sequences.count))
        try allocator.free(sequence)
        expected[sequence] = nil
      case _ where !sequences.isEmpty:
        // Several sequences in one call, which may have pages in common.
        var others = sequences
        let counts = (0..<min(1 + draw(3), sequences.count)).map { _ in
          (sequence: others.remove(at: draw(others.count)), keys: 1 + draw(5))
        }
        let free = allocator.freePages
        // One after the other, with as many pages as they like: what they take is what is needed, no more.
        var owners: [Int: Int] = [:]
        for sequence in sequences { for page in try allocator.pages(of: sequence) { owners[page, default: 0] += 1 } }
        var needed = 0
        for (sequence, count) in counts {
          let (pages, length) = (try allocator.pages(of: sequence), expected[sequence]!.count)
          for number in length / 3...(length + count - 1) / 3 {
            if number >= pages.count { needed += 1; continue }
            if owners[pages[number]]! == 1 { continue }
            owners[pages[number]]! -= 1
            needed += 1
          }
        }
        do throws(AttentionError) {
          for copy in try allocator.reserve(counts) {
            for i in 0..<copy.keys { memory[copy.target][i] = memory[copy.source][i] }
          }
          #expect(free - allocator.freePages == needed)
          for (sequence, count) in counts {
            let (pages, length) = (try allocator.pages(of: sequence), expected[sequence]!.count)
            for i in length..<length + count { memory[pages[i / 3]][i % 3] = step * 100 + i }
            try allocator.advance(sequence, by: count)
            expected[sequence]! += (length..<length + count).map { step * 100 + $0 }
          }
        } catch {
          #expect(allocator.freePages == free)
          // A refusal was due.
          if case .cacheFull(let asked, let left, _) = error {
            #expect(asked == needed && left == free && needed > free)
          } else {
            #expect("\(error)".hasPrefix("The sequence would have"))
          }
        }
      default: break
      }
      for sequence in sequences {
        let pages = try allocator.pages(of: sequence)
        #expect(expected[sequence]!.indices.map { memory[pages[$0 / 3]][$0 % 3] } == expected[sequence]!)
      }
      let used = Set(try sequences.flatMap { (sequence) throws in try allocator.pages(of: sequence) })
      #expect(used.count + allocator.freePages == 12)
    }
  }

  /// Parts of the keys, computed apart and put together, are attention over all of them.
  @Test(arguments: ScalarType.computed) func partialResults(type: ScalarType) throws {
    func tensor(_ subject: Int, _ length: Int) -> Tensor {
      try! Tensor(shape: TensorShape(batch: 2, heads: 2, length: length, dimension: 16), scalarType: .f32) {
        number(subject, $0, $1, $2, $3)
      }
    }
    let (q, k, v) = (tensor(1, 3), tensor(2, 40), tensor(3, 40))
    func part(_ keys: Range<Int>) throws -> AttentionResult {
      func cut(_ tensor: Tensor) -> Tensor {
        try! Tensor(shape: TensorShape(batch: 2, heads: 2, length: keys.count, dimension: 16), scalarType: .f32) {
          tensor[$0, $1, keys.lowerBound + $2, $3]
        }
      }
      return try attentionWithLogSumExp(queries: q, keys: cut(k), values: cut(v), device: .cpu)
    }
    let whole = try attentionWithLogSumExp(queries: q, keys: k, values: v, device: .cpu)
    let parts = [try part(0..<13), try part(13..<13), try part(13..<40)]
    let problem = try PartialResultsProblem(
      parts: 3, batch: 2, heads: 2, queries: 3, dimension: 16, outputType: type)
    var logSumExp = [Float](repeating: 0, count: problem.rows)
    // The part without keys holds NaN.
    let empty = try Tensor(shape: problem.shape, scalarType: .f32) { _, _, _, _ in .nan }
    let output = try Tensor(shape: problem.shape, scalarType: type) { (o) throws(AttentionError) in
      try parts[0].output.withView { (first) throws(AttentionError) in
        try empty.withView { (second) throws(AttentionError) in
          try parts[2].output.withView { (third) throws(AttentionError) in
            try logSumExp.withUnsafeMutableBufferPointer { (lse) throws(AttentionError) in
              try parts.flatMap(\.logSumExp).withUnsafeBufferPointer { (own) throws(AttentionError) in
                try PartialResults.combine(
                  problem, partials: [first, second, third], logSumExps: own, output: o, logSumExp: lse)
              }
            }
          }
        }
      }
    }
    for (own, right) in zip(output.floats, whole.output.floats) {
      #expect(abs(own - right) <= Float(type.ulp(of: Double(right))) + 1e-6)
    }
    for (own, right) in zip(logSumExp, whole.logSumExp) { #expect(abs(own - right) < 1e-5) }
  }
}
