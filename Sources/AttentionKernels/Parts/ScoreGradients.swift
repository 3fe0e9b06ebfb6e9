internal import PTX

/// What lies between the products of the backward pass: weights from scores, and gradients of scores (but for the scale) from those of
/// weights,
///
///     P = exp2(S scale - LSE log2(e))        dS = P (dP - delta), with a softcap times 1 - tanh^2
struct ScoreGradients {
  private let k: KernelBuilder
  private let hasSoftcap: Bool
  private let scales: GradientScaleParameters

  /// Where `RowStatistics` are.
  enum Statistics {
    /// Those of the lane's rows, in registers.
    case ofRows([[Register<F32>]])
    /// Those of its columns, in shared memory: an address that has the lane in it (`addressOfLane`), and bytes behind it.
    case ofColumns(Register<U32>, offset: Int)
  }

  init(_ k: KernelBuilder, hasSoftcap: Bool, _ scales: GradientScaleParameters) {
    (self.k, self.hasSoftcap, self.scales) = (k, hasSoftcap, scales)
  }

  /// Where a lane looks for the statistics of its columns.
  static func addressOfLane(_ first: Register<U32>, lane: Register<U32>) -> Register<U32> {
    first + (lane % 4) * (2 * RowStatistics.byteCount)
  }

  /// Scores become weights, and gradients of weights, where there are some, those of scores.
  func apply(to scores: Accumulators, _ gradients: Accumulators?, _ statistics: Statistics) {
    cap(scores)
    forEach(scores, statistics) { rowTile, columnTile, element, offset, delta in
      let score = scores[rowTile, columnTile][element]
      let weight = weight(score, offset)
      if let gradient = gradients?[rowTile, columnTile][element] {
        var ofScore = weight * (gradient - delta)
        if hasSoftcap {
          let tanh = score * scales.inverseCap
          ofScore = ofScore * k.multiplyAdd(-tanh, tanh, k.constant(1))
        }
        k.set(gradient, to: ofScore)
      }
      k.set(score, to: weight)
    }
  }

  /// Whether the one can be had before the other: a softcap's slope is that of a score.
  var comeApart: Bool { !hasSoftcap }

  /// Scores become weights.
  func makeWeights(_ scores: Accumulators, _ statistics: Statistics) {
    forEach(scores, statistics) { rowTile, columnTile, element, offset, _ in
      let score = scores[rowTile, columnTile][element]
      k.set(score, to: weight(score, offset))
    }
  }

  /// Gradients of weights become those of scores.
  func makeGradients(_ gradients: Accumulators, of weights: Accumulators, _ statistics: Statistics) {
    forEach(gradients, statistics) { rowTile, columnTile, element, _, delta in
      let gradient = gradients[rowTile, columnTile][element]
      k.set(gradient, to: weights[rowTile, columnTile][element] * (gradient - delta))
    }
  }

  private func cap(_ scores: Accumulators) {
    if hasSoftcap {
      ScoreCap(inner: scales.capScale, outer: scales.scale).apply(to: scores, columnTiles: 0..<scores.columnTiles, k)
    }
  }

  private func weight(_ score: Register<F32>, _ offset: Register<F32>) -> Register<F32> {
    k.exp2(hasSoftcap ? score + offset : k.multiplyAdd(score, scales.scale, offset))
  }

  /// Each place of an element, with -LSE log2(e) and delta of its row of queries.
  private func forEach(
    _ tiles: Accumulators, _ statistics: Statistics,
    _ body: (
      _ rowTile: Int, _ columnTile: Int, _ element: Int, _ offset: Register<F32>, _ delta: Register<F32>
    ) -> Void
  ) {
    for columnTile in 0..<tiles.columnTiles {
      // Of two neighbouring columns.
      var passing: [Register<F32>] = []
      if case .ofColumns(let address, let offset) = statistics {
        passing = k.load(
          F32.self, count: 4, shared: address, offset: offset + columnTile * 8 * RowStatistics.byteCount)
      }
      for rowTile in 0..<tiles.rowTiles {
        for element in 0..<4 {
          switch statistics {
          case .ofColumns:
            body(rowTile, columnTile, element, passing[element % 2 * 2], passing[element % 2 * 2 + 1])
          case .ofRows(let own):
            let row = own[2 * rowTile + element / 2]
            body(rowTile, columnTile, element, row[0], row[1])
          }
        }
      }
    }
  }
}
