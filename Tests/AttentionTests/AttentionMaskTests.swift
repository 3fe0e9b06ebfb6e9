import Attention
import Testing

@Suite struct AttentionMaskTests {
  /// The contract, key by key: query i stands at key i + N_k - N_q.
  @Test(arguments: [(1, 1), (5, 5), (3, 8), (8, 3), (4, 0), (0, 4)])
  func visibleKeysAreThoseOfTheContract(queries: Int, keys: Int) {
    let sides: [Int?] = [nil, 0, 1, 3, 100, Int.max]
    for query in 0..<queries {
      let diagonal = query + keys - queries
      func check(_ mask: AttentionMask, _ sees: (Int) -> Bool) {
        let visible = mask.visibleKeys(ofQuery: query, queries: queries, keys: keys)
        #expect(Array(visible) == (0..<keys).filter(sees), "\(mask), query \(query) of \(queries), \(keys) keys")
      }
      check(.none) { _ in true }
      check(.causal) { $0 <= diagonal }
      for left in sides {
        for right in sides {
          check(.window(left: left, right: right)) { key in
            (left.map { diagonal - key <= $0 } ?? true) && (right.map { key - diagonal <= $0 } ?? true)
          }
          for size in [1, 2, 3, 5, 100, Int.max] {
            // Walking, not dividing: the chunk of a key is how many chunks end before it.
            func chunk(_ place: Int) -> Int { size > keys ? 0 : (0..<place).filter { ($0 + 1) % size == 0 }.count }
            check(.chunks(of: size, left: left, right: right)) { key in
              diagonal >= 0 && chunk(key) == chunk(diagonal) && (left.map { diagonal - key <= $0 } ?? true)
                && (right.map { key - diagonal <= $0 } ?? true)
            }
          }
        }
      }
    }
  }

  /// The other way round: which queries see a key.
  @Test(arguments: [(1, 1), (5, 5), (3, 8), (8, 3), (4, 0), (0, 4)])
  func seeingQueriesAreThoseThatSee(queries: Int, keys: Int) {
    let sides: [Int?] = [nil, 0, 1, 3, 100, Int.max]
    for left in sides {
      for right in sides {
        for chunk in [nil, 1, 2, 3, 5, 100, Int.max] as [Int?] {
          let mask =
            chunk.map { AttentionMask.chunks(of: $0, left: left, right: right) } ?? .window(left: left, right: right)
          for key in 0..<keys {
            let seeing = mask.seeingQueries(ofKey: key, queries: queries, keys: keys)
            let expected = (0..<queries).filter {
              mask.visibleKeys(ofQuery: $0, queries: queries, keys: keys).contains(key)
            }
            #expect(Array(seeing) == expected, "\(mask), key \(key) of \(keys), \(queries) queries")
          }
        }
      }
    }
  }

  @Test func causalNarrowsAWindow() {
    #expect(AttentionMask.none.andCausal == .causal)
    #expect(AttentionMask.window(left: 7, right: nil).andCausal == .window(left: 7, right: 0))
    #expect(AttentionMask.chunks(of: 4, left: 2, right: 3).andCausal == .chunks(of: 4, left: 2, right: 0))
    #expect(AttentionMask.window(left: nil, right: 5).andCausal == .window(left: nil, right: 0))
  }
}
