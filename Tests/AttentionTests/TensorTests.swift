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
}
