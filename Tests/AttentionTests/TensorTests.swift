import Attention
import Testing

@Suite struct TensorTests {
  private let shape = TensorShape(batch: 2, heads: 3, length: 4, dimension: 8)

  @Test(arguments: TensorLayout.allCases, ScalarType.computed)
  func elementsAreWhereTheLayoutSays(layout: TensorLayout, type: ScalarType) {
    let tensor = Tensor(shape: shape, scalarType: type, layout: layout) { b, h, n, d in
      Float(b * 100 + h * 30 + n * 8 + d)
    }
    let floats = tensor.floats
    let extents = layout.extents(of: shape)
    #expect(layout.shape(of: extents) == shape)
    for b in 0..<2 {
      for h in 0..<3 {
        for n in 0..<4 {
          for d in 0..<8 {
            let index = layout == .bhnd ? ((b * 3 + h) * 4 + n) * 8 + d : ((b * 4 + n) * 3 + h) * 8 + d
            #expect(tensor[b, h, n, d] == floats[index])
            #expect(tensor[b, h, n, d] == type.rounded(Float(b * 100 + h * 30 + n * 8 + d)))
          }
        }
      }
    }
  }

  @Test func convertsByRounding() {
    let tensor = Tensor(
      shape: .init(batch: 1, heads: 1, length: 1, dimension: 4), scalars: [1.0009, 70000, -0, 1e-9] as [Float])
    #expect(tensor.converted(to: .f16).floats == [1.0009765625, .infinity, -0, 0])
    #expect(tensor.converted(to: .bf16).floats[0] == 1)
    #expect(tensor.converted(to: .f32).floats == tensor.floats)
  }

  @Test func emptyTensorsHaveAnAddressAndNoElements() {
    let tensor = Tensor(shape: .init(batch: 1, heads: 2, length: 0, dimension: 8), scalars: [Float]())
    #expect(tensor.floats.isEmpty)
  }
}
