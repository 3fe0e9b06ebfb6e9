internal import Attention

/// What a call does before it attends, where it brings keys: writes them to the cache, and turns the queries.
struct HostAppend {
  private let problem: AttentionProblem
  private let rotary: RotaryEmbedding?
  private let new: NewKeyTensors<HostMemory>
  private let entries: CacheEntries<HostMemory>

  init(_ problem: AttentionProblem, _ new: NewKeyTensors<HostMemory>, _ entries: CacheEntries<HostMemory>) {
    (self.problem, rotary, self.new, self.entries) = (problem, problem.newKeys?.rotary, new, entries)
  }

  private func newKeys(of sequence: Int) -> Range<Int> { entries.newKeys(of: sequence, problem, starts: new.starts) }

  /// The entries with the new keys counted.
  var entriesAfterwards: CacheEntries<HostMemory> {
    var after = entries
    after.lengths = (0..<problem.batch).map { entries.rows(of: $0) + newKeys(of: $0).count }
    return after
  }

  /// A row of floats, turned by the angles of a position.
  private func turned(_ row: [Float], position: Int) -> [Float] {
    guard let rotary, let tables = new.rotary else { return row }
    let angles = [tables.cosines, tables.sines].map { table in
      (0..<rotary.dimension / 2).map {
        table.scalarType.load(from: table.row(batch: 0, head: 0, token: position), at: $0)
      }
    }
    return rotary.turn(row, cosines: angles[0], sines: angles[1])
  }

  private func position(_ number: Int, _ sequence: Int, isKey: Bool) -> Int {
    rotary?.position(
      number, base: new.positions?[sequence] ?? entries.rows(of: sequence), isKey: isKey, mask: problem.mask) ?? 0
  }

  func append(to keys: MutableTensorView, _ values: MutableTensorView) {
    for (source, target, scales, isKey) in [
      (new.keys, keys, entries.keyScales, true), (new.values, values, entries.valueScales, false),
    ] {
      for sequence in 0..<problem.batch {
        for (i, token) in newKeys(of: sequence).enumerated() {
          let place = problem.place(ofRow: entries.rows(of: sequence) + i, sequence, entries)
          for h in 0..<problem.keyValueHeads {
            let from = source.row(batch: problem.newKeys!.packedTotal == nil ? sequence : 0, head: h, token: token)
            let to = target.row(batch: place.batch, head: h, token: place.token)
            let row = (0..<source.shape.dimension).map { source.scalarType.load(from: from, at: $0) }
            let own = isKey ? turned(row, position: position(i, sequence, isKey: true)) : row
            let factor = 1 / (scales?[sequence * problem.keyValueHeads + h] ?? 1)
            for (d, value) in own.enumerated() {
              target.scalarType.store(target.scalarType == .e4m3 ? value * factor : value, to: to, at: d)
            }
          }
        }
      }
    }
  }

  /// The queries, turned and in the problem's type; nil where nothing turns them.
  func turned(_ queries: TensorView) throws(AttentionError) -> Tensor? {
    if rotary == nil { return nil }
    let isPacked = problem.packedQueries != nil
    return try Tensor(shape: queries.shape, scalarType: problem.scalarType) { destination in
      for sequence in 0..<problem.batch {
        for (i, token) in entries.queries(of: sequence, problem).enumerated() {
          for h in 0..<problem.queryHeads {
            let from = queries.row(batch: isPacked ? 0 : sequence, head: h, token: token)
            let to = destination.row(batch: isPacked ? 0 : sequence, head: h, token: token)
            let row = (0..<queries.shape.dimension).map { queries.scalarType.load(from: from, at: $0) }
            for (d, value) in turned(row, position: position(i, sequence, isKey: false)).enumerated() {
              problem.scalarType.store(value, to: to, at: d)
            }
          }
        }
      }
    }
  }
}
