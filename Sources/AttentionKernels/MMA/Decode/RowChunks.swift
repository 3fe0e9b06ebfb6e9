internal import PTX

/// The chunks of 4 columns of the rows that a unit has, shared out over the threads of a block.
struct RowChunks {
  /// A chunk of a row of the unit's block of rows.
  typealias Place = (row: Register<U32>, chunk: Register<U32>)

  let k: KernelBuilder
  let tiling: DecodeTiling
  let rows: PackedQueries
  /// Chunks of a row.
  let chunks: Int

  /// Computes something for each chunk and then does something with it: for several chunks together where there are
  /// many rows, so that their loads are under way at the same time.
  func forEach<Result>(
    thread: Register<U32>, _ compute: ([Place]) -> [Result], then body: (Place, Result) -> Void
  ) {
    let count = k.minimum(rows.count - rows.firstRow, k.constant(tiling.rows, U32.self)) * chunks
    let atOnce = min(4, tiling.rows / 16)
    k.loop(from: thread, to: count, by: tiling.threads * atOnce) { first in
      let items = (0..<atOnce).map { first + $0 * tiling.threads }
      // Beyond the last chunk, the last one is computed again.
      let places = items.map { item in
        let own = atOnce == 1 ? item : k.minimum(item, count - 1)
        return (row: own / chunks, chunk: own % chunks)
      }
      for (i, result) in compute(places).enumerated() {
        if atOnce == 1 { body(places[i], result) } else { k.if(items[i] .< count) { body(places[i], result) } }
      }
    }
  }
}
