internal import PTX

/// Writes A operands to a tile of shared memory, where other warps read them as operands: weights of warps that share rows, and
/// gradients of scores. The warp's columns lie within a panel.
struct OperandTile {
  private let k: KernelBuilder
  private let tile: SharedTile
  private let panel: SharedTile.Panel
  private let base: Register<U32>

  /// - Parameters:
  ///   - place: where the tile is.
  ///   - firstRow: the warp's, a multiple of 16.
  ///   - firstChunk: the warp's first 16 bytes of a row, a multiple of what it writes.
  init(
    _ k: KernelBuilder, _ tile: SharedTile, at place: Register<U32>, firstRow: Register<U32>,
    firstChunk: Register<U32>, lane: Register<U32>
  ) {
    (self.k, self.tile, panel) = (k, tile, tile.panels[0])
    let (group, pair) = (lane / 4, lane % 4)
    let own = tile.place(
      row: firstRow + group, chunk: firstChunk % panel.width, width: panel.width, patternRow: group)
    let base = place + (own + pair * 4)
    self.base = tile.panels.count == 1 ? base : base + (firstChunk / panel.width) * (tile.rows * panel.rowBytes)
  }

  /// Writes the operands of 16 columns, one for each 16-row tile.
  func put(_ operands: [[Register<U32>]], chunk: Int) {
    for (rowTile, fragment) in operands.enumerated() {
      for i in 0..<4 {
        // a0, a1: rows g and g + 8 of the first 8 columns; a2, a3: of the second.
        let (address, offset) = tile.beside(base, chunks: 2 * chunk + i / 2)
        k.store(fragment[i], shared: address, offset: offset + (rowTile * 16 + i % 2 * 8) * panel.rowBytes)
      }
    }
  }
}
