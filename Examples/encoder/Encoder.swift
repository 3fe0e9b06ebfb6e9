import FlashAttention
import Foundation
import TensorFiles

/// A BERT encoder of 6 layers whose sentence vector is the mean over its tokens, of length 1.
///
/// Sentences of different lengths go through it one behind the other, without padding: all but attention looks at a token alone,
/// and attention is told where each begins (`KeyRanges.documents`).
struct Encoder {
  static let width = 384
  private static let heads = 12
  private let words, positions, types: [Float]
  private let embeddingNorm: Norm
  private let layers: [Layer]

  private struct Layer {
    let query, key, value, output, up, down: Linear
    let attentionNorm, outputNorm: Norm
  }

  init(weights path: String) throws {
    let file = try SafetensorsFile(path: path)
    func floats(_ name: String) throws -> [Float] { try file.array(name).floats }
    func norm(_ name: String) throws -> Norm {
      Norm(weight: try floats(name + ".LayerNorm.weight"), bias: try floats(name + ".LayerNorm.bias"))
    }
    (words, positions, types) = (
      try floats("embeddings.word_embeddings.weight"), try floats("embeddings.position_embeddings.weight"),
      try floats("embeddings.token_type_embeddings.weight")
    )
    embeddingNorm = try norm("embeddings")
    layers = try (0..<6).map { number in
      let layer = "encoder.layer.\(number)."
      func linear(_ name: String) throws -> Linear {
        Linear(weight: try floats(layer + name + ".weight"), bias: try floats(layer + name + ".bias"))
      }
      return Layer(
        query: try linear("attention.self.query"), key: try linear("attention.self.key"),
        value: try linear("attention.self.value"), output: try linear("attention.output.dense"),
        up: try linear("intermediate.dense"), down: try linear("output.dense"),
        attentionNorm: try norm(layer + "attention.output"), outputNorm: try norm(layer + "output"))
    }
  }

  /// The vectors of sentences, each given by its tokens.
  func embed(_ sentences: [[Int]]) throws -> [[Float]] {
    let starts = sentences.reduce(into: [0]) { $0.append($0.last! + $1.count) }
    let count = starts.last!
    var x: [Float] = []
    for sentence in sentences {
      for (position, token) in sentence.enumerated() {
        for d in 0..<Self.width {
          x.append(words[token * Self.width + d] + positions[position * Self.width + d] + types[d])
        }
      }
    }
    x = embeddingNorm(x)

    // [tokens, 384] is [1, tokens, 12 heads, 32] in memory.
    let shape = TensorShape(batch: 1, heads: Self.heads, length: count, dimension: Self.width / Self.heads)
    let ownSentence = KeyRanges.documents(starts: Array(starts.dropLast()), count: count)
    for layer in layers {
      func tensor(_ linear: Linear) throws -> Tensor { try Tensor(shape: shape, layout: .bnhd, scalars: linear(x)) }
      let seen = try attention(
        queries: try tensor(layer.query), keys: try tensor(layer.key), values: try tensor(layer.value),
        ranges: ownSentence)
      x = layer.attentionNorm(sum(x, layer.output(seen.floats)))
      x = layer.outputNorm(sum(x, layer.down(layer.up(x).map(gelu))))
    }

    return zip(starts, starts.dropFirst()).map { start, end in
      var mean = [Float](repeating: 0, count: Self.width)
      for token in start..<end {
        for d in 0..<Self.width { mean[d] += x[token * Self.width + d] }
      }
      let length = mean.reduce(0) { $0 + $1 * $1 }.squareRoot()
      return mean.map { $0 / length }
    }
  }

  private func sum(_ a: [Float], _ b: [Float]) -> [Float] { zip(a, b).map(+) }

  private func gelu(_ x: Float) -> Float { 0.5 * x * (1 + erf(x * Float(0.5).squareRoot())) }
}

/// x W^T + b of rows.
struct Linear {
  /// `[outputs, inputs]`.
  let weight: [Float]
  let bias: [Float]

  func callAsFunction(_ x: [Float]) -> [Float] {
    let (outputs, inputs) = (bias.count, weight.count / bias.count)
    let rows = x.count / inputs
    return [Float](unsafeUninitializedCapacity: rows * outputs) { result, count in
      weight.withUnsafeBytes { weight in
        x.withUnsafeBytes { x in
          for output in 0..<outputs {
            for row in 0..<rows {
              var sums = SIMD16<Float>.zero
              for place in stride(from: 0, to: inputs * 4, by: 64) {
                sums.addProduct(
                  x.loadUnaligned(fromByteOffset: row * inputs * 4 + place, as: SIMD16<Float>.self),
                  weight.loadUnaligned(fromByteOffset: output * inputs * 4 + place, as: SIMD16<Float>.self))
              }
              result[row * outputs + output] = sums.sum() + bias[output]
            }
          }
        }
      }
      count = rows * outputs
    }
  }
}

/// Rows of mean 0 and variance 1, then scaled and moved column by column.
struct Norm {
  let weight, bias: [Float]

  func callAsFunction(_ x: [Float]) -> [Float] {
    let width = weight.count
    var result = x
    for row in stride(from: 0, to: x.count, by: width) {
      let values = x[row..<row + width]
      let mean = values.reduce(0, +) / Float(width)
      let variance = values.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Float(width)
      let scale = 1 / (variance + 1e-12).squareRoot()
      for column in 0..<width {
        result[row + column] = (x[row + column] - mean) * scale * weight[column] + bias[column]
      }
    }
    return result
  }
}
