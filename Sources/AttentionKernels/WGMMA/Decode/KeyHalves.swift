internal import PTX

/// What two groups of four warps made of the same rows and of different keys: the first takes the other's sums and O to its own,
/// through shared memory that nobody reads any more, as much of it at a time as there is room for.
struct KeyHalves {
  let k: KernelBuilder
  /// Which of them a thread is in.
  let half: Register<U32>
  /// Where there is room, and how much, a multiple of what all threads of a group store at once.
  let room: Register<U32>
  let roomByteCount: Int
  /// Emits where both wait for each other.
  let barrier: () -> Void

  /// Bytes that a thread stores at once.
  private static let byteCount = 16

  /// Puts them together in the first group's registers. Threads in the same place of their groups have the same elements.
  func merge(_ softmax: OnlineSoftmax, _ output: Accumulators) {
    k.comment("what the other half of the keys amounts to")
    let step = 128 * Self.byteCount
    let place = room + (k.special(.threadX) % 128) * Self.byteCount
    let told = softmax.ownMaxima + softmax.ownSums
    let own = [told] + (0..<output.columnTiles).map { output[0, $0] }
    let factors = (0..<2).map { _ in k.variable(k.constant(0)) }
    for first in stride(from: 0, to: own.count, by: roomByteCount / step) {
      let numbers = first..<min(first + roomByteCount / step, own.count)
      barrier()
      k.if(half .!= 0) {
        for number in numbers { k.store(own[number], shared: place, offset: (number - first) * step) }
      }
      barrier()
      k.if(half .== 0) {
        for number in numbers {
          let others = k.load(F32.self, count: 4, shared: place, offset: (number - first) * step)
          if number == 0 {
            let own = softmax.take(maxima: Array(others[..<2]), sums: Array(others[2...]), rescaling: output)
            for (factor, own) in zip(factors, own) { k.set(factor, to: own) }
          } else {
            for (element, (value, other)) in zip(own[number], others).enumerated() {
              k.set(value, to: k.multiplyAdd(other, factors[element / 2], value))
            }
          }
        }
      }
    }
  }
}
