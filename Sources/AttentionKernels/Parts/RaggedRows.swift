internal import Attention
internal import PTX

/// The rows of a sequence among those of a tensor, as the copy engine is told them, so that zeros come for rows behind the
/// sequence's last, though others' follow there in memory.
///
/// Element (x, y, z) of the map's last three dimensions is at `x s + y s + z (2^34 - s)` for rows of s bytes; for z = 2^30
/// that is `(x + y - 2^30) s`, as addresses have 64 bits. Row r of n from row f on is at x = 2^30 - n + r and y = f + n, and x
/// has 2^30 elements, of which the last is row n - 1. (Known from Triton's "ragged TMA".)
struct RaggedRows {
  /// Elements along x.
  static let origin = 1 << 30
  /// Elements along y and z.
  static let limit = (1 << 31) - (1 << 16)
  /// Bytes after which so many elements along z lead back.
  static let period = 1 << 34

  private let k: KernelBuilder
  private let start, end: Register<S32>

  /// - Parameters:
  ///   - first: the sequence's first row.
  ///   - count: its rows, 0 or more.
  init(_ k: KernelBuilder, first: Register<U32>, count: Register<S32>) {
    self.k = k
    start = k.constant(Self.origin, S32.self) - count
    end = first.reinterpreted(as: S32.self) + count
  }

  /// Those of a row, behind the coordinate of its head.
  func coordinates(_ row: Register<S32>) -> [Register<S32>] {
    [start + row, end, k.constant(Self.origin, S32.self)]
  }

  /// How rows lie, a batch behind the other: in elements from a row to the next, in rows from a batch to the next.
  struct Strides {
    let row, rowsOfBatch: Int

    /// nil where batches do not begin at a multiple of rows, or rows are too many.
    init?(_ shape: TensorShape, batch: Int, row: Int) {
      let batches = shape.batch > 1 ? batch : 0
      // One row of each batch lies wherever the batch does.
      self.row = shape.length > 1 ? row : batches
      if self.row == 0 {
        rowsOfBatch = 0
        if batches != 0 { return nil }
      } else {
        rowsOfBatch = batches / self.row
        if batches % self.row != 0 || self.row < 0 || rowsOfBatch < 0 { return nil }
      }
      let (rows, isOverflow) = max(shape.batch - 1, 0).multipliedReportingOverflow(by: rowsOfBatch)
      if isOverflow || rows > RaggedRows.limit - RaggedRows.origin || shape.length > RaggedRows.origin { return nil }
    }
  }
}
