package import Attention
internal import CPUMicrokernels

/// The rows of K or V, wherever they are: of whole tensors, or of a sequence in a cache.
package struct KeyRows: Sendable {
  private let view: TensorView
  /// Of a sequence: where its rows are; nil where each batch of the view is one.
  private let sequence: Sequence?

  /// Where a sequence's rows are in a view.
  private enum Sequence {
    case rows(batch: Int, from: Int)
    /// From a row of the first page on.
    case pages([Int], size: Int, from: Int)
  }

  /// Batches of a tensor.
  package init(_ view: TensorView) { (self.view, sequence) = (view, nil) }

  /// A sequence of one batch of a view, from row `first` on.
  package init(_ view: TensorView, batch: Int, from first: Int) {
    (self.view, sequence) = (view, .rows(batch: batch, from: first))
  }

  /// A sequence on pages, which are the batches of a view, from row `first` on.
  package init(_ view: TensorView, pages: [Int], size: Int, from first: Int) {
    (self.view, sequence) = (view, .pages(pages, size: size, from: first))
  }

  var scalarType: ScalarType { view.scalarType }
  var type: FAScalarType { view.scalarType.microkernelType }
  /// Bytes from row to row.
  var stride: Int { view.strides.length * view.scalarType.byteCount }
  /// Bytes from a head's row to that of the next.
  var headStride: Int { view.strides.heads * view.scalarType.byteCount }
  /// Whether rows of other heads lie between those of one.
  var headsAreBetweenRows: Bool { abs(headStride) < abs(stride) }
  /// Whether all rows of a sequence are one stride apart.
  var areNeighbours: Bool {
    if case .pages = sequence { return false }
    return true
  }

  /// The row of a key, for the head of some query rows.
  func row(_ rows: PackedRows, _ key: Int) -> UnsafeRawPointer {
    switch sequence {
    case nil: view.row(batch: rows.batch, head: rows.keyValueHead, token: key)
    case .rows(let batch, let first): view.row(batch: batch, head: rows.keyValueHead, token: first + key)
    case .pages(let pages, let size, let first):
      view.row(batch: pages[(first + key) / size], head: rows.keyValueHead, token: (first + key) % size)
    }
  }

  /// The first of some keys whose rows are one stride apart.
  func run(of keys: Range<Int>) -> Range<Int> {
    guard case .pages(_, let size, let first) = sequence, !keys.isEmpty else { return keys }
    let end = ((first + keys.lowerBound) / size + 1) * size - first
    return keys.lowerBound..<min(end, keys.upperBound)
  }

  /// Some keys in such runs.
  func runs(of keys: Range<Int>) -> Runs { Runs(rows: self, rest: keys) }

  struct Runs: Swift.Sequence, IteratorProtocol {
    fileprivate let rows: KeyRows
    fileprivate var rest: Range<Int>

    mutating func next() -> Range<Int>? {
      if rest.isEmpty { return nil }
      let run = rows.run(of: rest)
      rest = run.upperBound..<rest.upperBound
      return run
    }
  }
}
