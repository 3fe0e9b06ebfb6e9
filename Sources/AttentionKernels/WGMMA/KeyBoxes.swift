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
    /// Whether sequences have lengths of their own, and whether their keys are on pages.
    let hasSequences, isPaged: Bool

    init(_ problem: AttentionProblem, tileKeys: Int) {
      self.tileKeys = tileKeys
      (hasSequences, isPaged) = (!problem.hasWholeKeys, problem.pages != nil)
      rows = problem.pages.map { greatestCommonDivisor($0.size, tileKeys) } ?? tileKeys
    }

    /// What stands against it, as the end of a sentence about a tiling.
    var obstacle: String? {
      rows % 8 == 0
        ? nil
        : "takes keys in boxes of \(rows), which is what its tiles of \(tileKeys) keys have in common with a page; boxes have a "
          + "multiple of 8"
    }

    /// Marks in a kernel's name.
    var name: String { isPaged ? "_pages\(rows)" : hasSequences ? "_sequences" : "" }

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
    /// `[B, pages]`, s32, and the bytes from a sequence to the next; keys on a page, and pages.
    let pageTable, pageTableStride: Register<U64>
    let pageSize, pages: Register<U32>

    init<Launch>(_ list: ParameterList<Launch>, _ problem: @escaping @Sendable (Launch) -> AttentionProblem) {
      batchStep = list.number("key_batch_step", U32.self) { problem($0).hasPackedKeys ? 0 : 1 }
      valueRowsOfBatch = list.number("value_rows_of_batch", U32.self, .values) { problem($0).valueShape }
      pageTable = list.pointer("page_table", .pageTable)
      pageTableStride = list.number("page_table_stride", U64.self) { (problem($0).pages?.perSequence ?? 0) * 4 }
      pageSize = list.number("page_size", U32.self) { problem($0).pages?.size ?? 1 }
      pages = list.number("pages", U32.self) { problem($0).keyShape.batch }
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

  /// The coordinates of the boxes of the tile that begins at a key, behind that of the column.
  func boxes(ofTileAt start: Register<S32>) -> [(keys: [Register<S32>], values: [Register<S32>])] {
    guard let sequence else { return [([head, start, batch], [head, start, batch])] }
    func signed(_ number: Register<U32>) -> Register<S32> { number.reinterpreted(as: S32.self) }
    guard cut.isPaged else {
      let values = RaggedRows(
        k, first: sequence.firstKey + sequence.place * p.valueRowsOfBatch, count: sequence.keys)
      return [
        (
          [head, start + signed(sequence.firstKey), signed(sequence.place * p.batchStep)],
          [head] + values.coordinates(start)
        )
      ]
    }
    let table = p.pageTable + k.wide(sequence.number) * p.pageTableStride
    return (0..<cut.tileKeys / cut.rows).map { number in
      let row = start + number * cut.rows
      let (present, last) = (sequence.keys - row, k.maximum(sequence.keys - 1, k.constant(0, S32.self)))
      // Behind the last key there need be no page: its own is looked up again.
      let own = k.minimum(row, last).reinterpreted(as: U32.self)
      let ofPage = own / p.pageSize
      let page = k.load(U32.self, global: table + k.multiplyWide(ofPage, 4))
      let inPage = own - ofPage * p.pageSize
      let count = k.select(page .< p.pages, k.held(present, to: k.constant(cut.rows, S32.self)), k.constant(0, S32.self))
      let values = RaggedRows(k, first: page * p.valueRowsOfBatch + inPage, count: count)
      return (
        [head, signed(inPage), signed(page)], [head] + values.coordinates(k.constant(0, S32.self))
      )
    }
  }
}

private func greatestCommonDivisor(_ a: Int, _ b: Int) -> Int { b == 0 ? a : greatestCommonDivisor(b, a % b) }
