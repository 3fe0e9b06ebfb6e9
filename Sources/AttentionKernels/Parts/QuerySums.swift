internal import Attention
internal import PTX

/// The sums of dQ where several blocks add up their parts of it in memory, in whatever order they come: f32, in a workspace
/// behind `RowStatistics`, with rows as these have. A tile of 16 packed rows x 16 columns is one run of 1 KB, in the order of a
/// product's accumulators, so that a warp adds to whole sectors:
///
///     [half][lane][4]    where four are added at once (sm_90)
///     [half][4][lane]    where one is
///
/// Half 0 has a lane's row g, half 1 row g + 8; the four are `Accumulators.ofHalf`.
struct QuerySums {
  let k: KernelBuilder
  /// D.
  let dimension: Int
  /// Whether four are added at once.
  let areVectors: Bool
  let lane: Register<U32>

  private static let byteCountOfHalf = 512
  /// Bytes of a tile of 16 rows x 16 columns.
  static let byteCountOfTile = 2 * byteCountOfHalf

  /// Whether a GPU adds four at once.
  static func areVectors(on gpu: GPULimits) -> Bool { gpu.capability >= 90 }

  /// Bytes of a row; an odd 8 columns have neighbours that stay zero.
  static func rowByteCount(_ dimension: Int) -> Int { (dimension + 15) / 16 * (byteCountOfTile / 16) }

  /// Bytes of all, of a problem that has a number for them.
  static func byteCount(of problem: AttentionProblem) -> Int {
    problem.keyValueHeads * RowStatistics.rows(of: problem) * rowByteCount(problem.dimension)
  }

  /// The same; nil where there is no such number.
  static func checkedByteCount(of problem: AttentionProblem) -> Int? {
    checkedProduct([problem.keyValueHeads, RowStatistics.rows(of: problem), rowByteCount(problem.dimension)])
  }

  /// Adds accumulators.
  ///
  /// - Parameter place: the address of their first tile of 16 rows x 16 columns.
  func add(_ parts: Accumulators, to place: Register<U64>) {
    let own = place + k.wide(lane * (areVectors ? 16 : 4))
    forEachHalf(parts) { rowTile, column, half, offset in
      let values = Self.ofHalf(parts, rowTile, column, half)
      if areVectors {
        k.add(values, global: own, offset: offset)
      } else {
        for (number, value) in values.enumerated() { k.add([value], global: own, offset: offset + number * 128) }
      }
    }
  }

  /// Writes accumulators of 16 rows to shared memory as they lie in the sums, so that one copy adds them.
  ///
  /// - Parameter place: the address of their first tile, a multiple of 16.
  func put(_ parts: Accumulators, shared place: Register<U32>) {
    precondition(areVectors && parts.rowTiles == 1, "The order of 16 rows that are added four at once.")
    let own = place + lane * 16
    forEachHalf(parts) { rowTile, column, half, offset in
      k.store(Self.ofHalf(parts, rowTile, column, half), shared: own, offset: offset)
    }
  }

  /// Reads sums into accumulators.
  func load(_ sums: Accumulators, from place: Register<U64>) {
    let own = place + k.wide(lane * (areVectors ? 16 : 4))
    forEachHalf(sums) { rowTile, column, half, offset in
      let into = Self.ofHalf(sums, rowTile, column, half)
      let values =
        areVectors
        ? k.load(F32.self, count: into.count, global: own, offset: offset)
        : into.indices.map { k.load(F32.self, global: own, offset: offset + $0 * 128) }
      for (register, value) in zip(into, values) { k.set(register, to: value) }
    }
  }

  private func forEachHalf(
    _ tiles: Accumulators, _ body: (_ row: Int, _ column: Int, _ half: Int, _ offset: Int) -> Void
  ) {
    for rowTile in 0..<tiles.rowTiles {
      for column in 0..<(tiles.columnTiles + 1) / 2 {
        for half in 0..<2 {
          let offset =
            rowTile * 16 * Self.rowByteCount(dimension) + column * Self.byteCountOfTile + half * Self.byteCountOfHalf
          body(rowTile, column, half, offset)
        }
      }
    }
  }

  /// The lane's elements of 16 columns, or of the last 8, of a row.
  private static func ofHalf(_ tiles: Accumulators, _ rowTile: Int, _ column: Int, _ half: Int) -> [Register<F32>] {
    tiles.ofRow(2 * rowTile + half, columnTiles: 2 * column..<min(2 * column + 2, tiles.columnTiles))
  }
}
