internal import Attention
internal import PTX

/// The sequence of a block, where sequences have lengths of their own: what the GPU's memory says of it.
struct ForwardSequence {
  let queries: Register<U32>
  /// N_k, and how many of these rows there are: none in a sequence that is not in the cache, so that zeros stand for
  /// them.
  let keys, presentKeys: Register<S32>
  /// The rows of its first query and key, and its place in a cache of keys.
  let firstQuery, firstKey, keyBatch: Register<U32>
  /// Which keys its queries see.
  let visibleKeys: VisibleKeys<EmittedNumber>

  init(_ k: KernelBuilder, _ edges: MaskEdges, _ p: ForwardParameters, batch: Register<U32>) {
    let (lists, place) = (p.lists, k.multiplyWide(batch, 4))
    /// How many rows the sequence has, and the first of them.
    func extent(
      _ starts: Register<U64>, _ counts: Register<U64>, total: Register<U32>, limit: Register<S32>
    ) -> (Register<S32>, Register<U32>) {
      let range = PackedRange(k, starts, at: place, total: total, else: limit)
      let count = range.count
      k.if(counts .!= 0) { k.set(count, to: k.minimum(count, k.load(S32.self, global: counts + place))) }
      // What a caller says too much would lead out of the tensors.
      return (k.held(count, to: limit), range.first)
    }
    let ofQueries = extent(
      lists.queryStarts, lists.queryCounts, total: lists.queryRows, limit: p.queries.reinterpreted(as: S32.self))
    let ofKeys = extent(lists.keyStarts, lists.keyCounts, total: lists.keyRows, limit: p.keys)
    (queries, firstQuery) = (ofQueries.0.reinterpreted(as: U32.self), ofQueries.1)
    (keys, firstKey) = ofKeys
    let index = k.word(of: lists.batchIndex, at: place, else: batch)
    keyBatch = index
    presentKeys = k.select(index .< lists.keySequences, keys, k.constant(0, S32.self))
    let diagonal = ofKeys.0 - ofQueries.0
    visibleKeys = VisibleKeys(
      k, edges, keys: keys, left: diagonal + p.leftOffset, right: diagonal + p.rightOffset, diagonal: diagonal,
      chunk: p.chunk)
  }
}
