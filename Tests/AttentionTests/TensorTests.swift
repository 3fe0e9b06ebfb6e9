import Attention
import Testing

@Suite struct TensorTests {
  private let shape = TensorShape(batch: 2, heads: 3, length: 4, dimension: 8)

  @Test(arguments: TensorLayout.allCases, ScalarType.computed)
  func elementsAreWhereTheLayoutSays(layout: TensorLayout, type: ScalarType) throws {
    let tensor = try Tensor(shape: shape, scalarType: type, layout: layout) { b, h, n, d in
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

  @Test func convertsByRounding() throws {
    let tensor = try Tensor(
      shape: .init(batch: 1, heads: 1, length: 1, dimension: 4), scalars: [1.0009, 70000, -0, 1e-9] as [Float])
    #expect(try tensor.converted(to: .f16).floats == [1.0009765625, .infinity, -0, 0])
    #expect(try tensor.converted(to: .bf16).floats[0] == 1)
    #expect(try tensor.converted(to: .f32).floats == tensor.floats)
  }

  @Test func emptyTensorsHaveAnAddressAndNoElements() throws {
    let tensor = try Tensor(shape: .init(batch: 1, heads: 2, length: 0, dimension: 8), scalars: [Float]())
    #expect(tensor.floats.isEmpty)
  }

  /// What cannot be is a sentence and no trap: extents below 0, more elements than can be counted or than there is
  /// memory for, and another number of them.
  @Test func refusesInSentences() {
    func sentence(_ batch: Int, _ length: Int, scalars: Int? = nil) -> String {
      let shape = TensorShape(batch: batch, heads: 1, length: length, dimension: 8)
      do throws(AttentionError) {
        if let scalars {
          _ = try Tensor(shape: shape, scalars: [Float](repeating: 0, count: scalars))
        } else {
          _ = try Tensor(shape: shape, scalarType: .f32) { _ in }
        }
        return "nothing was thrown"
      } catch { return "\(error)" }
    }
    #expect(sentence(-1, 3) == "The batch of a tensor is -1; it must be 0 or more.")
    #expect(sentence(1, .min) == "The length of a tensor is \(Int.min); it must be 0 or more.")
    #expect(sentence(1 << 40, 1 << 40).hasSuffix("has more elements than memory can hold; check its extents."))
    #expect(sentence(1, 1 << 60).hasSuffix("has more elements than memory can hold; check its extents."))
    #expect(
      sentence(1, 1 << 50)
        == "A tensor of batch 1, heads 1, length 1125899906842624, dimension 8 needs 36028797019 MB of memory, which this "
        + "machine does not have; make it smaller.")
    #expect(
      sentence(1, 2, scalars: 15)
        == "A tensor of batch 1, heads 1, length 2, dimension 8 has 16 elements; 15 were given.")
    #expect(sentence(-1, 2, scalars: 0) == "The batch of a tensor is -1; it must be 0 or more.")
  }

  /// Tensors between each other's rows share nothing; what cannot be told counts as nothing, too.
  @Test func tensorsShareMemoryWhereAnElementDoes() {
    func share(
      _ strides: TensorStrides, _ shape: TensorShape, _ other: TensorStrides, _ otherShape: TensorShape, elements: Int
    ) -> Bool {
      // Against every pair of elements, as far as there are few.
      func places(_ strides: TensorStrides, _ shape: TensorShape, _ first: Int) -> Set<Int> {
        var all: Set<Int> = []
        for b in 0..<shape.batch {
          for h in 0..<shape.heads {
            for n in 0..<shape.length {
              for d in 0..<shape.dimension { all.insert(first + strides.offset(batch: b, head: h, token: n) + d) }
            }
          }
        }
        return all
      }
      let truth = !places(strides, shape, 0).isDisjoint(with: places(other, otherShape, elements))
      let told = strides.sharesMemory(shape, .f32, with: other, otherShape, .f32, distance: elements * 4)
      #expect(told == truth || (truth && strides != other), "\(strides), \(other), \(elements)")
      return told
    }
    let cache = TensorShape(batch: 2, heads: 3, length: 5, dimension: 4)
    let row = TensorShape(batch: 2, heads: 3, length: 1, dimension: 4)
    // A buffer [B, H, 7, D], of which the cache has 5 rows of each head.
    let strides = TensorStrides(batch: 84, heads: 28, length: 4)
    for elements in -100...180 {
      _ = share(strides, cache, strides, row, elements: elements)
      _ = share(strides, cache, TensorStrides(batch: 84, heads: 28, length: 0), row, elements: elements)
    }
    #expect(!share(strides, cache, strides, row, elements: 20) && share(strides, cache, strides, row, elements: 16))
    // Without gaps, whatever the strides.
    let whole = TensorLayout.bhnd.strides(of: cache)
    #expect(share(whole, cache, TensorLayout.bnhd.strides(of: cache), cache, elements: 119))
    #expect(!share(whole, cache, TensorLayout.bnhd.strides(of: cache), cache, elements: 120))
  }

  /// Outputs whose elements share memory, and strides that lead out of all of it.
  @Test func stridesOfWhatIsWrittenAreCheckedAgainstEachOther() throws {
    let shape = TensorShape(batch: 2, heads: 3, length: 4, dimension: 8)
    func sentence(_ strides: TensorStrides, _ shape: TensorShape, isWritten: Bool = true) -> String? {
      do throws(AttentionError) {
        try strides.check("output", shape, isWritten: isWritten)
        return nil
      } catch { return "\(error)" }
    }
    for layout in TensorLayout.allCases { #expect(sentence(layout.strides(of: shape), shape) == nil) }
    // Backwards, with room between, and parts of wider rows.
    #expect(sentence(TensorStrides(batch: -1000, heads: -32, length: 100), shape) == nil)
    #expect(sentence(TensorStrides(batch: 96, heads: 32, length: 8), shape) == nil)
    for strides in [
      TensorStrides(batch: 96, heads: 0, length: 8), TensorStrides(batch: 0, heads: 32, length: 8),
      TensorStrides(batch: 96, heads: 32, length: 0), TensorStrides(batch: 96, heads: 32, length: 7),
      TensorStrides(batch: 96, heads: 31, length: 8), TensorStrides(batch: 95, heads: 32, length: 8),
      TensorStrides(batch: 8, heads: 8, length: 8), TensorStrides(batch: 96, heads: 32, length: -4),
    ] {
      #expect(sentence(strides, shape)?.contains("let its elements share memory") == true, "\(strides)")
      #expect(sentence(strides, shape, isWritten: false) == nil)
    }
    #expect(
      sentence(TensorStrides(batch: 96, heads: 0, length: 8), shape)
        == "The strides of output (batch 96, head 0, token 8 elements) let its elements share memory; give each memory of its own."
    )
    // Nobody steps along an axis of one entry, nor anywhere in a tensor without elements.
    #expect(
      sentence(TensorStrides(batch: 0, heads: 0, length: 8), .init(batch: 1, heads: 1, length: 4, dimension: 8)) == nil)
    #expect(
      sentence(TensorStrides(batch: .max, heads: .min, length: 0), .init(batch: 0, heads: 3, length: 4, dimension: 8))
        == nil)
    for isWritten in [true, false] {
      #expect(
        sentence(TensorStrides(batch: .min, heads: 32, length: 8), shape, isWritten: isWritten)
          == "The batch stride of output is \(Int.min) elements, which leads out of all memory; check it.")
      #expect(sentence(TensorStrides(batch: 96, heads: 1 << 57, length: 8), shape, isWritten: isWritten) != nil)
      #expect(sentence(TensorStrides(batch: 96, heads: 32, length: .max), shape, isWritten: isWritten) != nil)
    }
  }

  /// Slices and concatenated tensors hold what the original holds, whatever the layout, the type and the axis, and slices put
  /// together again are the whole.
  @Test(arguments: TensorLayout.allCases, ScalarType.computed + [.e4m3])
  func slicesConcatenateToTheWhole(layout: TensorLayout, type: ScalarType) throws {
    let whole = try Tensor(shape: shape, scalarType: type, layout: layout) { b, h, n, d in
      Float(b * 100 + h * 30 + n * 8 + d) / 16
    }
    let part = try whole.slice(batch: 1..<2, heads: 1..<3, length: 2..<3, dimension: 3..<8)
    #expect(part.shape == TensorShape(batch: 1, heads: 2, length: 1, dimension: 5))
    #expect(part.layout == layout && part.scalarType == type)
    for h in 0..<2 {
      for d in 0..<5 { #expect(part[0, h, 0, d] == whole[1, 1 + h, 2, 3 + d]) }
    }
    for axis in TensorAxis.allCases {
      let parts = try [0..<1, 1..<1, 1..<shape[axis]].map { range in
        switch axis {
        case .batch: try whole.slice(batch: range)
        case .heads: try whole.slice(heads: range)
        case .length: try whole.slice(length: range)
        case .dimension: try whole.slice(dimension: range)
        }
      }
      let joined = try Tensor(concatenating: parts, along: axis)
      #expect(joined.shape == shape && joined.floats == whole.floats, "along \(axis)")
    }
  }

  /// Tensors of another layout join by their elements, not by their bytes.
  @Test func layoutsMix() throws {
    func made(_ layout: TensorLayout) throws -> Tensor {
      try Tensor(shape: shape, scalarType: .f32, layout: layout) { b, h, n, d in Float(b * 100 + h * 30 + n * 8 + d) }
    }
    let joined = try Tensor(concatenating: [try made(.bhnd), try made(.bnhd)], along: .batch)
    #expect(joined.layout == .bhnd)
    #expect(try joined.slice(batch: 2..<4).floats == made(.bhnd).floats)
  }

  @Test func slicesRefuseInSentences() throws {
    func sentence(_ body: () throws(AttentionError) -> Tensor) -> String {
      do throws(AttentionError) {
        return "\(try body().shape) was made"
      } catch { return "\(error)" }
    }
    func made(heads: Int, _ type: ScalarType = .f32) throws -> Tensor {
      try Tensor(shape: .init(batch: 1, heads: heads, length: 2, dimension: 4), scalarType: type) { _ in }
    }
    let (three, four, half) = (try made(heads: 3), try made(heads: 4), try made(heads: 3, .f16))
    #expect(
      sentence { () throws(AttentionError) in try three.slice(heads: 2..<5) }
        == "The slice 2..<5 of the axis heads leads out of the tensor, which has 3 there; give a range within 0..<3.")
    #expect(
      sentence { () throws(AttentionError) in try three.slice(length: -1..<1) }
        == "The slice -1..<1 of the axis length leads out of the tensor, which has 2 there; give a range within 0..<2.")
    #expect(
      sentence { () throws(AttentionError) in try Tensor(concatenating: [three, four], along: .length) }
        == "tensor 2 of those to concatenate has heads 4, but the first has heads 3; they must be the same.")
    #expect(
      sentence { () throws(AttentionError) in try Tensor(concatenating: [three, half], along: .heads) }
        == "tensor 2 of those to concatenate is f16, but the first is f32; convert them to one type.")
    #expect(
      sentence { () throws(AttentionError) in try Tensor(concatenating: [], along: .heads) }
        == "There are no tensors to concatenate; give one at least.")
  }

  @Test func printsForPeople() throws {
    let small = try Tensor(
      shape: .init(batch: 1, heads: 1, length: 2, dimension: 3),
      scalars: [0, -0.12345, 9999.99999, 1e-9, .nan, 12345] as [Float])
    #expect(
      "\(small)" == """
        Tensor [batch 1, heads 1, length 2, dimension 3] f32
        batch 0, head 0:
          0:     0.0000    -0.1235     1.00e4
          1:    1.00e-9        nan     1.23e4
        """)
    let large = try Tensor(shape: .init(batch: 9, heads: 1, length: 11, dimension: 100), scalarType: .bf16) {
      _, _, n, d in
      Float(n) + Float(d % 2)
    }
    let lines = "\(large)".split(separator: "\n")
    // The heading; of 9 sequences and 11 tokens six each, with something between.
    #expect(lines.count == 1 + 6 * (1 + 6 + 1) + 1)
    #expect(lines[2] == "   0:     0.0000     1.0000     0.0000 ...     1.0000     0.0000     1.0000")
    #expect(lines.filter { $0 == "..." }.count == 1)
    #expect(
      try "\(Tensor(shape: .init(batch: 1, heads: 2, length: 0, dimension: 8), scalars: [Float]()))".split(
        separator: "\n"
      ).count == 1)
  }
}
