internal import Attention
internal import PTX

/// Where the copy engine finds K and V of a sequence's head, tile by tile: in boxes of neighbouring rows, one a tile, or on
/// pages as many as it takes. Zeros come for values behind a sequence's last key, which count, if only with weights of 0;
/// scores of such keys are hidden, whatever they are.
struct KeyBoxes {
  /// How the keys of a problem are cut into boxes: what the text of a kernel has of it.
  struct Cut: Hashable, Sendable {
    /// Rows of a tile, and of a box.
    let tileKeys, rows: Int
    /// Whether sequences have lengths of their own.
    let hasSequences: Bool
    /// Keys on a page; nil without.
    let pageSize: Int?

    init(_ problem: AttentionProblem, tileKeys: Int) {
      self.tileKeys = tileKeys
      (hasSequences, pageSize) = (!problem.hasWholeKeys, problem.pages?.size)
      rows = pageSize.map { greatestCommonDivisor($0, tileKeys) } ?? tileKeys
    }

    /// What stands against it, as the end of a sentence about a tiling.
    var obstacle: String? {
      rows % 8 == 0
        ? nil
        : "takes keys in boxes of \(rows), which is what its tiles of \(tileKeys) keys have in common with a page; boxes have a "
          + "multiple of 8"
    }

    /// Marks in a kernel's name.
    var name: String { pageSize.map { "_pages\($0)" } ?? (hasSequences ? "_sequences" : "") }

    /// The box of K or V that a map is made for.
    func box(_ problem: AttentionProblem, isKey: Bool) -> TensorBox {
      TensorBox(
        problem.cacheType, isKey ? problem.keyShape : problem.valueShape, rows: rows,
        isRagged: !isKey && hasSequences)
    }
  }

  /// Where sequences have lengths of their own: what of them is where.
  struct Parameters {
    /// Batches of the keys from a sequence to the next: 0 where they are packed.
    let batchStep: Register<U32>
    /// Rows of V from a sequence, or a page, to the next.
    let valueRowsOfBatch: Register<U32>
    /// `[B, pages]`, s32, and the bytes from a sequence to the next; how many pages there are.
    let pageTable, pageTableStride: Register<U64>
    let pages: Register<U32>

    /// Of a kernel that has the table and the number of pages, or sequences, already.
    init<Launch>(
      _ list: ParameterList<Launch>, pageTable: Register<U64>, pageTableStride: Register<U64>, pages: Register<U32>,
      _ problem: @escaping @Sendable (Launch) -> AttentionProblem
    ) {
      batchStep = list.number("key_batch_step", U32.self) { problem($0).hasPackedKeys ? 0 : 1 }
      valueRowsOfBatch = list.number("value_rows_of_batch", U32.self, .values) { problem($0).valueShape }
      (self.pageTable, self.pageTableStride, self.pages) = (pageTable, pageTableStride, pages)
    }

    init<Launch>(_ list: ParameterList<Launch>, _ problem: @escaping @Sendable (Launch) -> AttentionProblem) {
      self.init(
        list, pageTable: list.pointer("page_table", .pageTable),
        pageTableStride: list.number("page_table_stride", U64.self) { (problem($0).pages?.perSequence ?? 0) * 4 },
        pages: list.number("pages", U32.self) { problem($0).keyShape.batch }, problem)
    }
  }

  /// A sequence in the memory of keys.
  struct Sequence {
    /// Its number in the call, and its place among the sequences of a cache.
    let number, place: Register<U32>
    /// Where its first key is, and how many there are.
    let firstKey: Register<U32>
    let keys: Register<S32>
  }

  private let k: KernelBuilder
  private let cut: Cut
  private let p: Parameters
  private let head: Register<S32>
  private let sequence: Sequence?
  private let batch: Register<S32>

  /// - Parameters:
  ///   - head: the key/value head.
  ///   - batch: where all sequences are as long.
  ///   - sequence: where they are not.
  init(
    _ k: KernelBuilder, _ cut: Cut, _ parameters: Parameters, head: Register<U32>, batch: Register<U32>,
    sequence: Sequence?
  ) {
    (self.k, self.cut, p, self.sequence) = (k, cut, parameters, sequence)
    (self.head, self.batch) = (head.reinterpreted(as: S32.self), batch.reinterpreted(as: S32.self))
  }

  /// A tile's boxes: the row of the first, and, of those on pages, the page of each.
  struct Tile {
    fileprivate let start: Register<S32>
    fileprivate let pages: [Register<U32>]
    /// How many there are.
    let count: Int
  }

  private func signed(_ number: Register<U32>) -> Register<S32> { number.reinterpreted(as: S32.self) }

  /// The boxes of the tile that begins at a key.
  func tile(at start: Register<S32>) -> Tile {
    guard let pageSize = cut.pageSize, let sequence else { return Tile(start: start, pages: [], count: 1) }
    let table = p.pageTable + k.wide(sequence.number) * p.pageTableStride
    let count = cut.tileKeys / cut.rows
    // Behind the last key there need be no page: its own is looked up again.
    let last = k.maximum(sequence.keys - 1, k.constant(0, S32.self))
    return Tile(
      start: start,
      pages: (0..<count).map {
        let row = k.minimum(start + $0 * cut.rows, last).reinterpreted(as: U32.self)
        return k.load(U32.self, global: table + k.multiplyWide(row / pageSize, 4))
      }, count: count)
  }

  /// The first row of a box on its page.
  private func rowOfPage(_ number: Int, of tile: Tile, _ pageSize: Int) -> Register<U32> {
    cut.rows == pageSize
      ? k.constant(0, U32.self) : (tile.start + number * cut.rows).reinterpreted(as: U32.self) % pageSize
  }

  /// The coordinates of a box of K, behind that of the column.
  func keys(_ number: Int, of tile: Tile) -> [Register<S32>] {
    guard let sequence else { return [head, tile.start, batch] }
    guard let pageSize = cut.pageSize else {
      return [head, tile.start + signed(sequence.firstKey), signed(sequence.place * p.batchStep)]
    }
    // Where there are no pages at all, the map has one.
    let page = k.select(tile.pages[number] .< p.pages, signed(tile.pages[number]), k.constant(-1, S32.self))
    return [head, signed(rowOfPage(number, of: tile, pageSize)), page]
  }

  /// The coordinates of a box of V, behind that of the column.
  func values(_ number: Int, of tile: Tile) -> [Register<S32>] {
    guard let sequence else { return [head, tile.start, batch] }
    guard let pageSize = cut.pageSize else {
      return [head]
        + RaggedRows(k, first: sequence.firstKey + sequence.place * p.valueRowsOfBatch, count: sequence.keys)
        .coordinates(tile.start)
    }
    let (page, zero) = (tile.pages[number], k.constant(0, S32.self))
    let present = k.held(sequence.keys - (tile.start + number * cut.rows), to: k.constant(cut.rows, S32.self))
    let first = page * p.valueRowsOfBatch + rowOfPage(number, of: tile, pageSize)
    return [head] + RaggedRows(k, first: first, count: k.select(page .< p.pages, present, zero)).coordinates(zero)
  }
}

private func greatestCommonDivisor(_ a: Int, _ b: Int) -> Int { b == 0 ? a : greatestCommonDivisor(b, a % b) }
