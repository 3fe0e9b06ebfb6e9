internal import Attention
internal import PTX

/// A sequence whose length is its own: what the GPU's memory says of it, held within the tensors.
struct ForwardSequence {
  let queries: Register<U32>
  /// N_k, and how many of these rows there are: none in a sequence that is not in the cache, so that zeros stand for
  /// them.
  let keys, presentKeys: Register<S32>
  /// The rows of its first query and key, and its place in a cache of keys.
  let firstQuery, firstKey, keyBatch: Register<U32>

  /// - Parameters:
  ///   - queries: the most that a sequence has.
  ///   - keys: the most that a sequence has.
  init(
    _ k: KernelBuilder, _ lists: Lists, queries limit: Register<U32>, keys keyLimit: Register<S32>,
    batch: Register<U32>
  ) {
    let place = k.multiplyWide(batch, 4)
    (queries, firstQuery) = lists.queries(k, at: place, limit: limit)
    (keys, firstKey) = lists.extent(
      k, lists.keyStarts, lists.keyCounts, at: place, total: lists.keyRows, limit: keyLimit)
    let index = k.word(of: lists.batchIndex, at: place, else: batch)
    keyBatch = index
    presentKeys = k.select(index .< lists.keySequences, keys, k.constant(0, S32.self))
  }

  /// The key on which its first query stands.
  var diagonal: Register<S32> { keys - queries.reinterpreted(as: S32.self) }

  /// The lists as parameters of a kernel; 0 where the launch's own numbers hold.
  struct Lists {
    /// `[B + 1]` s32: where queries and keys begin.
    let queryStarts, keyStarts: Register<U64>
    /// `[B]` s32: how many there are, and which sequence of the keys.
    let queryCounts, keyCounts, batchIndex: Register<U64>
    /// Rows that there are where queries and keys are packed; sequences of the keys.
    let queryRows, keyRows, keySequences: Register<U32>

    init<Launch>(_ list: ParameterList<Launch>, _ problem: @escaping @Sendable (Launch) -> AttentionProblem) {
      (queryStarts, keyStarts) = (list.pointer("query_starts", .queryStarts), list.pointer("key_starts", .keyStarts))
      (queryCounts, keyCounts) = (list.pointer("query_counts", .queryCounts), list.pointer("key_counts", .lengths))
      batchIndex = list.pointer("batch_index", .batchIndex)
      queryRows = list.number("query_rows", U32.self) { problem($0).packedQueries ?? 0 }
      keyRows = list.number("key_rows", U32.self) {
        problem($0).hasPackedKeys ? problem($0).keyShape.length : 0
      }
      keySequences = list.number("key_sequences", U32.self) {
        if case .contiguous(let sequences, _) = problem($0).storage { sequences } else { problem($0).batch }
      }
    }

    /// How many queries a sequence has, and the row of its first.
    ///
    /// - Parameter place: the bytes to the sequence's word of a list.
    func queries(
      _ k: KernelBuilder, at place: Register<U64>, limit: Register<U32>
    ) -> (count: Register<U32>, first: Register<U32>) {
      let (count, first) = extent(
        k, queryStarts, queryCounts, at: place, total: queryRows, limit: limit.reinterpreted(as: S32.self))
      return (count.reinterpreted(as: U32.self), first)
    }

    /// How many rows a sequence has, and the first of them.
    fileprivate func extent(
      _ k: KernelBuilder, _ starts: Register<U64>, _ counts: Register<U64>, at place: Register<U64>,
      total: Register<U32>, limit: Register<S32>
    ) -> (Register<S32>, Register<U32>) {
      let range = PackedRange(k, starts, at: place, total: total, else: limit)
      let count = range.count
      k.if(counts .!= 0) { k.set(count, to: k.minimum(count, k.load(S32.self, global: counts + place))) }
      // What a caller says too much would lead out of the tensors.
      return (k.held(count, to: limit), range.first)
    }
  }
}
