internal import Attention
internal import PTX

/// What a plan knows of the copy engine's map of a tensor, `[B, N, H, D]` in whatever order of strides: all but its address
/// and strides. A box is some rows of one head, or of some, row by row, by as many columns as the swizzle of 128 bytes has.
package struct TensorBox: Hashable, Sendable {
  private let element: TensorMap.Element
  private let shape: TensorShape
  /// Bytes of a number of the tensor, of which bytes count in twos.
  private let byteCount: Int
  private let rows, heads: Int
  /// Whether a copy says where its sequence begins and how many rows that has, behind which it brings zeros: the
  /// coordinates are those of `RaggedRows`.
  private let isRagged: Bool

  init(_ type: ScalarType, _ shape: TensorShape, rows: Int, heads: Int = 1, isRagged: Bool = false) {
    (element, byteCount) = (type == .f16 ? .f16 : .bf16, type.byteCount)
    (self.shape, self.rows, self.heads, self.isRagged) = (shape, rows, heads, isRagged)
  }

  /// The map of a tensor at an address, with strides in elements; nil where the copy engine takes none of that kind.
  func map(address: UInt64, batch: Int, head: Int, row: Int) -> TensorMap? {
    // Nobody's memory, where there are no elements.
    if address == 0 { return nil }
    // A tensor without elements has none to be brought; along an axis of one entry any stride is as good as another.
    func step(_ stride: Int, _ extent: Int) -> Int { extent > 1 ? stride &* byteCount : 0 }
    func map(_ outer: [(extent: Int, stride: Int)], box: [Int]) -> TensorMap? {
      let map = TensorMap(
        element, address: address,
        extents: [max(shape.dimension * byteCount / element.byteCount, 1)] + outer.map { max($0.extent, 1) },
        strides: outer.map(\.stride), box: [128 / element.byteCount] + box, swizzle: .bytes128)
      return map.obstacle == nil ? map : nil
    }
    let heads = (shape.heads, step(head, shape.heads))
    guard isRagged else {
      return map(
        [heads, (shape.length, step(row, shape.length)), (shape.batch, step(batch, shape.batch))],
        box: [self.heads, rows, 1])
    }
    guard let strides = RaggedRows.Strides(shape, batch: batch, row: row) else { return nil }
    let (step, isOverflow) = strides.row.multipliedReportingOverflow(by: byteCount)
    if isOverflow { return nil }
    return map(
      [
        heads, (RaggedRows.origin, step), (RaggedRows.limit, step),
        (RaggedRows.limit, RaggedRows.period &- step),
      ], box: [1, rows, 1, 1])
  }
}
