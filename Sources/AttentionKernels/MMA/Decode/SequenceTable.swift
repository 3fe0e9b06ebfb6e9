internal import PTX

/// The lists of a call's sequences as parameters of a kernel; 0 where there is none.
struct SequenceLists {
  /// `[B]`, s32: the rows of each sequence's cache that hold keys; 0 where packed keys are as many as their starts say.
  let lengths: Register<U64>
  /// `[B]`, s32: the place of each sequence in the cache, and the row of its first key; 0 for the sequence's own
  /// number, and 0.
  let batchIndex, leftPadding: Register<U64>
  /// `[B + 1]`, s32: where each sequence's queries, keys and new keys begin, where they are packed; 0 otherwise.
  let queryStarts, keyStarts, newKeyStarts: Register<U64>
  /// `[B]`, s32: the queries of each sequence, where these are less than its starts say; 0 otherwise.
  let queryCounts: Register<U64>

  init<Launch>(_ list: ParameterList<Launch>) {
    lengths = list.pointer("lengths", .lengths)
    (batchIndex, leftPadding) = (list.pointer("batch_index", .batchIndex), list.pointer("left_padding", .leftPadding))
    (queryStarts, keyStarts) = (list.pointer("query_starts", .queryStarts), list.pointer("key_starts", .keyStarts))
    newKeyStarts = list.pointer("new_key_starts", .newKeyStarts)
    queryCounts = list.pointer("query_counts", .queryCounts)
  }
}

/// What the GPU's memory says of each sequence of a call: its keys and queries, and where they begin. The host knows
/// none of it, so that every number is held within the tensors here.
final class SequenceTable {
  private let k: KernelBuilder
  private let s: DecodeSpecialization
  private let p: DecodeParameters
  private var lists: SequenceLists { p.lists }

  init(_ k: KernelBuilder, _ s: DecodeSpecialization, _ parameters: DecodeParameters) {
    (self.k, self.s, p) = (k, s, parameters)
  }

  /// The bytes to a sequence's word of a list. Beyond the last sequence, the last one's is read, and not used.
  private func place(of sequence: Register<S32>) -> Register<U64> {
    k.multiplyWide(k.minimum(sequence, p.batch - 1).reinterpreted(as: U32.self), 4)
  }

  /// The rows of the cache that hold a sequence's keys, from the cache's start and without those that the call brings;
  /// where keys are packed, its keys.
  func rows(of sequence: Register<S32>) -> Register<S32> {
    if !s.hasLengths { return p.capacity }
    let place = place(of: sequence)
    guard s.paging == .packed else { return k.held(k.load(S32.self, global: lists.lengths + place), to: p.capacity) }
    let rows = k.variable(PackedRange(k, lists.keyStarts, at: place, total: p.keyRows).count)
    // No more than there are, whatever a caller says.
    k.if(lists.lengths .!= 0) { k.set(rows, to: k.held(k.load(S32.self, global: lists.lengths + place), to: rows)) }
    return rows
  }

  /// The keys that the call brings.
  func newKeys(of sequence: Register<S32>) -> Register<S32> {
    PackedRange(k, lists.newKeyStarts, at: place(of: sequence), total: p.newKeyRows, else: p.newKeys).count
  }

  /// The keys of a sequence, new ones included, without those before its beginning.
  func keys(of sequence: Register<S32>) -> Register<S32> {
    var rows = rows(of: sequence)
    if s.hasNewKeys { rows = rows + newKeys(of: sequence) }
    // What a caller says too much would lead out of the cache.
    rows = k.minimum(rows, p.capacity)
    if s.hasLeftPadding { rows = rows - firstRow(of: sequence) }
    return k.maximum(rows, k.constant(0, S32.self))
  }

  /// The queries of a sequence.
  func queries(of sequence: Register<S32>) -> Register<S32> {
    guard s.hasPackedQueries else { return p.queries.reinterpreted(as: S32.self) }
    let place = place(of: sequence)
    let count = k.variable(PackedRange(k, lists.queryStarts, at: place, total: p.queryRows).count)
    k.if(lists.queryCounts .!= 0) {
      k.set(count, to: k.minimum(count, k.load(S32.self, global: lists.queryCounts + place)))
    }
    return k.held(count, to: p.queries.reinterpreted(as: S32.self))
  }

  /// The row of a sequence's first query, and of its first key, where they are packed.
  func firstQuery(of sequence: Register<S32>) -> Register<U32>? {
    s.hasPackedQueries ? PackedRange(k, lists.queryStarts, at: place(of: sequence), total: p.queryRows).first : nil
  }
  func firstKey(of sequence: Register<S32>) -> Register<U32>? {
    s.paging == .packed ? PackedRange(k, lists.keyStarts, at: place(of: sequence), total: p.keyRows).first : nil
  }

  /// The row of a sequence's first key in its cache.
  func firstRow(of sequence: Register<S32>) -> Register<S32> {
    let zero = k.constant(0, S32.self)
    return s.hasLeftPadding ? k.maximum(k.load(S32.self, global: lists.leftPadding + place(of: sequence)), zero) : zero
  }

  /// The sequence of the cache; where that is beyond its last, there are no rows.
  func cachePlace(of sequence: Register<S32>) -> Register<U32> {
    if !s.hasLengths { return sequence.reinterpreted(as: U32.self) }
    return k.word(of: lists.batchIndex, at: place(of: sequence), else: sequence.reinterpreted(as: U32.self))
  }

  /// The page table of a sequence.
  func pages(of sequence: Register<S32>) -> Register<U64> {
    p.pageTable + k.wide(sequence.reinterpreted(as: U32.self)) * p.pageTableStride
  }
}
