import Attention
import AttentionKernels
import FlashAttention
import PTX
import Testing

/// A plan keeps the maps of the memory that it is given again and again.
@Suite struct EncodedMapsTests {
  private func tensors(at base: UInt64, layout: TensorLayout = .bnhd) throws -> [ArgumentTemplate.MappedTensor] {
    let shape = TensorShape(batch: 2, heads: 4, length: 512, dimension: 64)
    let problem = try AttentionProblem(queries: shape, keys: shape, values: shape, scalarType: .bf16)
    let plan = try KernelPlan(
      problem, on: .typical(of: .sm90), HopperForwardTiling(), of: HopperForwardFamily.self)
    func view(_ number: UInt64) -> DeviceTensorView {
      DeviceTensorView(address: base + number << 24, scalarType: .bf16, shape: shape, layout: layout)
    }
    return plan.launches.attention.arguments.mappedTensors(
      KernelCall(
        AttentionTensors<GPUMemory>(queries: view(0), keys: view(1), values: view(2), output: view(3))))
  }

  @Test func areThoseOfTheSameTensors() throws {
    let (first, second, turned) = (
      try tensors(at: 1 << 32), try tensors(at: 1 << 33), try tensors(at: 1 << 32, layout: .bhnd)
    )
    #expect(first.count == 3)
    var maps = EncodedMaps()
    for (number, tensor) in first.enumerated() { maps.remember(.init(repeating: UInt64(number)), of: tensor) }
    #expect(try tensors(at: 1 << 32).map { maps[$0]?[0] } == [0, 1, 2])
    // Neither another address nor other strides are the same.
    #expect((second + turned).allSatisfy { maps[$0] == nil })
    // One of three that are asked for is known.
    maps.remember(.init(repeating: 9), of: second[1])
    #expect(second.map { maps[$0]?[0] } == [nil, 9, nil])
    maps.remember(.init(repeating: 8), of: second[1])
    #expect(maps.count == 4 && maps[second[1]]?[0] == 8)
  }

  @Test func areNotKeptWithoutEnd() throws {
    var maps = EncodedMaps()
    for number in 0..<UInt64(EncodedMaps.limit) {
      for tensor in try tensors(at: (number + 1) << 32) { maps.remember(.zero, of: tensor) }
    }
    let last = try tensors(at: UInt64(EncodedMaps.limit) << 32)
    #expect(maps.count <= EncodedMaps.limit && last.allSatisfy { maps[$0] != nil })
  }
}
