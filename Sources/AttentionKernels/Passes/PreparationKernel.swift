internal import Attention
package import PTX

/// The launch before a decode kernel, where a call brings keys or its queries are not yet what the products take.
///
///     a thread takes 8 elements of a row at a time:
///       new rows of K, turned by their positions, into the cache;  new rows of V, into the cache
///       rows of Q, turned and widened, into the workspace
///
/// Each new byte is read once and written once. What would lie beyond the cache's capacity, in a sequence that it does
/// not have or on a page that it does not have, is not written.
package struct PreparationKernel: KernelSource {
  /// Threads of a block.
  package static let threads = 128
  /// What the kernel is made for.
  package let specialization: Specialization

  /// What the text is made from.
  package struct Specialization: Hashable, Sendable {
    /// The type of new keys, and of queries as they are multiplied.
    let inputs: Matrix.Inputs
    let dimension, valueDimension: Int
    /// Whether keys and values are appended.
    let appends: Bool
    /// Whether the queries are moved: turned, or made 16 bits of 8.
    let movesQueries: Bool
    let cacheIsE4M3, queriesAreE4M3: Bool
    /// Elements that are turned, 0 for none; and whether neighbours are pairs.
    let rotaryDimension: Int
    let isInterleaved: Bool
    let isPaged, hasPackedQueries: Bool
    /// Whether queries have positions of their own.
    let queriesAdvance: Bool
    /// Whether the decode kernel may begin meanwhile; from sm_90 on.
    let isOvertaken: Bool

    /// What a problem needs; nil where nothing must be done before.
    init?(_ problem: AttentionProblem, inputs: Matrix.Inputs, isOvertaken: Bool) {
      self.isOvertaken = isOvertaken
      let rotary = problem.newKeys?.rotary
      self.inputs = inputs
      (dimension, valueDimension) = (problem.dimension, problem.valueDimension)
      appends = problem.newKeys != nil
      movesQueries = (rotary != nil || problem.queryType == .e4m3) && problem.queries > 0
      (cacheIsE4M3, queriesAreE4M3) = (problem.cacheType == .e4m3, problem.queryType == .e4m3)
      (rotaryDimension, isInterleaved) = (rotary?.dimension ?? 0, rotary?.isInterleaved ?? false)
      isPaged = problem.pages != nil
      hasPackedQueries = problem.packedQueries != nil
      queriesAdvance = problem.mask.isLimited
      if !appends && !movesQueries { return nil }
    }

    var name: String {
      var name = "prepare_\(inputs.rawValue)_d\(dimension)"
      if valueDimension != dimension { name += "_v\(valueDimension)" }
      if appends { name += isPaged ? "_append_pages" : "_append" }
      if cacheIsE4M3 { name += "_e4m3" }
      if movesQueries { name += queriesAreE4M3 ? "_queries8" : "_queries" }
      if hasPackedQueries { name += "_packed" }
      if rotaryDimension > 0 { name += "_\(isInterleaved ? "pairs" : "halves")\(rotaryDimension)" }
      return name + (queriesAdvance ? "_positions" : "") + (isOvertaken ? "_first" : "")
    }
  }

  /// The kernel of a specialization.
  package init(_ specialization: Specialization) { self.specialization = specialization }

  /// The entry point's name.
  package var name: String { specialization.name }

  /// Blocks for the longest sequences that there can be: enough to keep loads under way, no more than is useful.
  static func blocks(_ problem: AttentionProblem) -> Int {
    let perRow = (problem.dimension + problem.valueDimension) / 8 * problem.keyValueHeads
    let chunks = (problem.newKeys?.count ?? 0) * perRow + problem.queries * problem.queryHeads * problem.dimension / 8
    return problem.batch * min(max((chunks + threads - 1) / threads, 1), 64)
  }

  /// The kernel, with the parameters of `PreparationParameters` behind those of the decode kernel's table of sequences.
  package func kernel() throws(KernelError) -> Kernel {
    try Kernel.build(name, threadsPerBlock: Self.threads) { k in PreparationBody(k, specialization).emit() }
  }
}

/// The parameters of a preparation kernel.
final class PreparationParameters {
  let queryBase, preparedBase, keyBase, valueBase, newKeyBase, newValueBase: Register<U64>
  let queryStrides, preparedStrides, keyStrides, valueStrides, newKeyStrides, newValueStrides: StrideParameters
  /// As in `DecodeParameters`.
  let lengths, batchIndex, pageTable, pageTableStride, queryStarts, newKeyStarts: Register<U64>
  let keyScales, valueScales: Register<U64>
  /// Tables of the embedding, `[positions, dimension / 2]`, and positions to count from, 0 for the lengths.
  let cosines, sines, positions: Register<U64>
  let queries, newKeys, capacity, positionCount: Register<S32>
  let queryHeads, keyValueHeads, pageSize, blocksPerSequence: Register<U32>
  /// As in `DecodeParameters`.
  let queryRows, newKeyRows, cachePlaces: Register<U32>

  static let all = ParameterList<DecodeLaunch>.declared { _ = PreparationParameters($0) }

  init(_ list: ParameterList<DecodeLaunch>) {
    queryBase = list.pointer("queries", .queries)
    preparedBase = list.pointer("prepared_queries") { $0.preparedQueries }
    (keyBase, valueBase) = (list.pointer("keys", .keys), list.pointer("values", .values))
    (newKeyBase, newValueBase) = (list.pointer("new_keys", .newKeys), list.pointer("new_values", .newValues))
    queryStrides = list.strides("query") {
      TensorSteps(.queries, $0.problem.queryType, isPacked: $0.problem.packedQueries != nil)
    }
    preparedStrides = list.strides("prepared") { $0.preparedQuerySteps }
    keyStrides = list.strides("key") { TensorSteps(.keys, $0.problem.cacheType) }
    valueStrides = list.strides("value") { TensorSteps(.values, $0.problem.cacheType) }
    newKeyStrides = list.strides("new_key") {
      TensorSteps(.newKeys, $0.problem.scalarType, isPacked: $0.problem.newKeys?.packedTotal != nil)
    }
    newValueStrides = list.strides("new_value") {
      TensorSteps(.newValues, $0.problem.scalarType, isPacked: $0.problem.newKeys?.packedTotal != nil)
    }
    (lengths, batchIndex) = (list.pointer("lengths", .lengths), list.pointer("batch_index", .batchIndex))
    pageTable = list.pointer("page_table", .pageTable)
    pageTableStride = list.number("page_table_stride", U64.self) { ($0.problem.pages?.perSequence ?? 0) * 4 }
    queryStarts = list.pointer("query_starts", .queryStarts)
    newKeyStarts = list.pointer("new_key_starts", .newKeyStarts)
    (keyScales, valueScales) = (list.pointer("key_scales", .keyScales), list.pointer("value_scales", .valueScales))
    (cosines, sines) = (list.pointer("cosines", .cosines), list.pointer("sines", .sines))
    positions = list.pointer("positions", .positions)
    queries = list.number("query_count", S32.self) { $0.problem.queries }
    newKeys = list.number("new_key_count", S32.self) { $0.newKeysOfEach }
    capacity = list.number("capacity", S32.self) { $0.problem.keys }
    positionCount = list.number("position_count", S32.self) { $0.problem.newKeys?.rotary?.positions ?? 0 }
    queryHeads = list.number("query_heads", U32.self) { $0.problem.queryHeads }
    keyValueHeads = list.number("key_value_heads", U32.self) { $0.problem.keyValueHeads }
    pageSize = list.number("page_size", U32.self) { $0.problem.pages?.size ?? 1 }
    blocksPerSequence = list.number("blocks_per_sequence", U32.self) { $0.preparationBlocksPerSequence }
    queryRows = list.number("query_rows", U32.self) { $0.problem.packedQueries ?? 0 }
    newKeyRows = list.number("new_key_rows", U32.self) { $0.problem.newKeys?.packedTotal ?? 0 }
    cachePlaces = list.number("cache_places", U32.self) { $0.problem.keyShape.batch }
  }
}

/// The kernel while it is emitted.
private final class PreparationBody {
  let k: KernelBuilder
  let s: PreparationKernel.Specialization
  let p: PreparationParameters
  /// The block's sequence, its first thread's number among those of the sequence, and how many these are.
  let sequence, first, step: Register<U32>

  init(_ k: KernelBuilder, _ s: PreparationKernel.Specialization) {
    (self.k, self.s, p) = (k, s, PreparationParameters(ParameterList(k)))
    let block = k.special(.blockX)
    sequence = (block / p.blocksPerSequence).named("sequence")
    first = (block % p.blocksPerSequence) * PreparationKernel.threads + k.special(.threadX)
    step = p.blocksPerSequence * PreparationKernel.threads
  }

  /// The word of a list for the sequence.
  private func word(_ list: Register<U64>) -> Register<S32> {
    k.load(S32.self, global: list + k.multiplyWide(sequence, 4))
  }

  /// How many rows the sequence has, and the first of them where they are packed.
  private func extent(_ starts: Register<U64>, else count: Register<S32>, total: Register<U32>) -> PackedRange {
    PackedRange(k, starts, at: k.multiplyWide(sequence, 4), total: total, else: count)
  }

  func emit() {
    // What follows may come and compute its shares; it waits before it reads what is written here.
    if s.isOvertaken { k.launchDependents() }
    let zero = k.constant(0, S32.self)
    let base = s.appends ? k.held(word(p.lengths), to: p.capacity) : zero
    let position = k.variable(base)
    if s.rotaryDimension > 0 { k.if(p.positions .!= 0) { k.set(position, to: word(p.positions)) } }
    if s.movesQueries {
      k.comment("queries, as they are multiplied")
      let rows = extent(p.queryStarts, else: p.queries, total: p.queryRows)
      forEachChunk(k.minimum(rows.count, p.queries), heads: p.queryHeads, columns: s.dimension) { row, head, chunk in
        let from = self.row(p.queryBase, p.queryStrides, rows.first + row, head)
        let angle = s.queriesAdvance ? position + row.reinterpreted(as: S32.self) : position
        let values = turned(from, chunk, isE4M3: s.queriesAreE4M3, position: angle)
        let to = self.row(p.preparedBase, p.preparedStrides, rows.first + row, head) + k.wide(chunk * 16)
        k.store(packed(values), global: to)
      }
    }
    if !s.appends { return }
    let new = extent(p.newKeyStarts, else: p.newKeys, total: p.newKeyRows)
    let place = k.word(of: p.batchIndex, at: k.multiplyWide(sequence, 4), else: sequence)
    let room = s.isPaged ? p.capacity - base : k.select(place .< p.cachePlaces, p.capacity - base, zero)
    let count = k.minimum(new.count, room)
    for isKey in [true, false] {
      k.comment(isKey ? "new keys" : "new values")
      let columns = isKey ? s.dimension : s.valueDimension
      let (source, sourceStrides) = isKey ? (p.newKeyBase, p.newKeyStrides) : (p.newValueBase, p.newValueStrides)
      let (target, strides) = isKey ? (p.keyBase, p.keyStrides) : (p.valueBase, p.valueStrides)
      forEachChunk(count, heads: p.keyValueHeads, columns: columns) { row, head, chunk in
        let from = self.row(source, sourceStrides, new.first + row, head)
        let number = base + row.reinterpreted(as: S32.self)
        let to = cacheRow(target, strides, number.reinterpreted(as: U32.self), head, place)
        func write(_ words: [Register<U32>]) {
          let address = to.row + k.wide(chunk * (words.count * 4))
          if let isThere = to.isThere {
            k.when(isThere) { k.store(words, global: address) }
          } else {
            k.store(words, global: address)
          }
        }
        let angle = position + row.reinterpreted(as: S32.self)
        guard s.cacheIsE4M3 else {
          let isCopied = !isKey || s.rotaryDimension == 0
          return write(
            isCopied
              ? k.load(U32.self, count: 4, global: from + k.wide(chunk * 16))
              : packed(turned(from, chunk, isE4M3: false, position: angle)))
        }
        let values =
          isKey
          ? turned(from, chunk, isE4M3: false, position: angle) : elements(from + k.wide(chunk * 16), isE4M3: false)
        let factor = k.reciprocal(scale(isKey ? p.keyScales : p.valueScales, head))
        write(
          (0..<2).map { half in
            let pairs = (0..<2).map {
              k.packE4M3(values[4 * half + 2 * $0] * factor, values[4 * half + 2 * $0 + 1] * factor)
            }
            return k.word(low: pairs[0], high: pairs[1])
          })
      }
    }
  }

  /// Shares out chunks of 8 elements of all rows and heads over the sequence's threads.
  private func forEachChunk(
    _ rows: Register<S32>, heads: Register<U32>, columns: Int,
    _ body: (_ row: Register<U32>, _ head: Register<U32>, _ chunk: Register<U32>) -> Void
  ) {
    let chunks = columns / 8
    let item = k.variable(first)
    let count = rows.reinterpreted(as: U32.self) * heads * chunks
    k.if(item .< count) {
      k.loop {
        let line = item / chunks
        let row = line / heads
        body(row, line - row * heads, item - line * chunks)
        k.set(item, to: item + step)
        return item .< count
      }
    }
  }

  /// A row of a tensor of the call.
  private func row(
    _ base: Register<U64>, _ strides: StrideParameters, _ row: Register<U32>, _ head: Register<U32>
  ) -> Register<U64> {
    base + k.wide(sequence) * strides.batch + k.wide(row) * strides.row + k.wide(head) * strides.head
  }

  /// A row of the sequence's cache, and whether the cache has its page; nil without pages.
  private func cacheRow(
    _ base: Register<U64>, _ strides: StrideParameters, _ row: Register<U32>, _ head: Register<U32>,
    _ place: Register<U32>
  ) -> (row: Register<U64>, isThere: Predicate?) {
    let ofHead = base + k.wide(head) * strides.head
    if !s.isPaged { return (ofHead + k.wide(place) * strides.batch + k.wide(row) * strides.row, nil) }
    let number = row / p.pageSize
    let pages = p.pageTable + k.wide(sequence) * p.pageTableStride
    let page = k.load(U32.self, global: pages + k.multiplyWide(number, 4))
    let within = row - number * p.pageSize
    return (ofHead + k.wide(page) * strides.batch + k.wide(within) * strides.row, page .< p.cachePlaces)
  }

  /// The scale of the sequence's keys or values, 1 where there are none.
  private func scale(_ scales: Register<U64>, _ head: Register<U32>) -> Register<F32> {
    let result = k.variable(k.constant(1))
    k.if(scales .!= 0) {
      k.set(result, to: k.load(F32.self, global: scales + k.multiplyWide(sequence * p.keyValueHeads + head, 4)))
    }
    return result
  }

  /// 8 elements as floats.
  private func elements(_ address: Register<U64>, isE4M3: Bool) -> [Register<F32>] {
    if isE4M3 {
      let operands = E4M3Operands(inputs: s.inputs, hasConversion: false)
      return k.load(U32.self, count: 2, global: address)
        .flatMap { word in
          let pair = operands.unpack(k, word)
          return unpacked(pair.low) + unpacked(pair.high)
        }
    }
    return k.load(U32.self, count: 4, global: address).flatMap { unpacked($0) }
  }

  private func unpacked(_ word: Register<U32>) -> [Register<F32>] {
    let pair = s.inputs.unpack(k, word)
    return [pair.low, pair.high]
  }

  private func packed(_ values: [Register<F32>]) -> [Register<U32>] {
    stride(from: 0, to: values.count, by: 2).map { s.inputs.pack(k, values[$0], values[$0 + 1]) }
  }

  /// 8 elements of a row, turned where they belong to those that are.
  private func turned(
    _ row: Register<U64>, _ chunk: Register<U32>, isE4M3: Bool, position: Register<S32>
  ) -> [Register<F32>] {
    let chunkBytes = isE4M3 ? 8 : 16
    let own = elements(row + k.wide(chunk * chunkBytes), isE4M3: isE4M3)
    if s.rotaryDimension == 0 { return own }
    let results = own.map { k.variable($0) }
    k.if(chunk .< s.rotaryDimension / 8) {
      let line = k.maximum(k.minimum(position, p.positionCount - 1), k.constant(0, S32.self))
      // What has no row in the tables is not a number, which shows.
      let scale = k.select(line .== position, k.constant(1), .nan)
      // A row of the tables: half as many 16-bit numbers as elements are turned.
      let table = k.multiplyWide(line.reinterpreted(as: U32.self), s.rotaryDimension)
      let half = s.rotaryDimension / 16
      if s.isInterleaved {
        let place = table + k.wide(chunk * 8)
        let angles = [p.cosines, p.sines].map { base in
          k.load(U32.self, count: 2, global: base + place).flatMap { unpacked($0) }.map { $0 * scale }
        }
        for i in 0..<4 {
          let (x, y, cosine, sine) = (own[2 * i], own[2 * i + 1], angles[0][i], angles[1][i])
          k.set(results[2 * i], to: x * cosine - y * sine)
          k.set(results[2 * i + 1], to: x * sine + y * cosine)
        }
      } else {
        let isFirst = chunk .< half
        let other = k.select(isFirst, chunk + half, chunk - half)
        let place = table + k.wide(k.select(isFirst, chunk, other) * 16)
        let angles = [p.cosines, p.sines].map { base in
          k.load(U32.self, count: 4, global: base + place).flatMap { unpacked($0) }.map { $0 * scale }
        }
        let partners = elements(row + k.wide(other * chunkBytes), isE4M3: isE4M3)
        for i in 0..<8 {
          let sine = k.select(isFirst, -angles[1][i], angles[1][i])
          k.set(results[i], to: own[i] * angles[0][i] + partners[i] * sine)
        }
      }
    }
    return results
  }
}
